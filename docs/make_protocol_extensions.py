"""Write docs/protocol-extensions.md from the table of `aiomigrate.protocol.extensions`.

Run it from the root of the repository, as `python -m docs.make_protocol_extensions`, whenever that
table changes; a test compares the file with what `render` returns.
"""  # noqa: INP001 - a script beside the documents, no package

from pathlib import Path

from aiomigrate.protocol.extensions import EXTENSIONS, Definition, Extension
from aiomigrate.protocol.wire import command_name

__all__ = ["PAGE", "main", "render"]

PAGE = Path(__file__).with_name("protocol-extensions.md")

_INTRODUCTION = """\
# Extensions

Made by docs/make_protocol_extensions.py from aiomigrate/protocol/extensions.py. Change the table,
not this page.

What two aiomigrates can do with each other and a plain peer (Cloud Hypervisor above all) cannot.
All numbers are little-endian.

* The source offers a set of bits in bytes 2 to 5 of Start's `command_headers`, as a number of 32
  bits. A plain destination ignores them.
* The destination accepts a part of them in bytes 0 to 3 of the `padding` of its Ok to Start. They
  are zero from a plain destination. Bits that it does not know, and extensions without those that
  they need, are left out; a source takes an answer that accepts anything else for a breach.
* What was not accepted does not exist: its requests are refused like unknown ones, and nothing on
  the wire differs from the protocol of a plain peer.
* The requests of extensions have numbers from 0x8000 up, and each is answered like any other.
"""


def render() -> str:
    """The whole page, as Markdown."""
    rows = [
        f"| {extension.bit_length() - 1} | {extension.name} | {_needs(definition)} |"
        for extension, definition in EXTENSIONS.items()
    ]
    table = "\n".join(["| bit | name | needs |", "| --- | --- | --- |", *rows, ""])
    sections = [_section(extension, definition) for extension, definition in EXTENSIONS.items()]
    return "\n".join([_INTRODUCTION, table, *sections])


def _needs(definition: Definition) -> str:
    return ", ".join(f"{extension.name}" for extension in definition.needs) or "nothing"


def _section(extension: Extension, definition: Definition) -> str:
    lines = [f"## {extension.name}", "", f"{definition.meaning}", ""]
    if definition.commands:
        lines += ["| request | number | where, and its payload |", "| --- | --- | --- |"]
        lines += [
            f"| {command_name(command)} | {command:#06x} | {text} |"
            for command, text in definition.commands.items()
        ]
    else:
        lines.append("No request belongs to it.")
    return "\n".join([*lines, ""])


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
