"""The commands of whoever operates a service: running it, and asking it."""

from importlib.util import find_spec
from typing import Annotated

import typer

from aiomigrate.cli.logs import LogFormat
from aiomigrate.cli.options import (
    EXIT,
    JournalOption,
    JsonOption,
    LogFormatOption,
    MigrationArgument,
    ProgressOption,
    SocketOption,
    VerboseOption,
    VmOption,
)
from aiomigrate.cli.output import ProgressMode
from aiomigrate.cli.running import Settings

__all__ = ["add_to"]

_SERVE_EXIT = (
    "Exit status: 0 it was told to end; 2 nothing was begun (a wrong option, a socket in use)."
)
_CANCEL_EXIT = "Exit status: 0 cancelled, the VM is where it was; 1 it was too late; 2 usage."
_TUNE_EXIT = "Exit status: 0 changed; 1 it was too late; 2 usage."


_EXTRA = ("aiohttp", "prometheus_client", "pydantic")


def _need_the_extra() -> None:
    """Exit with a sentence if what the service or its client is made of is not installed."""
    for name in _EXTRA:
        if find_spec(name) is None:
            raise SystemExit(
                f"aiomigrate: services need {name}, which is not installed: "
                "pip install 'aiomigrate[cli,api]'"
            )


def add_to(app: typer.Typer) -> None:
    """Make these commands of the program."""
    app.command(epilog=_SERVE_EXIT)(serve)
    app.command()(ps)
    app.command(epilog=EXIT)(watch)
    app.command(epilog=_CANCEL_EXIT)(cancel)
    app.command(epilog=_TUNE_EXIT)(tune)


def serve(
    api_socket: Annotated[
        str, typer.Option("--api-socket", metavar="PATH", help="The unix socket to make (0600).")
    ],
    vms: Annotated[
        str, typer.Option("--vms", metavar="DIR", help="Where stored VMs are, and come to.")
    ],
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="tcp:HOST:PORT", help="Listen there, too, with --tls-dir or --insecure."
        ),
    ] = None,
    tls_dir: Annotated[
        str | None,
        typer.Option(
            "--tls-dir",
            metavar="DIR",
            help="Mutual TLS 1.3 at --listen: ca-cert.pem, whose clients may do everything, "
            "server-cert.pem and server-key.pem.",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Whoever reaches --listen may do everything: there is no TLS there."
        ),
    ] = False,
    journal: JournalOption = None,
    log_format: LogFormatOption = LogFormat.AUTO,
    verbose: VerboseOption = 0,
) -> None:
    """Run migrations of stored VMs for whoever asks over a REST API.

    Cloud Hypervisor's own API, so that ch-remote works, and more: GET / shows all of it.
    """
    from aiomigrate.cli.journals import journal_to_write

    _need_the_extra()
    from aiomigrate.cli.serve import Doors, run

    settings = Settings(ProgressMode.AUTO, log_format, verbose)
    doors = Doors(api_socket, listen, tls_dir, insecure)
    raise typer.Exit(run(doors, vms, journal_to_write(journal), settings))


def ps(api_socket: SocketOption, as_json: JsonOption = False) -> None:
    """List the migrations of a service."""
    _need_the_extra()
    from aiomigrate.cli.remote import ps as run

    raise typer.Exit(run(api_socket, as_json=as_json))


def watch(
    api_socket: SocketOption,
    migration: MigrationArgument = None,
    vm: VmOption = None,
    progress: ProgressOption = ProgressMode.AUTO,
) -> None:
    """Watch a migration of a service until it ends."""
    _need_the_extra()
    from aiomigrate.cli.remote import Meant
    from aiomigrate.cli.watch import run

    raise typer.Exit(run(api_socket, Meant(migration, vm), progress))


def cancel(
    api_socket: SocketOption, migration: MigrationArgument = None, vm: VmOption = None
) -> None:
    """Cancel a migration of a service, and wait until the VM is where it was."""
    _need_the_extra()
    from aiomigrate.cli.remote import Meant
    from aiomigrate.cli.remote import cancel as run

    raise typer.Exit(run(api_socket, Meant(migration, vm)))


def tune(
    api_socket: SocketOption,
    migration: MigrationArgument = None,
    vm: VmOption = None,
    downtime_ms: Annotated[
        int | None, typer.Option(min=1, help="How long the guest may be paused.")
    ] = None,
    rate_limit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="A second, while the guest runs: 100MiB; 0: no limit."),
    ] = None,
    throttle_cap_percent: Annotated[
        int | None, typer.Option(min=0, max=99, help="How far the guest may be slowed down.")
    ] = None,
    switch_over_now: Annotated[
        bool, typer.Option("--switch-over-now", help="Pause the guest at once, send the rest.")
    ] = False,
) -> None:
    """Change a running migration of a service, at its source."""
    _need_the_extra()
    from aiomigrate.cli.remote import Meant
    from aiomigrate.cli.remote import tune as run

    changes = {
        "downtime_ms": downtime_ms,
        "rate_limit": rate_limit,
        "throttle_cap_percent": throttle_cap_percent,
        "switch_over_now": switch_over_now or None,
    }
    raise typer.Exit(run(api_socket, Meant(migration, vm), changes))
