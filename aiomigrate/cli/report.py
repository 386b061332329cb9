"""`aiomigrate report`: a migration that has ended, shown from a file."""

import sys

from aiomigrate.cli.reports import Ended, ReportError, load
from aiomigrate.cli.status import ExitStatus
from aiomigrate.cli.text import one_line

__all__ = ["run"]


def run(path: str, *, html: bool = False, out: str | None = None) -> ExitStatus:
    """Print the page for a terminal, or write the one for a browser to `out`, `-`: stdout."""
    try:
        ended = load(path)
    except ReportError as error:
        print(f"aiomigrate: {one_line(str(error))}", file=sys.stderr)
        return ExitStatus.USAGE
    if html:
        return _write(_html(ended), out or _beside(path))
    from rich.console import Console

    from aiomigrate.cli.report_text import page

    Console(highlight=False).print(page(ended))
    return ExitStatus.DONE


def _html(ended: Ended) -> str:
    from aiomigrate.web import render_html

    return render_html(
        title=ended.title,
        owner=ended.owner,
        error=ended.error,
        report=None if ended.report is None else ended.report.as_dict(),
        account=None if ended.report is not None else ended.account.as_dict(),
    )


def _beside(path: str) -> str:
    return path if path == "-" else f"{path.removesuffix('.json')}.html"


def _write(page: str, out: str) -> ExitStatus:
    if out == "-":
        sys.stdout.write(page)
        return ExitStatus.DONE
    try:
        with open(out, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        print(f"aiomigrate: {out}: {error.strerror or error}", file=sys.stderr)
        return ExitStatus.FAILED
    print(out)
    return ExitStatus.DONE
