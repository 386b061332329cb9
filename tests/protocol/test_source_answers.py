"""Answers to a source: however they are cut, in each state, out of place, and any bytes at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.protocol import (
    Answer,
    Command,
    Extension,
    LaneState,
    MainState,
    RemoteProtocolError,
    Response,
    SourceLane,
    SourceMain,
    Status,
)
from aiomigrate.protocol.tables import SOURCE_MAIN, Signal
from tests.protocol.protocol_sides import ERROR, OK, misused, refused
from tests.protocol.protocol_source import EACH_MAIN_STATE, lane_in, main_in
from tests.support.feeding import every_way

# Where no answer counts any more.
OVER = {
    MainState.COMPLETED,
    MainState.CONFIRMED,
    MainState.ABORTED,
    MainState.FAILED,
    MainState.CLOSED,
}


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

    @pytest.mark.parametrize(("state", "accepted"), EACH_MAIN_STATE)
    @pytest.mark.parametrize("status", [Status.OK, Status.ERROR])
    def test_each_state_and_response(
        self, state: MainState, accepted: Extension, status: Status
    ) -> None:
        core = main_in(state, accepted)
        due = core.unanswered
        following = SOURCE_MAIN.get((state, Signal.OK if status is Status.OK else Signal.ERROR))
        response = Response(status).encode()
        if state in OVER:
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

    @pytest.mark.parametrize(("state", "accepted"), EACH_MAIN_STATE)
    def test_each_state_and_the_end(self, state: MainState, accepted: Extension) -> None:
        core = main_in(state, accepted)
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


@given(st.sampled_from(EACH_MAIN_STATE), st.integers(0, 4), st.lists(st.binary(max_size=40)))
def test_any_bytes_end_in_a_refusal_at_most(
    which: tuple[MainState, Extension], memories: int, pieces: list[bytes]
) -> None:
    state, accepted = which
    core = main_in(state, accepted)
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
