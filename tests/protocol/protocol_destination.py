"""Cores of a destination's connections, led to each of their states by requests in order."""

import itertools

from aiomigrate.protocol import (
    ALL_EXTENSIONS,
    AbandonReceived,
    Command,
    CompleteReceived,
    ConfigReceived,
    ConfirmReceived,
    DestinationLane,
    DestinationMain,
    Dialect,
    Event,
    Extension,
    LaneJoining,
    LaneOpened,
    LaneRetired,
    LaneState,
    Limits,
    MainState,
    MemoryFdReceived,
    MemoryReceived,
    OwnershipAsked,
    SessionReceived,
    StartReceived,
    StateReceived,
    ZerosReceived,
)
from aiomigrate.protocol.extensions import EXTENSION_OF
from tests.protocol.protocol_sides import ERROR, OK, TOKEN
from tests.support.feeding import feed, header

__all__ = [
    "BEFORE",
    "DRAINED",
    "EACH_LANE_STATE",
    "FIRST",
    "HUGE",
    "LIMITS",
    "SAMPLES",
    "each_main_state",
    "lane_in",
    "main_in",
]

LIMITS = Limits(max_config_bytes=200_000, max_state_bytes=300_000)
DRAINED = LIMITS.max_drained_bytes
HUGE = (1 << 64) - 1


# A valid sample of each request that a main connection takes, and what it says.
SAMPLES: dict[Command, tuple[bytes, Event]] = {
    Command.START: (
        header(Command.START, headers=bytes.fromhex("0000 7f000000")),
        StartReceived(version=0, offer=ALL_EXTENSIONS),
    ),
    Command.SESSION: (header(Command.SESSION, 16) + TOKEN, SessionReceived(token=TOKEN)),
    Command.MEMORY_FD: (
        header(Command.MEMORY_FD, 4) + b"\x01\x02\x00\x00",
        MemoryFdReceived(slot=0x201),
    ),
    Command.CONFIG: (header(Command.CONFIG, 5) + b"{'a'}", ConfigReceived(payload=b"{'a'}")),
    Command.MEMORY: (header(Command.MEMORY, 48), MemoryReceived(table_bytes=48)),
    Command.STATE: (header(Command.STATE, 2) + b"{}", StateReceived(payload=b"{}")),
    Command.COMPLETE: (header(Command.COMPLETE), CompleteReceived(paused=False)),
    Command.COMPLETE_PAUSED: (header(Command.COMPLETE_PAUSED), CompleteReceived(paused=True)),
    Command.ABANDON: (header(Command.ABANDON), AbandonReceived()),
    Command.RETIRE_LANE: (
        header(Command.RETIRE_LANE, 4) + b"\x03\x00\x01\x00",
        LaneRetired(number=0x10003),
    ),
    Command.ZEROS: (header(Command.ZEROS, 64), ZerosReceived(table_bytes=64)),
    Command.CONFIRM: (header(Command.CONFIRM), ConfirmReceived()),
}
# The same for a connection that begins with a request of an extension.
FIRST: dict[Command, tuple[bytes, Event]] = {
    Command.JOIN: (
        header(Command.JOIN, 20) + TOKEN + b"\x07\x00\x00\x01",
        LaneJoining(token=TOKEN, number=0x1000007),
    ),
    Command.OWNER: (header(Command.OWNER, 16) + TOKEN, OwnershipAsked(token=TOKEN)),
}

_COMPLETED = [Command.START, Command.CONFIG, Command.STATE, Command.COMPLETE]
# The requests, all but the last answered Ok, that lead to a state.
PATHS: dict[MainState, list[Command]] = {
    MainState.ESTABLISHED: [],
    MainState.STARTING: [Command.START],
    MainState.STARTED: [Command.START],
    MainState.NAMING: [Command.START, Command.SESSION],
    MainState.NAMED: [Command.START, Command.SESSION],
    MainState.TAKING_FD: [Command.START, Command.MEMORY_FD],
    MainState.FDS_RECEIVED: [Command.START, Command.MEMORY_FD],
    MainState.CONFIGURING: [Command.START, Command.CONFIG],
    MainState.CONFIGURED: [Command.START, Command.CONFIG],
    MainState.APPLYING: [Command.START, Command.CONFIG, Command.MEMORY],
    MainState.RETIRING: [Command.START, Command.CONFIG, Command.RETIRE_LANE],
    MainState.RESTORING: [Command.START, Command.CONFIG, Command.STATE],
    MainState.STATE_RECEIVED: [Command.START, Command.CONFIG, Command.STATE],
    MainState.COMPLETING: _COMPLETED,
    MainState.COMPLETED: _COMPLETED,
    MainState.CONFIRMING: [*_COMPLETED, Command.CONFIRM],
    MainState.CONFIRMED: [*_COMPLETED, Command.CONFIRM],
    MainState.ABANDONING: [Command.START, Command.ABANDON],
    MainState.ABORTED: [Command.START, Command.ABANDON],
    MainState.FAILED: [Command.START],
    MainState.CLOSED: [Command.START, Command.ABANDON],
}
# Where a request of each command is legal.
BEFORE = {
    Command.START: MainState.ESTABLISHED,
    Command.SESSION: MainState.STARTED,
    Command.MEMORY_FD: MainState.STARTED,
    Command.CONFIG: MainState.STARTED,
    Command.MEMORY: MainState.CONFIGURED,
    Command.STATE: MainState.CONFIGURED,
    Command.COMPLETE: MainState.STATE_RECEIVED,
    Command.COMPLETE_PAUSED: MainState.STATE_RECEIVED,
    Command.ABANDON: MainState.CONFIGURED,
    Command.RETIRE_LANE: MainState.CONFIGURED,
    Command.ZEROS: MainState.CONFIGURED,
    Command.CONFIRM: MainState.COMPLETED,
}


def main_in(
    state: MainState, limits: Limits = LIMITS, accepted: Extension = ALL_EXTENSIONS
) -> DestinationMain:
    """A core that was led to `state` and accepts all extensions in Start, or what is said."""
    core = DestinationMain(limits, willing=accepted)
    for command in PATHS[state]:
        if core.wanted == 0:
            core.answer(ok=True)
        assert feed(core, SAMPLES[command][0])
    if state is MainState.FAILED:
        assert core.answer(ok=False) == ERROR
    elif core.state is not state:
        core.answer(ok=True)
    if state is MainState.CLOSED:
        core.receive_end()
    assert core.state == state
    return core


def possible(state: MainState, accepted: Extension) -> bool:
    return all(EXTENSION_OF.get(c, accepted) in accepted for c in PATHS[state])


def each_main_state() -> list[tuple[MainState, Extension]]:
    both = itertools.product(PATHS, (Extension.NONE, ALL_EXTENSIONS))
    return [(state, accepted) for state, accepted in both if possible(state, accepted)]


def lane_in(
    state: LaneState, dialect: Dialect = Dialect.V53, extensions: Extension = Extension.NONE
) -> DestinationLane:
    core = DestinationLane("lane 7", extensions)
    if state == LaneState.CONNECTED:
        return core
    if state in {LaneState.ASKED, LaneState.TOLD}:
        feed(core, FIRST[Command.OWNER][0])
    elif Extension.SESSION in extensions:
        feed(core, FIRST[Command.JOIN][0])
        if state != LaneState.JOINING:
            assert core.answer(ok=True) == OK
    elif dialect == Dialect.V53:
        assert feed(core, b"\x01\x00") == [LaneOpened(dialect=Dialect.V53)]
    if core.wanted and core.state != state:
        feed(core, header(Command.MEMORY, 16))
    if state in {LaneState.FAILED, LaneState.CLOSED}:
        core.answer(ok=False)
    elif core.state != state:
        core.answer(ok=True)
    if state == LaneState.CLOSED:
        core.receive_end()
    assert core.state == state
    return core


EACH_LANE_STATE = [(state, ALL_EXTENSIONS) for state in LaneState] + [
    (state, Extension.NONE)
    for state in LaneState
    if state not in {LaneState.JOINING, LaneState.ASKED, LaneState.TOLD}
]
