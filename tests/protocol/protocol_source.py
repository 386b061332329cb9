"""Cores of a source's connections, led to each of their states."""

import itertools
from collections.abc import Callable

from aiomigrate.protocol import (
    ALL_EXTENSIONS,
    Command,
    Dialect,
    Extension,
    LaneState,
    MainState,
    Response,
    SourceLane,
    SourceMain,
    Status,
)
from aiomigrate.protocol.extensions import EXTENSION_OF
from tests.protocol.protocol_sides import ERROR, OK, TOKEN

__all__ = [
    "CALLS",
    "EACH_LANE_STATE",
    "EACH_MAIN_STATE",
    "LANE_STATES",
    "lane_in",
    "main_in",
    "ok_to_start",
]


def ok_to_start(accepted: int) -> bytes:
    return Response(Status.OK, padding=accepted.to_bytes(6, "little")).encode()


CALLS: dict[Command, Callable[[SourceMain], object]] = {
    Command.START: lambda core: core.start(),
    Command.MEMORY_FD: lambda core: core.memory_fd(3),
    Command.CONFIG: lambda core: core.config(5),
    Command.MEMORY: lambda core: core.memory(2),
    Command.STATE: lambda core: core.state_snapshot(6),
    Command.COMPLETE: lambda core: core.complete(paused=False),
    Command.COMPLETE_PAUSED: lambda core: core.complete(paused=True),
    Command.ABANDON: lambda core: core.abandon(),
    Command.SESSION: lambda core: core.session(TOKEN),
    Command.RETIRE_LANE: lambda core: core.retire_lane(0x01000007),
    Command.ZEROS: lambda core: core.zeros(3),
    Command.CONFIRM: lambda core: core.confirm(),
}


_CONFIGURED = [Command.START, Command.CONFIG]
_RECEIVED = [*_CONFIGURED, Command.STATE]
_COMPLETED = [*_RECEIVED, Command.COMPLETE]
PATHS: dict[MainState, list[Command]] = {
    MainState.ESTABLISHED: [],
    MainState.STARTING: [Command.START],
    MainState.STARTED: [Command.START],
    MainState.NAMING: [Command.START, Command.SESSION],
    MainState.NAMED: [Command.START, Command.SESSION],
    MainState.TAKING_FD: [Command.START, Command.MEMORY_FD],
    MainState.FDS_RECEIVED: [Command.START, Command.MEMORY_FD],
    MainState.CONFIGURING: _CONFIGURED,
    MainState.CONFIGURED: _CONFIGURED,
    MainState.RESTORING: _RECEIVED,
    MainState.STATE_RECEIVED: _RECEIVED,
    MainState.IN_FLIGHT: _COMPLETED,
    MainState.COMPLETING: _COMPLETED,
    MainState.COMPLETED: _COMPLETED,
    MainState.CONFIRMING: [*_COMPLETED, Command.CONFIRM],
    MainState.CONFIRMED: [*_COMPLETED, Command.CONFIRM],
    MainState.ABANDONING: [Command.START, Command.ABANDON],
    MainState.ABORTED: [Command.START, Command.ABANDON],
    MainState.FAILED: [Command.START],
    MainState.CLOSED: [Command.START, Command.ABANDON],
}


def main_in(state: MainState, accepted: Extension = ALL_EXTENSIONS) -> SourceMain:
    core = SourceMain()
    for command in PATHS[state]:
        if (state, command) != (MainState.IN_FLIGHT, Command.COMPLETE):
            _answer(core, accepted)
        if command is Command.START:
            core.start(accepted)
        else:
            CALLS[command](core)
    if state is MainState.FAILED:
        core.receive_data(ERROR)
    elif core.state != state:
        _answer(core, accepted)
    if state == MainState.CLOSED:
        core.receive_end()
    assert core.state == state
    return core


def _answer(core: SourceMain, accepted: Extension) -> None:
    if core.state is MainState.STARTING:
        core.receive_data(ok_to_start(accepted))
    elif core.unanswered:
        core.receive_data(OK)


EACH_MAIN_STATE = [
    (state, accepted)
    for state, accepted in itertools.product(PATHS, (Extension.NONE, ALL_EXTENSIONS))
    if all(EXTENSION_OF.get(command, accepted) in accepted for command in PATHS[state])
]


def lane_in(
    state: LaneState, dialect: Dialect = Dialect.V53, extensions: Extension = Extension.NONE
) -> SourceLane:
    core = SourceLane("lane 7", dialect, extensions)
    if state is LaneState.CONNECTED:
        return core
    if Extension.SESSION in extensions:
        core.join(TOKEN, 7)
        if state is LaneState.JOINING:
            return core
        core.receive_data(OK)
    else:
        core.open()
    core.memory(1)
    core.receive_data(ERROR if state is LaneState.FAILED else OK)
    if state == LaneState.CLOSED:
        core.close()
    assert core.state == state
    return core


LANE_STATES = [LaneState.CONNECTED, LaneState.READY, LaneState.FAILED, LaneState.CLOSED]
EACH_LANE_STATE = [
    *((state, Extension.NONE) for state in LANE_STATES),
    *((state, ALL_EXTENSIONS) for state in (*LANE_STATES, LaneState.JOINING)),
]
