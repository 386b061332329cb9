"""What two peers send and read, as scripts, and how a script is played through the state tables.

Each step is an input of a connection's table (`aiomigrate.protocol.tables`) on one side: a script
that the tables do not take is a ValueError. docs/make_protocol_sequences.py draws them.
"""  # noqa: INP001 - beside the documents, no package

from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from typing import Any

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
    "back",
    "call",
    "label",
    "note",
    "play",
]


class Does(StrEnum):
    """What happens in a step. The source asks, unless the step says that it goes back."""

    ASKS = "one side writes a request or a role"
    TAKES = "the other one reads it"
    ANSWERS = "the other one writes its answer"
    READS = "the one that asked reads it"
    LOSES = "the connection breaks"
    NOTES = "nothing on the wire: what holds from here on"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a script."""

    does: Does
    connection: str = ""
    what: Command | Signal | None = None
    text: str = ""
    back: bool = False
    """The destination asks, and the source answers."""


def ask(connection: str, what: Command | Signal) -> list[Step]:
    """Written and read, and not answered yet."""
    return [Step(Does.ASKS, connection, what), Step(Does.TAKES, connection)]


def answer(connection: str, what: Signal = Signal.OK) -> list[Step]:
    """Answered, and the answer read."""
    return [Step(Does.ANSWERS, connection, what), Step(Does.READS, connection)]


def call(connection: str, *whats: Command) -> list[Step]:
    """One request after the other, each with its answer."""
    return [step for what in whats for step in ask(connection, what) + answer(connection)]


def back(steps: list[Step]) -> list[Step]:
    """The same, but asked by the destination and answered by the source."""
    return [replace(step, back=True) for step in steps]


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
    Sequence(
        "post-copy",
        "Memory on demand",
        "The guest runs before its memory is there. The source opens a connection with the role"
        " Fault, over which the *destination* asks for pages: those that restoring the state or the"
        " guest misses, and all others meanwhile, without waiting for each answer. It ends the"
        " connection when it has all; until then the source keeps the memory, and the guest depends"
        " on it. aiomigrate does this as a source, for a stored VM (`offload restore --on-demand`:"
        " the destination's files are passed by MemoryFd, and answers have no content, as the page"
        " is in the file by then). Cloud Hypervisor does it between running guests as well.",
        [
            *call("main", Command.START, Command.MEMORY_FD, Command.CONFIG),
            *note("no memory is sent; the guest is paused, if it ran"),
            *ask("fault", Signal.ROLE),
            Step(Does.ASKS, "main", Command.STATE),
            Step(Does.TAKES, "main"),
            *back(call("fault", Command.PAGE_FAULT)),
            *answer("main"),
            *note("commit point"),
            *call("main", Command.COMPLETE),
            *note("the guest runs at the destination; what it misses, and the rest"),
            *back(
                [
                    Step(Does.ASKS, "fault", Command.PAGE_FAULT),
                    Step(Does.ASKS, "fault", Command.PAGE_FAULT),
                    Step(Does.TAKES, "fault"),
                    Step(Does.ANSWERS, "fault", Signal.OK),
                    Step(Does.TAKES, "fault"),
                    Step(Does.READS, "fault"),
                    *answer("fault"),
                ]
            ),
            *note("the destination has all of the memory"),
            *back(ask("fault", Signal.CLOSE)),
        ],
    ),
]


# Playing

_TABLES: dict[str, tuple[Any, Any, Enum]] = {
    "main": (SOURCE_MAIN, DESTINATION_MAIN, MainState.ESTABLISHED),
    "lane": (SOURCE_LANE, DESTINATION_LANE, LaneState.CONNECTED),
    "query": (SOURCE_QUERY, DESTINATION_LANE, LaneState.CONNECTED),
    "fault": (SOURCE_FAULT, DESTINATION_FAULT, FaultState.CONNECTED),
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

    tables: tuple[Any, Any]
    states: list[Enum]
    """At the source, and at the destination."""
    requests: deque[tuple[int, Command | Signal]] = field(default_factory=deque)
    unanswered: deque[bool] = field(default_factory=deque)
    """Of each request, whether it changed the state of who asked: then so does its Ok."""
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
        *tables, first = _TABLES[step.connection.partition(" ")[0]]
        wire = wires.setdefault(step.connection, _Wire((tables[0], tables[1]), [first, first]))
        _take(played, wire, step, row)
    for name, wire in wires.items():
        if wire.requests or wire.answers:
            raise ValueError(f"{sequence.name}: {name}: something is under way at the end")
    return played


def _take(played: Played, wire: _Wire, step: Step, row: int) -> None:
    name, what = step.connection, step.what
    asks, answers = (1, 0) if step.back else (0, 1)

    def move(side: int, entry: Command | Signal) -> None:
        wire.states[side] = _move(wire.tables[side], wire.states[side], entry, step)
        played.states.append((row, side == 0, name, wire.states[side].value))

    match step.does:
        case Does.ASKS if what is not None:
            before = wire.states[asks]
            move(asks, what)
            wire.requests.append((row, what))
            if isinstance(what, Command):
                wire.unanswered.append(wire.states[asks] is not before)
        case Does.TAKES:
            begun, what = wire.requests.popleft()
            move(answers, Signal.END if what is Signal.CLOSE else what)  # as that side sees it
            played.arrows.append(Arrow(name, label(what), asks == 0, begun, row))
        case Does.ANSWERS if isinstance(what, Signal):
            move(answers, what)
            wire.answers.append((row, what))
        case Does.READS:
            begun, signal = wire.answers.popleft()
            if wire.unanswered.popleft() or signal is Signal.ERROR:
                move(asks, signal)
            played.arrows.append(Arrow(name, label(signal), answers == 0, begun, row))
        case Does.LOSES:
            played.breaks.append((row, name))
            lost = [(begun, what, asks == 0) for begun, what in wire.requests]
            lost += [(begun, signal, answers == 0) for begun, signal in wire.answers]
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
