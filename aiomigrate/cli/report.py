"""`aiomigrate report`: a migration that has ended, shown from a file."""

import sys

from aiomigrate.cli.status import ExitStatus

__all__ = ["run"]


def run(path: str) -> ExitStatus:
    """Print the page for a terminal."""
    from rich.console import Console

    from aiomigrate.cli.report_text import page
    from aiomigrate.cli.reports import ReportError, load

    try:
        ended = load(path)
    except ReportError as error:
        print(f"aiomigrate: {error}", file=sys.stderr)
        return ExitStatus.USAGE
    Console(highlight=False).print(page(ended))
    return ExitStatus.DONE
