"""The tables by themselves, each pair put to the machine, and the order that protocol.md gives."""

import itertools
import re
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, NamedTuple

import pytest

from aiomigrate.protocol import (
    ALL_EXTENSIONS,
    Extension,
    LocalProtocolError,
    RemoteProtocolError,
    Response,
    Status,
)
from aiomigrate.protocol.extensions import EXTENSION_OF
from aiomigrate.protocol.machine import Machine
from aiomigrate.protocol.tables import (
    DESTINATION_FAULT,
    DESTINATION_LANE,
    DESTINATION_MAIN,
    SOURCE_FAULT,
    SOURCE_LANE,
    SOURCE_MAIN,
    SOURCE_QUERY,
    FaultState,
    Input,
    LaneState,
    MainState,
    Signal,
    Table,
)
from aiomigrate.protocol.wire import Command, command_name


class Case(NamedTuple):
    name: str
    table: Table[Any]
    first: Enum
    failed: Enum
    closed: Enum
    unused: frozenset[Enum] = frozenset()
    """States that only the other side of such a connection has."""


_MAIN = MainState.ESTABLISHED, MainState.FAILED, MainState.CLOSED
_LANE = LaneState.CONNECTED, LaneState.FAILED, LaneState.CLOSED
_FAULT = FaultState.CONNECTED, FaultState.FAILED, FaultState.CLOSED
CASES = [
    Case("destination main", DESTINATION_MAIN, *_MAIN, frozenset({MainState.IN_FLIGHT})),
    Case("source main", SOURCE_MAIN, *_MAIN, frozenset({MainState.APPLYING, MainState.RETIRING})),
    Case("destination lane", DESTINATION_LANE, *_LANE),
    Case(
        "source lane",
        SOURCE_LANE,
        *_LANE,
        frozenset({LaneState.APPLYING, LaneState.ASKED, LaneState.TOLD}),
    ),
    Case(
        "source query",
        SOURCE_QUERY,
        *_LANE,
        frozenset({LaneState.JOINING, LaneState.READY, LaneState.APPLYING}),
    ),
    Case("source fault", SOURCE_FAULT, *_FAULT),
    Case(
        "destination fault",
        DESTINATION_FAULT,
        *_FAULT,
        frozenset({FaultState.ANSWERING, FaultState.ENDING}),
    ),
]
INPUTS: list[Input] = [*Command, *Signal]

each_table = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def _follow(table: Table[Any], states: Iterable[Enum]) -> set[Enum]:
    reached = set(states)
    while True:
        more = {after for (state, _), after in table.items() if state in reached} - reached
        if not more:
            return reached
        reached |= more


@each_table
def test_every_state_is_reached_and_none_that_is_the_other_sides(case: Case) -> None:
    assert _follow(case.table, [case.first]) == set(type(case.first)) - case.unused


@each_table
def test_every_state_but_the_last_has_an_exit_and_leads_to_the_last(case: Case) -> None:
    for state in set(type(case.first)) - case.unused - {case.closed}:
        exits = {after for (before, _), after in case.table.items() if before is state}
        assert exits - {state}, state
        assert case.closed in _follow(case.table, [state]), state
    assert not [entry for state, entry in case.table if state is case.closed]


@each_table
def test_nothing_but_the_end_follows_a_failure(case: Case) -> None:
    after_failure = {key: case.table[key] for key in case.table if key[0] is case.failed}
    assert after_failure == {(case.failed, Signal.END): case.closed}


def _exists(entry: Input, accepted: Extension) -> bool:
    return not isinstance(entry, Command) or EXTENSION_OF.get(entry, accepted) in accepted


@each_table
@pytest.mark.parametrize("accepted", [Extension.NONE, Extension.SESSION, ALL_EXTENSIONS])
def test_each_pair_of_state_and_input(case: Case, accepted: Extension) -> None:
    for state, entry in itertools.product(type(case.first), INPUTS):
        machine: Machine[Any] = Machine("it", case.table, state, case.failed)
        machine.extensions = accepted
        following = case.table.get((state, entry)) if _exists(entry, accepted) else None
        if following is not None:
            machine._move_locally(entry)
            assert machine.state is following
            continue
        with pytest.raises(LocalProtocolError) as caught:
            machine._move_locally(entry)
        assert machine.state is state
        got = command_name(entry) if isinstance(entry, Command) else entry.value
        assert (caught.value.connection, caught.value.state) == ("it", state.value)
        assert caught.value.got == got
        assert got not in caught.value.expected.split(" or ")


@each_table
@pytest.mark.parametrize("answer", [True, False])
def test_a_refusal_ends_in_failed_whatever_the_state(case: Case, answer: bool) -> None:
    for state in type(case.first):
        machine: Machine[Any] = Machine("it", case.table, state, case.failed)
        with pytest.raises(RemoteProtocolError) as caught:
            machine._refuse("Memory", "this", "that", answer=answer)
        assert machine.state is case.failed
        error = caught.value
        assert (error.connection, error.state, error.command) == ("it", state.value, "Memory")
        assert (error.expected, error.got) == ("this", "that")
        assert error.reply == (Response(Status.ERROR).encode() if answer else b"")


# protocol.md, "Order on the main connection", as regular expressions over one letter a command.
_LETTERS = {
    Command.START: "s",
    Command.MEMORY_FD: "f",
    Command.CONFIG: "c",
    Command.MEMORY: "m",
    Command.STATE: "t",
    Command.COMPLETE: "k",
    Command.COMPLETE_PAUSED: "p",
    Command.ABANDON: "a",
    Command.INVALID: "i",
    Command.PAGE_FAULT: "g",
    Command.SESSION: "n",
    Command.JOIN: "j",
    Command.RETIRE_LANE: "r",
    Command.OWNER: "o",
    Command.ZEROS: "z",
    Command.CONFIRM: "x",
}
_MAIN_ORDER = re.compile(r"(s(f*(c(m*(t)?)?)?)?)?a?|sf*cm*t[kp]")
_LANE_ORDER = re.compile(r"m*")
# docs/protocol-extensions.md: the same where all extensions were accepted.
_EXTENDED_MAIN_ORDER = re.compile(r"(sn?(f*(c([mzr]*(t)?)?)?)?)?a?|sn?f*c[mzr]*t[kp]x?")
_FIRST_LANE_ORDER = re.compile(r"(j[mz]*|m[mz]*|o)?")
_SOURCE_LANE_ORDER = re.compile(r"(j[mz]*|m[mz]*)?")
_OPEN_LANE_ORDER = re.compile(r"[mz]*")
_QUERY_ORDER = re.compile(r"o?")
_FAULT_ORDER = re.compile(r"g*a?")
_ASKING_ORDER = re.compile(r"g*")


def _accepts(table: Table[Any], state: Enum, commands: list[Command], accepted: Extension) -> bool:
    for command in commands:
        if (state, command) not in table or not _exists(command, accepted):
            return False
        asked = table[state, command]
        state = table.get((asked, Signal.OK), asked)
    return True


def _words(order: re.Pattern[str], longest: int) -> Iterator[list[Command]]:
    """Every sequence that is in order but for its last command at the most."""
    growing: list[list[Command]] = [[]]
    while growing:
        words = [[*word, command] for word in growing for command in Command]
        yield from words
        growing = [word for word in words if len(word) < longest and _in_order(order, word)]


def _in_order(order: re.Pattern[str], commands: list[Command]) -> bool:
    return order.fullmatch("".join(_LETTERS[command] for command in commands)) is not None


_NONE, _ALL = Extension.NONE, ALL_EXTENSIONS


@pytest.mark.parametrize(
    ("table", "first", "accepted", "order", "longest"),
    [
        (DESTINATION_MAIN, MainState.ESTABLISHED, _NONE, _MAIN_ORDER, 8),
        (DESTINATION_MAIN, MainState.ESTABLISHED, _ALL, _EXTENDED_MAIN_ORDER, 7),
        (SOURCE_MAIN, MainState.ESTABLISHED, _NONE, _MAIN_ORDER, 8),
        (SOURCE_MAIN, MainState.ESTABLISHED, _ALL, _EXTENDED_MAIN_ORDER, 7),
        (DESTINATION_LANE, LaneState.CONNECTED, _NONE, _LANE_ORDER, 3),
        (DESTINATION_LANE, LaneState.CONNECTED, _ALL, _FIRST_LANE_ORDER, 3),
        (DESTINATION_LANE, LaneState.READY, _NONE, _LANE_ORDER, 3),
        (DESTINATION_LANE, LaneState.READY, _ALL, _OPEN_LANE_ORDER, 3),
        (SOURCE_LANE, LaneState.CONNECTED, _NONE, _LANE_ORDER, 3),
        (SOURCE_LANE, LaneState.CONNECTED, _ALL, _SOURCE_LANE_ORDER, 3),
        (SOURCE_LANE, LaneState.READY, _NONE, _LANE_ORDER, 3),
        (SOURCE_LANE, LaneState.READY, _ALL, _OPEN_LANE_ORDER, 3),
        (SOURCE_QUERY, LaneState.CONNECTED, _ALL, _QUERY_ORDER, 2),
        (SOURCE_FAULT, FaultState.SERVING, _ALL, _FAULT_ORDER, 4),
        (DESTINATION_FAULT, FaultState.SERVING, _ALL, _ASKING_ORDER, 3),
    ],
)
def test_the_order_is_that_of_the_protocol(
    table: Table[Any], first: Enum, accepted: Extension, order: re.Pattern[str], longest: int
) -> None:
    for commands in _words(order, longest):
        in_order = _in_order(order, commands)
        assert _accepts(table, first, commands, accepted) == in_order, commands


@pytest.mark.parametrize("paused", [Command.COMPLETE, Command.COMPLETE_PAUSED])
def test_each_step_of_a_whole_migration_is_in_order(paused: Command) -> None:
    commands = [Command.START, Command.MEMORY_FD, Command.MEMORY_FD, Command.CONFIG]
    commands += [Command.MEMORY, Command.MEMORY, Command.STATE]
    first = MainState.ESTABLISHED
    for table in (DESTINATION_MAIN, SOURCE_MAIN):
        for end in range(len(commands) + 1):
            assert _accepts(table, first, commands[:end], _NONE)
            assert _accepts(table, first, [*commands[:end], Command.ABANDON], _NONE)
        assert _accepts(table, first, [*commands, paused], _NONE)
        assert not _accepts(table, first, [*commands, paused, Command.ABANDON], _NONE)


def test_nothing_but_complete_is_sent_behind_state() -> None:
    behind = {entry for state, entry in SOURCE_MAIN if state is MainState.RESTORING}
    assert behind == {Command.COMPLETE, Command.COMPLETE_PAUSED, Signal.OK, Signal.ERROR}
    then = {entry for state, entry in SOURCE_MAIN if state is MainState.IN_FLIGHT}
    assert then == {Signal.OK, Signal.ERROR}
