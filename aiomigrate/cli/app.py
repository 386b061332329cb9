"""The program, and its commands that migrate. What they do is imported when they run."""

import sys
from typing import Annotated

import typer

from aiomigrate.cli import local, offload_commands, operating
from aiomigrate.cli.logs import LogFormat
from aiomigrate.cli.options import (
    EXIT,
    JournalOption,
    JsonOption,
    LogFormatOption,
    ProgressOption,
    TlsDirOption,
    VerboseOption,
)
from aiomigrate.cli.output import ProgressMode
from aiomigrate.cli.running import Settings
from aiomigrate.options import ReceiveOptions, SendOptions, TimeoutStrategy
from aiomigrate.preference import Preference
from aiomigrate.preference import prefer as choose
from aiomigrate.protocol import Dialect

__all__ = ["app"]

_ADDRESS = "tcp:HOST:PORT, tcp:[IPV6]:PORT or unix:PATH"
_DEFAULTS = SendOptions()
_RECEIVING = ReceiveOptions()

app = typer.Typer(
    name="aiomigrate",
    help="Live migration of virtual machines over Cloud Hypervisor's protocol.",
    epilog=EXIT,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(epilog=EXIT)
def receive(
    address: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS", help=f"Where to listen: {_ADDRESS}. Port 0: any free one."
        ),
    ],
    into: Annotated[
        str, typer.Option("--into", metavar="DIR", help="The directory to make; must not exist.")
    ],
    allow_lanes_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK",
            help="Also take memory connections from here (10.0.0.0/8), not only from the address "
            "that the migration comes from. Can be given again.",
        ),
    ] = None,
    linger: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long to stay for a source that may not know what became of the VM.",
        ),
    ] = _RECEIVING.linger_s,
    tls_dir: TlsDirOption = None,
    journal: JournalOption = None,
    progress: ProgressOption = ProgressMode.AUTO,
    log_format: LogFormatOption = LogFormat.AUTO,
    verbose: VerboseOption = 0,
) -> None:
    """Take a VM from Cloud Hypervisor or aiomigrate, paused or running, into a directory.

    The directory appears whole, or not at all.
    """
    from aiomigrate.cli.journals import journal_to_write
    from aiomigrate.cli.receive import DISK_S, run
    from aiomigrate.options import Deadlines

    def options() -> ReceiveOptions:
        return ReceiveOptions(
            allow_lanes_from=tuple(allow_lanes_from or ()),
            linger_s=linger,
            tls_dir=tls_dir,
            journal=journal_to_write(journal),
            deadlines=Deadlines(embedder_s=DISK_S),
        )

    settings = Settings(progress, log_format, verbose)
    raise typer.Exit(run(address, into, options, settings))


@app.command(epilog=EXIT)
def send(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A stored VM.")],
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help=f"Who receives it: {_ADDRESS}.")
    ],
    connections: Annotated[
        int, typer.Option(help="1 to 128; more than 1 need tcp.")
    ] = _DEFAULTS.connections,
    dialect: Annotated[
        Dialect, typer.Option(help="v52 for a Cloud Hypervisor of that version or before.")
    ] = _DEFAULTS.dialect,
    resume: Annotated[
        bool, typer.Option("--resume", help="The destination is to run the VM, not to keep it.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Only ask: check the files, connect, send Start and Config, abandon. A receiver "
            "stops waiting after that and must be started again.",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Send it although it was given away, or its taking was not confirmed. "
            "See first that it does not run elsewhere.",
        ),
    ] = False,
    prefer: Annotated[
        Preference | None,
        typer.Option(help="What matters most: sets window, throttle and downtime, and says how."),
    ] = None,
    downtime_ms: Annotated[
        int | None,
        typer.Option(
            help="How long the guest may be paused.", show_default=str(_DEFAULTS.downtime_ms)
        ),
    ] = None,
    timeout_s: Annotated[
        int, typer.Option(help="How long pre-copy may take.")
    ] = _DEFAULTS.timeout_s,
    timeout_strategy: Annotated[
        TimeoutStrategy,
        typer.Option(help="After that: give up, or pause the guest and send the rest."),
    ] = _DEFAULTS.timeout_strategy,
    rate_limit: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="At most so much memory a second, over all connections together, until the guest "
            "is paused: 100MiB. 0: no limit.",
        ),
    ] = str(_DEFAULTS.rate_limit),
    throttle_cap: Annotated[
        int | None,
        typer.Option(
            metavar="PERCENT",
            help="How far a guest that writes faster than memory moves may be slowed down, where "
            "its VMM can do that; 0: never.",
            show_default=str(_DEFAULTS.throttle_cap_percent),
        ),
    ] = None,
    fast_switchover: Annotated[
        bool,
        typer.Option(
            "--fast-switchover",
            help="Send Complete right behind the state, a round trip less of downtime. So it is "
            "anyhow towards aiomigrate. The price towards others: if the state is refused and that "
            "answer is lost, the outcome is unknown and the guest stays paused.",
        ),
    ] = False,
    tls_dir: TlsDirOption = None,
    journal: JournalOption = None,
    progress: ProgressOption = ProgressMode.AUTO,
    log_format: LogFormatOption = LogFormat.AUTO,
    verbose: VerboseOption = 0,
) -> None:
    """Send a stored VM to Cloud Hypervisor or aiomigrate."""
    from aiomigrate.cli.journals import journal_to_write
    from aiomigrate.cli.send import run
    from aiomigrate.cli.status import complain, status_of
    from aiomigrate.errors import UsageError

    given = {"downtime_ms": downtime_ms, "throttle_cap_percent": throttle_cap}
    told = [name for name, value in given.items() if value is not None]
    try:
        options = SendOptions(
            connections=connections,
            dialect=dialect,
            downtime_ms=_DEFAULTS.downtime_ms if downtime_ms is None else downtime_ms,
            timeout_s=timeout_s,
            timeout_strategy=timeout_strategy,
            rate_limit=_rate(rate_limit),
            throttle_cap_percent=(
                _DEFAULTS.throttle_cap_percent if throttle_cap is None else throttle_cap
            ),
            fast_switchover=fast_switchover,
            tls_dir=tls_dir,
            journal=None if check else journal_to_write(journal),
        )
        if prefer is not None:
            options, chosen = choose(prefer, options, told)
            print(f"aiomigrate: {chosen}", file=sys.stderr)
    except UsageError as error:
        complain(error, verbosity=verbose)
        raise typer.Exit(status_of(error, begun=False)) from None
    settings = Settings(progress, log_format, verbose)
    raise typer.Exit(
        run(
            directory,
            address,
            options,
            resume=resume,
            check=check,
            force=force,
            settings=settings,
        )
    )


def _rate(size: str) -> int:
    """Bytes a second. UsageError for what is no size."""
    from aiomigrate.cli.text import parse_size
    from aiomigrate.errors import UsageError

    try:
        return parse_size(size)
    except ValueError as error:
        raise UsageError(f"--rate-limit: {error}") from None


@app.command(
    epilog="Exit status: 0 it is known; 2 there is no such migration or journal; 3 it is unknown."
)
def outcome(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID|DIR]",
            help="A migration's id, or the directory of a stored VM. Without it: all there are.",
        ),
    ] = None,
    ask: Annotated[
        bool,
        typer.Option(
            "--ask",
            help="Ask the destination where only it can tell. A destination that has not begun to "
            "take the VM over never will then. Its answer is noted in the journal.",
        ),
    ] = False,
    tls_dir: TlsDirOption = None,
    journal: JournalOption = None,
    api_socket: Annotated[
        str | None,
        typer.Option(
            "--api-socket",
            metavar="PATH",
            help="Ask the service there what became of one of its migrations, by id.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell who owns a VM whose migration was cut short.

    Answers from the journal of this machine, and for a stored VM from its directory.
    """
    from aiomigrate.cli.outcomes import run

    if api_socket is not None:
        from aiomigrate.cli.remote import Meant
        from aiomigrate.cli.remote import outcome as asked

        raise typer.Exit(asked(api_socket, Meant(what, None), as_json=as_json))

    raise typer.Exit(run(what, journal, asks=ask, tls_dir=tls_dir, as_json=as_json))


@app.command(
    epilog="Exit status: 0 all checks ran and nothing was found; 1 findings, or checks that could "
    "not run; 2 a wrong option, or nobody takes the first connection; 130 cancelled."
)
def probe(
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help=f"The receiver to check: {_ADDRESS}.")
    ],
    command: Annotated[
        str | None,
        typer.Option(
            metavar="SHELL",
            help="Starts the receiver and stays as long as it lives. Run before each check, and "
            "ended with all that it started: without it whatever needs a fresh receiver is left "
            "out once this one listens no more.",
        ),
    ] = None,
    pid: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The receiver's process, if it is on this machine: to see it spin. Not needed "
            "with --command.",
        ),
    ] = None,
    vm: Annotated[
        str | None,
        typer.Option(
            "--vm",
            metavar="DIR",
            help="A stored VM that the receiver would take, whose Config and State are sent. "
            "Default: 64 MiB of memory and nothing else, which `aiomigrate receive` takes.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PREFIX", help="Only checks whose names begin so. Can be given again."
        ),
    ] = None,
    patience_s: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="How long to wait for an answer; six times that for a receiver to give up on a "
            "sender that stops.",
        ),
    ] = 10.0,
    tls_dir: TlsDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check what a receiver does with illegal orders, cuts, stalls and hostile lengths.

    Point it only at a receiver that may be lost: it breaks off every migration that it begins, and
    the receiver may hang, crash or keep a paused VM. It never sends Complete.
    """
    from aiomigrate.cli.probe import Probing, run

    told = Probing(address, command, pid, vm, tuple(only or ()), patience_s, as_json, tls_dir)
    raise typer.Exit(run(told))


local.add_to(app)
operating.add_to(app)
app.add_typer(offload_commands.offload, name="offload")
