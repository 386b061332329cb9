"""Write docs/reference/command-line.md from the commands themselves, by typer.

Run it from the root of the repository, as `python -m docs.make_command_line`, whenever a command or
an option changes; a test compares the file with what `render` returns.
"""  # noqa: INP001 - a script beside the documents, no package

import html
import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from aiomigrate.cli.app import app

__all__ = ["PAGE", "main", "render"]

PAGE = Path(__file__).parent / "reference" / "command-line.md"

_INTRODUCTION = """\
# The command line

Made by docs/make_command_line.py from the commands of aiomigrate/cli. Change these, not this page.

"""


def render() -> str:
    """The whole page, as Markdown."""
    command = get_command(app)
    text = get_docs_for_click(
        obj=command, ctx=typer.Context(command, info_name="aiomigrate"), name="aiomigrate", indent=1
    )
    # Quotes need no entity in Markdown, and titles no monospace: they are the navigation, too.
    text = re.sub(r"^(#+) `(.+)`$", r"\1 \2", html.unescape(text), flags=re.MULTILINE)
    text = text.replace("```console\n$ ", "```text\n")  # a synopsis, nothing to be run
    # The titles list the commands already, and whole.
    text = re.sub(r"^\*\*Commands\*\*:\n\n(\* .+\n)+\n?", "", text, flags=re.MULTILINE)
    return _INTRODUCTION + text.strip() + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
