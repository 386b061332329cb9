"""Write docs/protocol-states.md from the tables of `aiomigrate.protocol.tables` and `ownership`.

Run it from the root of the repository, as `python -m docs.make_protocol_states`, whenever a table
changes; a test compares the file with what `render` returns.
"""  # noqa: INP001 - a script beside the documents, no package

from collections import defaultdict
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TypeVar

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
    S,
)
from aiomigrate.protocol.wire import Command, command_name

__all__ = ["PAGE", "main", "render"]

_E = TypeVar("_E", bound=Enum)
PAGE = Path(__file__).with_name("protocol-states.md")

_INTRODUCTION = """\
# The states of a connection

Made by docs/make_protocol_states.py from aiomigrate/protocol/tables.py and ownership.py. Change the
tables, not this page.

An arrow is labelled with what causes it: a request by its command, a response as Ok or Error, the
role that opens an additional connection, the end of the peer's stream, or our own closing. An
input that has no arrow is a breach of the protocol: the peer's makes the connection fail, our own
caller's is refused with `LocalProtocolError` and changes nothing.

Session, Join, RetireLane, Owner, Zeros and Confirm have their arrows only where their extension was
accepted (protocol-extensions.md); elsewhere they are inputs that have none.
"""


def render() -> str:
    """The whole page, as Markdown with Mermaid diagrams."""
    main_states = MainState.ESTABLISHED, MainState.CLOSED
    lane_states = LaneState.CONNECTED, LaneState.CLOSED
    fault_states = FaultState.CONNECTED, FaultState.CLOSED
    sections = [
        _section(
            "Main connection, destination",
            "One request is read, answered, and only then the next one is read.",
            DESTINATION_MAIN,
            *main_states,
        ),
        _section(
            "Main connection, source",
            "Any number of Memory, Zeros and RetireLane requests may be unanswered; their Ok"
            " changes no state.",
            SOURCE_MAIN,
            *main_states,
        ),
        _section(
            "Lane, destination",
            "The first two bytes tell the dialects apart: a role (v53), or the command of the"
            " first Memory (v52).\nA connection that opens with the role Fault goes on in"
            " the fault connection's table.\nWhere SESSION was accepted a lane begins with Join"
            " and not otherwise; where OWNERSHIP was, the connection may be a query.",
            DESTINATION_LANE,
            *lane_states,
        ),
        _section(
            "Lane, source",
            "Any number of Memory and Zeros requests may be unanswered; their Ok changes no"
            " state.\nWhere SESSION was accepted the lane begins with Join and not otherwise.",
            SOURCE_LANE,
            *lane_states,
        ),
        _section(
            "Ownership query, source",
            "A connection that asks one question; the destination reads it as it reads a lane.",
            SOURCE_QUERY,
            *lane_states,
        ),
        _section(
            "Fault connection, source",
            "The source opens the connection and answers what the destination asks for.",
            SOURCE_FAULT,
            *fault_states,
        ),
        _section(
            "Fault connection, destination",
            "Any number of PageFault requests may be unanswered; their Ok changes no state.",
            DESTINATION_FAULT,
            *fault_states,
        ),
        _section(
            "Owner of the VM, as the source knows it",
            "Not of a connection but of the migration. The source may resume the VM in Ours and in"
            " Kept, and never\nin the other two. InDoubt lasts until something says more.",
            SOURCE_OWNERSHIP,
            SourceTitle.OURS,
            SourceTitle.KEPT,
            SourceTitle.IN_DOUBT,
            SourceTitle.THEIRS,
        ),
        _section(
            "Owner of the VM, as the destination knows it",
            "The guest runs from TakingOver on at the earliest. An ownership query is answered"
            " *committed* in Owned\nand Confirmed, *aborted* in Aborted, not at all in InDoubt;"
            " in the other states it fences where that is\npossible, and waits.",
            DESTINATION_OWNERSHIP,
            DestinationTitle.BUILDING,
            DestinationTitle.OWNED,
            DestinationTitle.CONFIRMED,
            DestinationTitle.ABORTED,
            DestinationTitle.IN_DOUBT,
        ),
    ]
    return "\n".join([_INTRODUCTION, *sections])


def _section(title: str, text: str, table: Mapping[tuple[S, _E], S], first: S, *finals: S) -> str:
    arrows: defaultdict[tuple[S, S], list[str]] = defaultdict(list)
    for (state, entry), following in table.items():
        arrows[state, following].append(_label(entry))
    diagram = [
        f"    {state.value} --> {following.value} : {', '.join(labels)}"
        for (state, following), labels in arrows.items()
    ]
    rows = [
        f"| {state.value} | {_label(entry)} | {following.value} |"
        for (state, entry), following in table.items()
    ]
    lines = [
        f"## {title}",
        "",
        text,
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {first.value}",
        *diagram,
        *(f"    {final.value} --> [*]" for final in finals),
        "```",
        "",
        "| state | input | next state |",
        "| --- | --- | --- |",
        *rows,
        "",
    ]
    return "\n".join(lines)


def _label(entry: Enum) -> str:
    return command_name(entry) if isinstance(entry, Command) else entry.value


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
