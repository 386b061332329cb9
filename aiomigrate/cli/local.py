"""The commands about this machine: what is stored here, what it allows, and a demonstration."""

from typing import Annotated

import typer

from aiomigrate.cli.options import JsonOption, VerboseOption

__all__ = ["add_to"]

_REPORT_EXIT = "Exit status: 0 shown; 1 it could not be written; 2 the file is no report."
_CONVERT_EXIT = (
    "Exit status: 0 done; 1 it failed, DST is as it was; 2 SRC is no VM that could be "
    "converted; 130 cancelled."
)


def add_to(app: typer.Typer) -> None:
    """Make these commands of the program."""
    app.command()(inspect)
    app.command(epilog=_REPORT_EXIT)(report)
    app.command(epilog=_CONVERT_EXIT)(convert)
    app.command()(doctor)
    app.command()(demo)
    app.command(name="warm-up")(warm_up)


def inspect(
    path: Annotated[str, typer.Argument(help="A stored VM, or the bytes of one connection.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the files with their checksums.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a stored VM or a recorded stream holds."""
    from aiomigrate.cli.inspecting import run

    raise typer.Exit(run(path, verify=verify, as_json=as_json))


def report(
    path: Annotated[
        str,
        typer.Argument(
            metavar="REPORT.json",
            help="What `send`, `receive`, `watch` or `demo` printed as JSON, or a service's answer "
            "about one migration. `-`: standard input.",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Argument(
            metavar="OUT",
            help="With --html: the file to write, `-`: standard output. By default it is beside "
            "the report, with .html instead of .json.",
        ),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="A page for the terminal. This is the default.")
    ] = False,
    html: Annotated[
        bool, typer.Option("--html", help="One file for a browser, which needs nothing else.")
    ] = False,
) -> None:
    """Show a migration that has ended: who has the VM, its course, and what limited it."""
    from aiomigrate.cli.report import run

    if html and text:
        raise typer.BadParameter("--text and --html are two pages: choose one")
    if out is not None and not html:
        raise typer.BadParameter("OUT is for --html")
    raise typer.Exit(run(path, html=html, out=out))


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A directory: Cloud Hypervisor's file:// snapshot, or a stored VM."
        ),
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="The directory to make; must not exist.")
    ],
    verbose: VerboseOption = 0,
) -> None:
    """Make a stored VM of a file:// snapshot, or a file:// snapshot of a stored VM.

    SRC stays as it is. What DST would have no place for is refused by name.
    """
    from aiomigrate.cli.converting import run

    raise typer.Exit(run(source, destination, verbosity=verbose))


def doctor(as_json: JsonOption = False) -> None:
    """Show what this machine allows, and what that means for a migration.

    Exit status 1 if something that every migration needs is missing.
    """
    from aiomigrate.cli.doctor import run

    raise typer.Exit(run(as_json=as_json))


def demo(
    size: Annotated[str, typer.Option(help="Memory of the guest: 512MiB, 1GiB.")] = "512MiB",
    connections: Annotated[int, typer.Option(min=1, max=128)] = 4,
    rate_limit: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Move so much a second at the most, 0: no limit. With 16MiB the guest writes "
            "faster than its memory moves: see what you are told then (with --size 64MiB).",
        ),
    ] = "0",
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="JSON lines and no words; `aiomigrate report` reads the last one."
        ),
    ] = False,
) -> None:
    """Move a running guest between two processes while you watch; it checks its own memory."""
    from aiomigrate.cli.demo import run

    raise typer.Exit(run(size, connections, rate_limit, as_json=as_json))


def warm_up() -> None:
    """Compile the kernels into the cache, so that no migration has to."""
    from aiomigrate.cli.warming import run

    raise typer.Exit(run())
