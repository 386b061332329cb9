"""Write docs/protocol-states.md from the tables of `aiomigrate.protocol.tables` and `ownership`.

Run it from the root of the repository, as `python -m docs.make_protocol_states`, whenever a table
changes; a test compares the file with what `render` returns, and what its pictures show with the
tables.
"""  # noqa: INP001 - a script beside the documents, no package

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from aiomigrate.protocol.ownership import (
    DESTINATION_OWNERSHIP,
    SOURCE_OWNERSHIP,
    DestinationTitle,
    SourceTitle,
)
from aiomigrate.protocol.tables import (
    DESTINATION_FAULT,
    DESTINATION_LANE,
    DESTINATION_MAIN,
    SOURCE_FAULT,
    SOURCE_LANE,
    SOURCE_MAIN,
    SOURCE_QUERY,
    FaultState,
    LaneState,
    MainState,
)
from aiomigrate.protocol.wire import Command, command_name
from docs.state_diagrams import draw

__all__ = ["PAGE", "PICTURES", "SECTIONS", "Section", "main", "render"]

PAGE = Path(__file__).with_name("protocol-states.md")
PICTURES = PAGE.with_name("pictures")

_INTRODUCTION = """\
# The states of a connection

Made by docs/make_protocol_states.py from aiomigrate/protocol/tables.py and ownership.py. Change the
tables, not this page.

An arrow is labelled with what causes it (those to an early end are paler): a request by its
command, a response as Ok or Error, the role that opens an additional connection, the end of the
peer's stream, or our own closing. An input that has no arrow is a breach of the protocol: the
peer's makes the connection fail, our own caller's is refused with `LocalProtocolError` and changes
nothing.

Session, Join, RetireLane, Owner, Zeros and Confirm have their arrows only where their extension was
accepted ([extensions](protocol-extensions.md)); elsewhere they are inputs that have none.
"""


@dataclass(frozen=True, slots=True)
class Section:
    """One table, and what is said of it."""

    title: str
    text: str
    table: Mapping[tuple[Any, Any], Any]
    first: Enum
    finals: tuple[Enum, ...]

    @property
    def picture(self) -> str:
        """The name of its picture."""
        return "states-" + re.sub(r"\W+", "-", self.title.lower()) + ".svg"

    def arrows(self) -> dict[tuple[str, str], str]:
        """From one state to another, with all that causes it."""
        causes: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for (state, entry), following in self.table.items():
            causes[state.value, following.value].append(_label(entry))
        return {ends: ", ".join(labels) for ends, labels in causes.items()}

    def draw(self) -> str:
        """The picture."""
        finals = [final.value for final in self.finals]
        return draw(self.title, self.arrows(), self.first.value, finals)

    def render(self) -> str:
        """The section, as Markdown."""
        rows = [
            f"| {state.value} | {_label(entry)} | {following.value} |"
            for (state, entry), following in self.table.items()
        ]
        lines = [
            f"## {self.title}",
            "",
            self.text,
            "",
            f"![{self.title}: the table below as a diagram]({PICTURES.name}/{self.picture})",
            "",
            f"It begins in {self.first.value}.",
            "",
            "| state | input | next state |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
        return "\n".join(lines)


_MAIN = (MainState.ESTABLISHED, (MainState.CLOSED,))
_LANE = (LaneState.CONNECTED, (LaneState.CLOSED,))
_FAULT = (FaultState.CONNECTED, (FaultState.CLOSED,))

SECTIONS = [
    Section(
        "Main connection, destination",
        "One request is read, answered, and only then the next one is read.",
        DESTINATION_MAIN,
        *_MAIN,
    ),
    Section(
        "Main connection, source",
        "Any number of Memory, Zeros and RetireLane requests may be unanswered; their Ok"
        " changes no state.",
        SOURCE_MAIN,
        *_MAIN,
    ),
    Section(
        "Lane, destination",
        "The first two bytes tell the dialects apart: a role (v53), or the command of the"
        " first Memory (v52).\nA connection that opens with the role Fault goes on in"
        " the fault connection's table.\nWhere SESSION was accepted a lane begins with Join"
        " and not otherwise; where OWNERSHIP was, the connection may be a query.",
        DESTINATION_LANE,
        *_LANE,
    ),
    Section(
        "Lane, source",
        "Any number of Memory and Zeros requests may be unanswered; their Ok changes no"
        " state.\nWhere SESSION was accepted the lane begins with Join and not otherwise.",
        SOURCE_LANE,
        *_LANE,
    ),
    Section(
        "Ownership query, source",
        "A connection that asks one question; the destination reads it as it reads a lane.",
        SOURCE_QUERY,
        *_LANE,
    ),
    Section(
        "Fault connection, source",
        "The source opens the connection and answers what the destination asks for.",
        SOURCE_FAULT,
        *_FAULT,
    ),
    Section(
        "Fault connection, destination",
        "Any number of PageFault requests may be unanswered; their Ok changes no state.",
        DESTINATION_FAULT,
        *_FAULT,
    ),
    Section(
        "Owner of the VM, as the source knows it",
        "Not of a connection but of the migration. The source may resume the VM in Ours and in"
        " Kept, and never\nin the other two. InDoubt lasts until something says more.",
        SOURCE_OWNERSHIP,
        SourceTitle.OURS,
        (SourceTitle.KEPT, SourceTitle.IN_DOUBT, SourceTitle.THEIRS),
    ),
    Section(
        "Owner of the VM, as the destination knows it",
        "The guest runs from TakingOver on at the earliest. An ownership query is answered"
        " *committed* in Owned\nand Confirmed, *aborted* in Aborted, not at all in InDoubt;"
        " in the other states it fences where that is\npossible, and waits.",
        DESTINATION_OWNERSHIP,
        DestinationTitle.BUILDING,
        (
            DestinationTitle.OWNED,
            DestinationTitle.CONFIRMED,
            DestinationTitle.ABORTED,
            DestinationTitle.IN_DOUBT,
        ),
    ),
]


def render() -> str:
    """The whole page, as Markdown."""
    return "\n".join([_INTRODUCTION, *(section.render() for section in SECTIONS)])


def _label(entry: Enum) -> str:
    return command_name(entry) if isinstance(entry, Command) else entry.value


def main() -> None:
    """Write the page and its pictures."""
    PAGE.write_text(render(), encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for section in SECTIONS:
        (PICTURES / section.picture).write_text(section.draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
