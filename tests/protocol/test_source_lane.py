"""A source's lane: how it begins, what it may ask in each state, and how it ends."""

from collections.abc import Callable

import pytest

from aiomigrate.protocol import (
    ALL_EXTENSIONS,
    Answer,
    Command,
    Dialect,
    Extension,
    LaneState,
    Response,
    SourceLane,
    Status,
)
from aiomigrate.protocol.extensions import EXTENSION_OF
from aiomigrate.protocol.tables import SOURCE_LANE
from tests.protocol.protocol_sides import ERROR, OK, TOKEN, misused, refused
from tests.protocol.protocol_source import EACH_LANE_STATE, LANE_STATES, lane_in


class TestLane:
    def test_a_join_comes_first_and_is_answered(self) -> None:
        for dialect in Dialect:
            core = SourceLane("lane 1", dialect, ALL_EXTENSIONS)
            assert misused(core.open).expected == "Join"
            assert misused(lambda c=core: c.memory(1)).expected == "Join first"  # type: ignore[misc]
            misused(lambda c=core: c.zeros(1))  # type: ignore[misc]
            joining = "0180" + "00" * 6 + "14" + "00" * 7 + TOKEN.hex() + "01000000"
            assert core.join(TOKEN, 1).hex() == joining
            misused(lambda c=core: c.memory(1))  # type: ignore[misc]
            assert core.receive_data(OK) == [Answer(command=Command.JOIN, ok=True)]
            core.memory(1)
            assert core.zeros(2).hex() == "0480" + "00" * 6 + "20" + "00" * 7
            assert len(core.receive_data(OK * 2)) == 2

    def test_a_refused_join(self) -> None:
        core = lane_in(LaneState.JOINING, extensions=ALL_EXTENSIONS)
        assert core.receive_data(ERROR) == [Answer(command=Command.JOIN, ok=False)]
        assert core.state is LaneState.FAILED

    def test_how_each_dialect_begins(self) -> None:
        memory = bytes.fromhex("04" + "00" * 7 + "30" + "00" * 7)
        for dialect, role in {Dialect.V53: b"\x01\x00", Dialect.V52: b""}.items():
            core = SourceLane("lane 1", dialect)
            assert core.open() == role
            assert core.memory(3) == memory
            assert core.memory(3) == memory
            assert (core.state, core.unanswered) == (LaneState.READY, 2)

    def test_no_memory_before_the_role(self) -> None:
        core = SourceLane("lane 1", Dialect.V53)
        error = misused(lambda: core.memory(1))
        assert (error.connection, error.state, error.command) == ("lane 1", "Connected", "Memory")
        assert core.state is LaneState.CONNECTED
        assert core.unanswered == 0

    def test_one_role_only(self) -> None:
        core = lane_in(LaneState.READY)
        assert misused(core.open).got == "role"

    @pytest.mark.parametrize(("state", "extensions"), EACH_LANE_STATE)
    @pytest.mark.parametrize("command", [Command.MEMORY, Command.ZEROS, Command.JOIN])
    def test_each_state_and_request(
        self, state: LaneState, extensions: Extension, command: Command
    ) -> None:
        core = lane_in(state, Dialect.V52, extensions)
        due = core.unanswered
        ask: Callable[[], bytes] = {
            Command.MEMORY: lambda: core.memory(1),
            Command.ZEROS: lambda: core.zeros(1),
            Command.JOIN: lambda: core.join(TOKEN, 7),
        }[command]
        following = SOURCE_LANE.get((state, command))
        if EXTENSION_OF.get(command, extensions) not in extensions:
            following = None
        if (state, command) == (LaneState.CONNECTED, Command.MEMORY) and extensions:
            following = None  # where SESSION was accepted a lane joins
        if following is None:
            misused(ask)
            assert (core.state, core.unanswered) == (state, due)
        else:
            ask()
            assert (core.state, core.unanswered) == (following, due + 1)

    @pytest.mark.parametrize("state", LANE_STATES)
    @pytest.mark.parametrize("status", [Status.OK, Status.ERROR])
    def test_a_response_to_nothing(self, state: LaneState, status: Status) -> None:
        core = lane_in(state)
        if state in {LaneState.FAILED, LaneState.CLOSED}:
            assert core.receive_data(Response(status).encode()) == []
            assert core.state is state
        else:
            refused(lambda: core.receive_data(Response(status).encode()))
            assert core.state is LaneState.FAILED

    @pytest.mark.parametrize(("state", "extensions"), EACH_LANE_STATE)
    def test_each_state_and_the_end(self, state: LaneState, extensions: Extension) -> None:
        core = lane_in(state, extensions=extensions)
        if state is LaneState.FAILED:
            core.receive_end()
            assert core.state is LaneState.CLOSED
        else:
            assert refused(core.receive_end).connection == "lane 7"
            assert core.state is LaneState.FAILED

    @pytest.mark.parametrize(("state", "extensions"), EACH_LANE_STATE)
    def test_each_state_and_closing(self, state: LaneState, extensions: Extension) -> None:
        core = lane_in(state, extensions=extensions)
        if state in {LaneState.CONNECTED, LaneState.READY}:
            core.close()
            assert core.state is LaneState.CLOSED
        else:
            assert misused(core.close).got in {"close", "1 unanswered"}
            assert core.state is state

    def test_no_closing_while_answers_are_due(self) -> None:
        core = lane_in(LaneState.READY)
        core.memory(1)
        core.memory(1)
        assert misused(core.close).got == "2 unanswered"
        core.receive_data(OK)
        assert misused(core.close).got == "1 unanswered"
        core.receive_data(OK)
        core.close()
