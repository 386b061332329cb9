import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.protocol import (
    Answer,
    Command,
    Dialect,
    LaneState,
    LocalProtocolError,
    MainState,
    RemoteProtocolError,
    Response,
    SourceLane,
    SourceMain,
    Status,
)
from aiomigrate.protocol.tables import SOURCE_LANE, SOURCE_MAIN, Signal
from tests.support.feeding import every_way

OK = Response(Status.OK).encode()
ERROR = Response(Status.ERROR).encode()

CALLS: dict[Command, Callable[[SourceMain], object]] = {
    Command.START: lambda core: core.start(),
    Command.MEMORY_FD: lambda core: core.memory_fd(3),
    Command.CONFIG: lambda core: core.config(5),
    Command.MEMORY: lambda core: core.memory(2),
    Command.STATE: lambda core: core.state_snapshot(6),
    Command.COMPLETE: lambda core: core.complete(paused=False),
    Command.COMPLETE_PAUSED: lambda core: core.complete(paused=True),
    Command.ABANDON: lambda core: core.abandon(),
}
# What is written for each request, and where it may be written first.
WRITTEN: dict[Command, tuple[MainState, object]] = {
    Command.START: (MainState.ESTABLISHED, bytes.fromhex("01" + "00" * 15)),
    Command.MEMORY_FD: (
        MainState.STARTED,
        (bytes.fromhex("07" + "00" * 7 + "04" + "00" * 7), b"\x03\x00\x00\x00"),
    ),
    Command.CONFIG: (MainState.STARTED, bytes.fromhex("02" + "00" * 7 + "05" + "00" * 7)),
    Command.MEMORY: (MainState.CONFIGURED, bytes.fromhex("04" + "00" * 7 + "20" + "00" * 7)),
    Command.STATE: (MainState.CONFIGURED, bytes.fromhex("03" + "00" * 7 + "06" + "00" * 7)),
    Command.COMPLETE: (MainState.STATE_RECEIVED, bytes.fromhex("05" + "00" * 15)),
    Command.COMPLETE_PAUSED: (MainState.STATE_RECEIVED, bytes.fromhex("08" + "00" * 15)),
    Command.ABANDON: (MainState.CONFIGURED, bytes.fromhex("06" + "00" * 15)),
}

_CONFIGURED = [Command.START, Command.CONFIG]
_RECEIVED = [*_CONFIGURED, Command.STATE]
PATHS: dict[MainState, list[Command]] = {
    MainState.ESTABLISHED: [],
    MainState.STARTING: [Command.START],
    MainState.STARTED: [Command.START],
    MainState.TAKING_FD: [Command.START, Command.MEMORY_FD],
    MainState.FDS_RECEIVED: [Command.START, Command.MEMORY_FD],
    MainState.CONFIGURING: _CONFIGURED,
    MainState.CONFIGURED: _CONFIGURED,
    MainState.RESTORING: _RECEIVED,
    MainState.STATE_RECEIVED: _RECEIVED,
    MainState.COMPLETING: [*_RECEIVED, Command.COMPLETE],
    MainState.COMPLETED: [*_RECEIVED, Command.COMPLETE],
    MainState.ABANDONING: [Command.START, Command.ABANDON],
    MainState.ABORTED: [Command.START, Command.ABANDON],
    MainState.FAILED: [Command.START],
    MainState.CLOSED: [Command.START, Command.ABANDON],
}


def main_in(state: MainState) -> SourceMain:
    core = SourceMain()
    for command in PATHS[state]:
        if core.unanswered:
            core.receive_data(OK)
        CALLS[command](core)
    if state is MainState.FAILED:
        core.receive_data(ERROR)
    elif core.state != state:
        core.receive_data(OK)
    if state == MainState.CLOSED:
        core.receive_end()
    assert core.state == state
    return core


def lane_in(state: LaneState, dialect: Dialect = Dialect.V53) -> SourceLane:
    core = SourceLane("lane 7", dialect)
    if state is LaneState.CONNECTED:
        return core
    core.open()
    core.memory(1)
    core.receive_data(ERROR if state is LaneState.FAILED else OK)
    if state == LaneState.CLOSED:
        core.close()
    assert core.state == state
    return core


def refused(run: Callable[[], object]) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        run()
    return caught.value


def misused(run: Callable[[], object]) -> LocalProtocolError:
    with pytest.raises(LocalProtocolError) as caught:
        run()
    return caught.value


class TestRequests:
    @pytest.mark.parametrize("command", WRITTEN)
    def test_the_bytes_of_each(self, command: Command) -> None:
        state, written = WRITTEN[command]
        core = main_in(state)
        assert CALLS[command](core) == written
        assert core.unanswered == 1
        assert core.receive_data(OK) == [Answer(command=command, ok=True)]
        assert core.unanswered == 0

    def test_an_offer(self) -> None:
        assert SourceMain().start(b"\x01\x02\x03\x04").hex() == "0100000001020304" + "00" * 8

    @pytest.mark.parametrize("state", PATHS)
    @pytest.mark.parametrize("command", CALLS)
    def test_each_state_and_request(self, state: MainState, command: Command) -> None:
        core = main_in(state)
        due = core.unanswered
        following = SOURCE_MAIN.get((state, command))
        if following is None:
            error = misused(lambda: CALLS[command](core))
            assert (error.connection, error.state) == ("main", state.value)
            assert (core.state, core.unanswered) == (state, due)
        else:
            CALLS[command](core)
            assert (core.state, core.unanswered) == (following, due + 1)

    @pytest.mark.parametrize("length", [-1, 1 << 64])
    def test_a_length_that_is_none(self, length: int) -> None:
        core = main_in(MainState.STARTED)
        error = misused(lambda: core.config(length))
        assert (error.command, error.got) == ("Config", f"{length}")
        assert (core.state, core.unanswered) == (MainState.STARTED, 0)
        core = main_in(MainState.CONFIGURED)
        assert misused(lambda: core.memory(length)).command == "Memory"
        assert core.unanswered == 0
        assert core.memory((1 << 60) - 1)[8:] == ((1 << 64) - 16).to_bytes(8, "little")

    def test_a_slot_that_is_none_changes_nothing(self) -> None:
        core = main_in(MainState.STARTED)
        with pytest.raises(struct.error):
            core.memory_fd(1 << 32)
        assert (core.state, core.unanswered) == (MainState.STARTED, 0)

    def test_state_waits_for_every_memory(self) -> None:
        core = main_in(MainState.CONFIGURED)
        for count in range(1, 5):
            core.memory(1)
            assert core.unanswered == count
        error = misused(lambda: core.state_snapshot(1))
        assert (error.command, error.got) == ("State", "4 unanswered")
        assert core.state is MainState.CONFIGURED
        assert len(core.receive_data(OK * 3)) == 3
        misused(lambda: core.state_snapshot(1))
        core.receive_data(OK)
        core.state_snapshot(1)

    def test_abandon_waits_for_nothing_and_is_answered_last(self) -> None:
        core = main_in(MainState.CONFIGURED)
        core.memory(1)
        core.memory(1)
        core.abandon()
        answers = core.receive_data(OK * 3)
        assert [answer.command for answer in answers] == [
            Command.MEMORY,
            Command.MEMORY,
            Command.ABANDON,
        ]
        assert core.state is MainState.ABORTED

    def test_it_says_what_it_is(self) -> None:
        assert repr(SourceMain()) == "<SourceMain main Established>"
        assert repr(SourceMain("first")) == "<SourceMain first Established>"
        assert repr(lane_in(LaneState.READY)) == "<SourceLane lane 7 Ready>"
        answer = Answer(command=Command.START, ok=True)
        assert (answer.length, answer.padding) == (0, bytes(6))
        assert not hasattr(answer, "__dict__")


class TestAnswers:
    def test_however_they_are_cut(self) -> None:
        stream = OK + Response(Status.OK, 0, b"abcdef").encode() + ERROR
        expected = [
            Answer(command=Command.MEMORY, ok=True),
            Answer(command=Command.MEMORY, ok=True, padding=b"abcdef"),
            Answer(command=Command.MEMORY, ok=False),
        ]
        for cuts in every_way(stream):
            core = main_in(MainState.CONFIGURED)
            for _ in range(4):
                core.memory(1)
            answers = []
            for begin, end in zip((0, *cuts), (*cuts, len(stream)), strict=True):
                answers += core.receive_data(memoryview(stream)[begin:end])
            assert answers == expected
            assert (core.state, core.unanswered) == (MainState.FAILED, 1)

    @pytest.mark.parametrize("state", PATHS)
    @pytest.mark.parametrize("status", [Status.OK, Status.ERROR])
    def test_each_state_and_response(self, state: MainState, status: Status) -> None:
        core = main_in(state)
        due = core.unanswered
        following = SOURCE_MAIN.get((state, Signal.OK if status is Status.OK else Signal.ERROR))
        response = Response(status).encode()
        if state in {MainState.COMPLETED, MainState.ABORTED, MainState.FAILED, MainState.CLOSED}:
            assert core.receive_data(response) == []
            assert core.state is state
        elif due == 0:
            error = refused(lambda: core.receive_data(response))
            assert (error.state, error.command) == (state.value, None)
            assert (error.expected, error.got) == ("no response", f"one of status {status:d}")
            assert core.state is MainState.FAILED
        else:
            (answer,) = core.receive_data(response)
            assert answer.ok == (status is Status.OK)
            assert core.state is following

    @pytest.mark.parametrize("state", PATHS)
    def test_each_state_and_the_end(self, state: MainState) -> None:
        core = main_in(state)
        following = SOURCE_MAIN.get((state, Signal.END))
        if following is None:
            error = refused(core.receive_end)
            assert (error.state, error.got, error.reply) == (state.value, "end of stream", b"")
            assert core.state is MainState.FAILED
        else:
            core.receive_end()
            assert core.state is following

    @pytest.mark.parametrize("status", [0, 3, 0x0101, 0xFFFF])
    def test_a_status_that_is_none(self, status: int) -> None:
        core = main_in(MainState.COMPLETING)
        error = refused(lambda: core.receive_data(Response(status).encode()))
        assert (error.command, error.got) == ("Complete", f"status {status}")
        assert error.reply == b""
        assert core.state is MainState.FAILED

    @pytest.mark.parametrize("length", [1, 16, (1 << 64) - 1])
    @pytest.mark.parametrize("status", [Status.OK, Status.ERROR])
    def test_content_where_none_belongs(self, length: int, status: Status) -> None:
        core = main_in(MainState.CONFIGURED)
        core.memory(1)
        error = refused(lambda: core.receive_data(Response(status, length).encode()))
        assert (error.command, error.got) == ("Memory", f"{length} bytes of it")

    def test_a_cut_response(self) -> None:
        for end in range(16):
            core = main_in(MainState.RESTORING)
            core.receive_data(OK[:end])
            error = refused(core.receive_end)
            assert (error.command, error.expected) == ("State", "a response")

    def test_stray_bytes_before_the_end(self) -> None:
        core = main_in(MainState.STARTED)
        core.receive_data(b"\x01")
        error = refused(core.receive_end)
        assert (error.command, error.expected) == (None, "a response")

    @pytest.mark.parametrize("stray", [b"\x00", OK, ERROR, bytes(40)])
    @pytest.mark.parametrize("state", [MainState.COMPLETING, MainState.ABANDONING])
    def test_nothing_hides_the_decisive_ok(self, state: MainState, stray: bytes) -> None:
        core = main_in(state)
        (answer,) = core.receive_data(OK + stray)
        assert answer.ok
        assert core.receive_data(stray) == []
        core.receive_end()
        assert core.state is MainState.CLOSED

    @pytest.mark.parametrize("stray", [b"\x00", OK * 2, ERROR * 3, bytes(40)])
    def test_nothing_hides_an_error(self, stray: bytes) -> None:
        core = main_in(MainState.CONFIGURED)
        for _ in range(3):
            core.memory(1)
        assert [answer.ok for answer in core.receive_data(OK + ERROR + stray)] == [True, False]
        assert core.receive_data(stray) == []
        assert core.unanswered == 1
        misused(core.abandon)
        core.receive_end()
        assert core.state is MainState.CLOSED

    def test_an_error_while_abandoning(self) -> None:
        core = main_in(MainState.CONFIGURED)
        core.memory(1)
        core.abandon()
        assert core.receive_data(ERROR) == [Answer(command=Command.MEMORY, ok=False)]
        assert core.state is MainState.FAILED


class TestLane:
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

    @pytest.mark.parametrize("state", [s for s in LaneState if s is not LaneState.APPLYING])
    def test_each_state_and_request(self, state: LaneState) -> None:
        core = lane_in(state, Dialect.V52)
        following = SOURCE_LANE.get((state, Command.MEMORY))
        if following is None:
            misused(lambda: core.memory(1))
            assert (core.state, core.unanswered) == (state, 0)
        else:
            core.memory(1)
            assert (core.state, core.unanswered) == (following, 1)

    @pytest.mark.parametrize("state", [s for s in LaneState if s is not LaneState.APPLYING])
    @pytest.mark.parametrize("status", [Status.OK, Status.ERROR])
    def test_a_response_to_nothing(self, state: LaneState, status: Status) -> None:
        core = lane_in(state)
        if state in {LaneState.FAILED, LaneState.CLOSED}:
            assert core.receive_data(Response(status).encode()) == []
            assert core.state is state
        else:
            refused(lambda: core.receive_data(Response(status).encode()))
            assert core.state is LaneState.FAILED

    @pytest.mark.parametrize("state", [s for s in LaneState if s is not LaneState.APPLYING])
    def test_each_state_and_the_end(self, state: LaneState) -> None:
        core = lane_in(state)
        if state is LaneState.FAILED:
            core.receive_end()
            assert core.state is LaneState.CLOSED
        else:
            assert refused(core.receive_end).connection == "lane 7"
            assert core.state is LaneState.FAILED

    @pytest.mark.parametrize("state", [s for s in LaneState if s is not LaneState.APPLYING])
    def test_each_state_and_closing(self, state: LaneState) -> None:
        core = lane_in(state)
        if state in {LaneState.CONNECTED, LaneState.READY}:
            core.close()
            assert core.state is LaneState.CLOSED
        else:
            assert misused(core.close).got == "close"
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


@given(st.sampled_from(list(PATHS)), st.integers(0, 4), st.lists(st.binary(max_size=40)))
def test_any_bytes_end_in_a_refusal_at_most(
    state: MainState, memories: int, pieces: list[bytes]
) -> None:
    core = main_in(state)
    if state is MainState.CONFIGURED:
        for _ in range(memories):
            core.memory(1)
    _survives(core, pieces, MainState.FAILED)


_LIKE_RESPONSES = st.builds(
    lambda status, length: Response(status, length).encode(),
    st.integers(0, 4),
    st.sampled_from([0, 0, 0, 1, 4096, (1 << 64) - 1]),
)


@given(st.integers(0, 6), st.lists(_LIKE_RESPONSES | st.binary(max_size=17), max_size=8))
def test_any_responses_on_a_lane(memories: int, pieces: list[bytes]) -> None:
    core = lane_in(LaneState.READY)
    for _ in range(memories):
        core.memory(1)
    _survives(core, pieces, LaneState.FAILED)
    assert core.unanswered <= memories


def _survives(
    core: SourceMain | SourceLane, pieces: list[bytes], failed: MainState | LaneState
) -> None:
    try:
        for piece in pieces:
            core.receive_data(piece)
            assert len(core._partial) < 16
        core.receive_end()
    except RemoteProtocolError:
        assert core.state is failed
