"""Options that more than one command has, and what all say of their end."""

from typing import Annotated

import typer

from aiomigrate.cli.logs import LogFormat
from aiomigrate.cli.output import ProgressMode

__all__ = [
    "EXIT",
    "JournalOption",
    "JsonOption",
    "LogFormatOption",
    "MigrationArgument",
    "ProgressOption",
    "SocketOption",
    "VerboseOption",
    "VmOption",
]

EXIT = (
    "Exit status: 0 done; 1 failed, the VM is with the source; 2 nothing was begun (a wrong "
    "option, address or directory); 3 outcome unknown: the VM is paused at the source and may be "
    "with the destination; 130 cancelled."
)
ProgressOption = Annotated[
    ProgressMode,
    typer.Option(
        "--progress", help="auto: a live view at a terminal, JSON lines in a pipe (on stdout)."
    ),
]
LogFormatOption = Annotated[
    LogFormat,
    typer.Option("--log-format", help="Of the log on stderr; auto: human at a terminal, or json."),
]
VerboseOption = Annotated[
    int,
    typer.Option(
        "-v", "--verbose", count=True, help="-v logs what happens, -vv all and tracebacks."
    ),
]
JournalOption = Annotated[
    str | None,
    typer.Option(
        "--journal",
        metavar="DIR",
        help="Where it is noted who owns the VM, for `aiomigrate outcome` after a crash. "
        "[default: $XDG_STATE_HOME/aiomigrate, or ~/.local/state/aiomigrate]",
    ),
]
SocketOption = Annotated[
    str,
    typer.Option(
        "--api-socket",
        metavar="PATH",
        envvar="AIOMIGRATE_API_SOCKET",
        help="The unix socket of a service (`aiomigrate serve`).",
    ),
]
MigrationArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[ID]", help="A migration's id. Without it: the newest of the service's VM."
    ),
]
VmOption = Annotated[
    str | None,
    typer.Option("--vm", metavar="NAME", help="The newest migration of this VM is meant."),
]
TlsDirOption = Annotated[
    str | None,
    typer.Option(
        "--tls-dir",
        metavar="DIR",
        help="Mutual TLS 1.3, over tcp: ca-cert.pem, and client-cert.pem and client-key.pem of a "
        "source, server-cert.pem and server-key.pem of a destination.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="As one JSON object.")]
