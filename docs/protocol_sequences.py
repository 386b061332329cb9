"""What two peers send and read, as scripts, and how a script is played through the state tables.

Each step is an input of a connection's table (`aiomigrate.protocol.tables`) on one side: a script
that the tables do not take is a ValueError. docs/make_protocol_sequences.py draws them.
"""  # noqa: INP001 - beside the documents, no package

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any

from aiomigrate.protocol.tables import (
    DESTINATION_LANE,
    DESTINATION_MAIN,
    SOURCE_LANE,
    SOURCE_MAIN,
    SOURCE_QUERY,
    LaneState,
    MainState,
    Signal,
)
from aiomigrate.protocol.wire import Command, command_name

__all__ = [
    "SEQUENCES",
    "Arrow",
    "Does",
    "Played",
    "Sequence",
    "Step",
    "answer",
    "ask",
    "call",
    "label",
    "note",
    "play",
]


class Does(StrEnum):
    """What happens in a step, and on which side."""

    ASKS = "the source writes a request or a role"
    TAKES = "the destination reads it"
    ANSWERS = "the destination writes its answer"
    READS = "the source reads it"
    LOSES = "the connection breaks"
    NOTES = "nothing on the wire: what holds from here on"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a script."""

    does: Does
    connection: str = ""
    what: Command | Signal | None = None
    text: str = ""


def ask(connection: str, what: Command | Signal) -> list[Step]:
    """Written and read, and not answered yet."""
    return [Step(Does.ASKS, connection, what), Step(Does.TAKES, connection)]


def answer(connection: str, what: Signal = Signal.OK) -> list[Step]:
    """Answered, and the answer read."""
    return [Step(Does.ANSWERS, connection, what), Step(Does.READS, connection)]


def call(connection: str, *whats: Command) -> list[Step]:
    """One request after the other, each with its answer."""
    return [step for what in whats for step in ask(connection, what) + answer(connection)]


def note(text: str) -> list[Step]:
    """A line across the picture."""
    return [Step(Does.NOTES, text=text)]


@dataclass(frozen=True, slots=True)
class Sequence:
    """A picture, and the sentences below it."""

    name: str
    title: str
    text: str
    steps: list[Step]


_OPENING = call("main", Command.START, Command.CONFIG)
_LANES = [step for lane in ("lane 1", "lane 2") for step in ask(lane, Signal.ROLE)]
_FLIGHT = [
    Step(Does.ASKS, "main", Command.STATE),
    Step(Does.ASKS, "main", Command.COMPLETE),
    Step(Does.TAKES, "main"),
    Step(Does.ANSWERS, "main", Signal.OK),
    Step(Does.TAKES, "main"),
    Step(Does.READS, "main"),
    Step(Does.ANSWERS, "main", Signal.OK),
    Step(Does.READS, "main"),
]

SEQUENCES = [
    Sequence(
        "one-connection",
        "A migration over one connection",
        "Everything goes over the main connection. Memory requests of an iteration follow one"
        " another without waiting (here two); TCP's order keeps an older version of a page"
        " from overtaking a newer one. Between State and Complete the source waits, as Cloud"
        " Hypervisor does: an Error to State leaves no doubt about the VM.",
        [
            *_OPENING,
            *note("the dirty log is on; iteration 0"),
            Step(Does.ASKS, "main", Command.MEMORY),
            Step(Does.ASKS, "main", Command.MEMORY),
            Step(Does.TAKES, "main"),
            Step(Does.ANSWERS, "main", Signal.OK),
            Step(Does.TAKES, "main"),
            Step(Does.READS, "main"),
            Step(Does.ANSWERS, "main", Signal.OK),
            Step(Does.READS, "main"),
            *note("the guest is paused; the last dirt"),
            *call("main", Command.MEMORY, Command.STATE),
            *note("commit point: from Complete on the source does not resume by itself"),
            *call("main", Command.COMPLETE),
            *note("the guest runs at the destination"),
        ],
    ),
    Sequence(
        "lanes",
        "Several connections, and the gate between iterations",
        "Lanes open with their role once the Config is answered, and carry the memory. Chunks"
        " of one iteration are disjoint, so lanes need no order among them. The next"
        " iteration's first chunk waits for every answer of the last one, on all connections:"
        " else two versions of a page would race on two lanes. The same gate stands before"
        " State.",
        [
            *_OPENING,
            *_LANES,
            *note("iteration 0"),
            Step(Does.ASKS, "lane 1", Command.MEMORY),
            Step(Does.ASKS, "lane 2", Command.MEMORY),
            Step(Does.ASKS, "lane 1", Command.MEMORY),
            Step(Does.TAKES, "lane 1"),
            Step(Does.TAKES, "lane 2"),
            Step(Does.ANSWERS, "lane 1", Signal.OK),
            Step(Does.TAKES, "lane 1"),
            Step(Does.READS, "lane 1"),
            Step(Does.ANSWERS, "lane 1", Signal.OK),
            Step(Does.ANSWERS, "lane 2", Signal.OK),
            Step(Does.READS, "lane 1"),
            Step(Does.READS, "lane 2"),
            *note("the gate: every Memory is answered; only then iteration 1"),
            Step(Does.ASKS, "lane 1", Command.MEMORY),
            Step(Does.ASKS, "lane 2", Command.MEMORY),
            Step(Does.TAKES, "lane 1"),
            Step(Does.TAKES, "lane 2"),
            Step(Does.ANSWERS, "lane 1", Signal.OK),
            Step(Does.ANSWERS, "lane 2", Signal.OK),
            Step(Does.READS, "lane 1"),
            Step(Does.READS, "lane 2"),
            *note("the guest is paused; the last dirt was sent; the gate again, and lanes close"),
            Step(Does.ASKS, "lane 1", Signal.CLOSE),
            Step(Does.TAKES, "lane 1"),
            Step(Does.ASKS, "lane 2", Signal.CLOSE),
            Step(Does.TAKES, "lane 2"),
            *call("main", Command.STATE, Command.COMPLETE),
        ],
    ),
    Sequence(
        "one-flight",
        "State and Complete in one flight",
        "Towards a destination that can be asked who owns the VM, or with `fast_switchover`,"
        " Complete follows State at once and saves a round trip of downtime. The answers come"
        " in order, so an Error to State still proves that Complete was not executed. Confirm"
        " tells the destination that its answer was read (extension CONFIRMATION).",
        [
            *call("main", Command.START, Command.SESSION, Command.CONFIG),
            *note("memory has been sent; the guest is paused; commit point"),
            *_FLIGHT,
            *note("the guest runs at the destination"),
            *call("main", Command.CONFIRM),
        ],
    ),
    Sequence(
        "lost-lane",
        "A lane is lost and replaced",
        "Its bytes may still lie in the destination's socket, and would be applied later,"
        " over newer content. So the source asks over the main connection that lane 1 be"
        " retired; the answer comes when nothing of it can touch memory any more. Then the"
        " chunks that it left unanswered are sent again, on a lane with a new number."
        " (Extensions SESSION and RETIRE_LANE; towards a plain peer a lost lane ends the"
        " migration.)",
        [
            *call("main", Command.START, Command.SESSION, Command.CONFIG),
            *call("lane 1", Command.JOIN),
            Step(Does.ASKS, "lane 1", Command.MEMORY),
            Step(Does.LOSES, "lane 1"),
            *call("main", Command.RETIRE_LANE),
            *note("lane 1 is fenced: its number is never used again"),
            *call("lane 2", Command.JOIN, Command.MEMORY),
        ],
    ),
    Sequence(
        "ownership-query",
        "The answer to Complete is lost: who owns the VM?",
        "The source is paused and does not know whether Complete was executed. It asks over a"
        " new connection, and the question is a fence: the destination answers *committed* if"
        " it has taken the VM over, and otherwise first makes sure that it never will, and"
        " answers *aborted*. Only then does the source resume. (Extension OWNERSHIP; towards a"
        " plain peer the source stays paused and says that the outcome is unknown.)",
        [
            *call("main", Command.START, Command.SESSION, Command.CONFIG),
            *note("memory has been sent; the guest is paused"),
            *call("main", Command.STATE),
            Step(Does.ASKS, "main", Command.COMPLETE),
            Step(Does.TAKES, "main"),
            Step(Does.ANSWERS, "main", Signal.OK),
            Step(Does.LOSES, "main"),
            *note("the outcome is unknown to the source"),
            *call("query", Command.OWNER),
            *note("the answer settles it: committed, or aborted"),
        ],
    ),
]


# Playing

_TABLES: dict[str, tuple[Any, Any, Enum]] = {
    "main": (SOURCE_MAIN, DESTINATION_MAIN, MainState.ESTABLISHED),
    "lane": (SOURCE_LANE, DESTINATION_LANE, LaneState.CONNECTED),
    "query": (SOURCE_QUERY, DESTINATION_LANE, LaneState.CONNECTED),
}


@dataclass(frozen=True, slots=True)
class Arrow:
    """Something that was written at one row and read at another (None: it was lost)."""

    connection: str
    label: str
    from_source: bool
    begun: int
    ended: int | None


@dataclass(slots=True)
class Played:
    """What there is to draw: arrows, states by row and side, and lines across."""

    arrows: list[Arrow] = field(default_factory=list)
    states: list[tuple[int, bool, str, str]] = field(default_factory=list)
    """(row, at the source, connection, state)"""
    notes: list[tuple[int, str]] = field(default_factory=list)
    breaks: list[tuple[int, str]] = field(default_factory=list)
    rows: int = 0


@dataclass(slots=True)
class _Wire:
    """One connection of a script: its state on both sides, and what is under way."""

    kind: tuple[Any, Any, Enum]
    here: Enum
    there: Enum
    requests: deque[tuple[int, Command | Signal]] = field(default_factory=deque)
    unanswered: deque[bool] = field(default_factory=deque)
    """Of each request, whether it changed the source's state: then so does its Ok."""
    answers: deque[tuple[int, Signal]] = field(default_factory=deque)


def play(sequence: Sequence) -> Played:
    """Take each step through the tables; ValueError for one that they do not take."""
    played = Played()
    wires: dict[str, _Wire] = {}
    for step in sequence.steps:
        row = played.rows
        played.rows += 1
        if step.does is Does.NOTES:
            played.notes.append((row, step.text))
            played.rows += 1  # room, for the line below the text
            continue
        kind = _TABLES[step.connection.partition(" ")[0]]
        wire = wires.setdefault(step.connection, _Wire(kind, kind[2], kind[2]))
        _take(played, wire, step, row)
    for name, wire in wires.items():
        if wire.requests or wire.answers:
            raise ValueError(f"{sequence.name}: {name}: something is under way at the end")
    return played


def _take(played: Played, wire: _Wire, step: Step, row: int) -> None:
    name, what = step.connection, step.what
    match step.does:
        case Does.ASKS if what is not None:
            before, wire.here = wire.here, _move(wire.kind[0], wire.here, what, step)
            played.states.append((row, True, name, wire.here.value))
            wire.requests.append((row, what))
            if isinstance(what, Command):
                wire.unanswered.append(wire.here is not before)
        case Does.TAKES:
            begun, what = wire.requests.popleft()
            entry = Signal.END if what is Signal.CLOSE else what  # as the other side sees it
            wire.there = _move(wire.kind[1], wire.there, entry, step)
            played.states.append((row, False, name, wire.there.value))
            played.arrows.append(Arrow(name, label(what), True, begun, row))
        case Does.ANSWERS if isinstance(what, Signal):
            wire.there = _move(wire.kind[1], wire.there, what, step)
            played.states.append((row, False, name, wire.there.value))
            wire.answers.append((row, what))
        case Does.READS:
            begun, signal = wire.answers.popleft()
            if wire.unanswered.popleft() or signal is Signal.ERROR:
                wire.here = _move(wire.kind[0], wire.here, signal, step)
                played.states.append((row, True, name, wire.here.value))
            played.arrows.append(Arrow(name, label(signal), False, begun, row))
        case Does.LOSES:
            played.breaks.append((row, name))
            lost = [(begun, what, True) for begun, what in wire.requests]
            lost += [(begun, signal, False) for begun, signal in wire.answers]
            played.arrows += [
                Arrow(name, label(what), mine, begun, None) for begun, what, mine in lost
            ]
            wire.requests.clear()
            wire.answers.clear()
        case _:
            raise ValueError(f"a step that says too little: {step}")


def _move(table: Any, state: Enum, entry: Command | Signal, step: Step) -> Enum:
    following: Enum | None = table.get((state, entry))
    if following is None:
        raise ValueError(f"{step}: {label(entry)} is no input of {state.value}")
    return following


def label(what: Command | Signal) -> str:
    """As in the tables of docs/protocol-states.md."""
    return command_name(what) if isinstance(what, Command) else what.value
