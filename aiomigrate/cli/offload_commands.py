"""`aiomigrate offload ...`: the commands and their options."""

from typing import Annotated

import typer

from aiomigrate.cli.logs import LogFormat
from aiomigrate.cli.options import (
    EXIT,
    JournalOption,
    LogFormatOption,
    ProgressOption,
    VerboseOption,
)
from aiomigrate.cli.output import ProgressMode
from aiomigrate.cli.running import Settings
from aiomigrate.executor import WORKERS
from aiomigrate.options import ReceiveOptions, SendOptions

__all__ = ["offload"]

offload = typer.Typer(
    help="Snapshot and restore for Cloud Hypervisor: memory by descriptor, over a unix socket.",
    no_args_is_help=True,
)

_SocketArgument = Annotated[str, typer.Argument(metavar="unix:PATH")]
_WorkersOption = Annotated[
    int, typer.Option(min=1, max=64, help="Threads that copy memory at the same time.")
]


@offload.command(epilog=EXIT)
def snapshot(
    address: _SocketArgument,
    into: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="The directory to make; must not exist. With --keep-serving: where each VM gets "
            "a directory of its own, vm-1, vm-2, ...",
        ),
    ],
    compressed: Annotated[
        bool,
        typer.Option(
            "--zstd",
            help="Store memory in zstd frames. Only aiomigrate restores that, and it cannot be "
            "told beforehand whether the disk has room.",
        ),
    ] = False,
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Take one VM after the other, until ended.")
    ] = False,
    workers: _WorkersOption = WORKERS,
    journal: JournalOption = None,
    progress: ProgressOption = ProgressMode.AUTO,
    log_format: LogFormatOption = LogFormat.AUTO,
    verbose: VerboseOption = 0,
) -> None:
    """Wait for `send-migration destination_url=unix:PATH,local=on` and store the VM.

    It is on the disk before Cloud Hypervisor is told that it may end; if it cannot be stored the
    VM goes on there. As a service of systemd it takes the socket of its unit, and tells when it is
    ready.
    """
    from aiomigrate.cli.journals import journal_to_write
    from aiomigrate.cli.offload_snapshot import Snapshots, run
    from aiomigrate.cli.receive import DISK_S
    from aiomigrate.options import Deadlines

    def options() -> ReceiveOptions:
        return ReceiveOptions(
            journal=journal_to_write(journal), deadlines=Deadlines(embedder_s=DISK_S)
        )

    asked = Snapshots(address, into, keep_serving, compressed, workers)
    raise typer.Exit(run(asked, options, Settings(progress, log_format, verbose)))


@offload.command(epilog=EXIT)
def restore(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A stored VM.")],
    address: _SocketArgument,
    resume: Annotated[
        bool, typer.Option("--resume", help="The VM is to run, not to be paused.")
    ] = False,
    on_demand: Annotated[
        bool,
        typer.Option(
            "--on-demand",
            help="Let it begin without its memory, which comes as it is asked for. The receiver "
            "must be told, too: memory_mode=postcopy. Stays until all of it is there.",
        ),
    ] = False,
    workers: _WorkersOption = WORKERS,
    journal: JournalOption = None,
    progress: ProgressOption = ProgressMode.AUTO,
    log_format: LogFormatOption = LogFormat.AUTO,
    verbose: VerboseOption = 0,
) -> None:
    """Give a stored VM to a Cloud Hypervisor that waits in `receive-migration`."""
    from aiomigrate.cli.journals import journal_to_write
    from aiomigrate.cli.offload_restore import run

    options = SendOptions(local=True, journal=journal_to_write(journal))
    raise typer.Exit(
        run(
            directory,
            address,
            options,
            resume=resume,
            on_demand=on_demand,
            workers=workers,
            settings=Settings(progress, log_format, verbose),
        )
    )
