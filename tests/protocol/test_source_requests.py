"""Requests of a source on its main connection: their bytes, and where each may be written."""

import struct

import pytest

from aiomigrate.protocol import Answer, Command, Extension, LaneState, MainState, SourceMain
from aiomigrate.protocol.extensions import EXTENSION_OF
from aiomigrate.protocol.tables import SOURCE_MAIN
from tests.protocol.protocol_sides import ERROR, OK, TOKEN, misused
from tests.protocol.protocol_source import CALLS, EACH_MAIN_STATE, lane_in, main_in

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
    Command.SESSION: (
        MainState.STARTED,
        bytes.fromhex("0080" + "00" * 6 + "10" + "00" * 7) + TOKEN,
    ),
    Command.RETIRE_LANE: (
        MainState.CONFIGURED,
        bytes.fromhex("0280" + "00" * 6 + "04" + "00" * 7 + "07000001"),
    ),
    Command.ZEROS: (MainState.CONFIGURED, bytes.fromhex("0480" + "00" * 6 + "30" + "00" * 7)),
    Command.CONFIRM: (MainState.COMPLETED, bytes.fromhex("0580" + "00" * 14)),
}


class TestRequests:
    @pytest.mark.parametrize("command", WRITTEN)
    def test_the_bytes_of_each(self, command: Command) -> None:
        state, written = WRITTEN[command]
        core = main_in(state)
        assert CALLS[command](core) == written
        assert core.unanswered == 1
        assert core.receive_data(OK) == [Answer(command=command, ok=True)]
        assert core.unanswered == 0

    @pytest.mark.parametrize(("state", "accepted"), EACH_MAIN_STATE)
    @pytest.mark.parametrize("command", CALLS)
    def test_each_state_and_request(
        self, state: MainState, accepted: Extension, command: Command
    ) -> None:
        core = main_in(state, accepted)
        due = core.unanswered
        following = SOURCE_MAIN.get((state, command))
        if following is None or EXTENSION_OF.get(command, accepted) not in accepted:
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

    def test_complete_does_not_wait_for_the_answer_to_state(self) -> None:
        core = main_in(MainState.RESTORING)
        core.complete(paused=False)
        assert (core.state, core.unanswered) == (MainState.IN_FLIGHT, 2)
        answers = core.receive_data(OK * 2)
        assert [answer.command for answer in answers] == [Command.STATE, Command.COMPLETE]
        assert core.state is MainState.COMPLETED

    def test_an_error_to_state_is_the_last_word_though_complete_was_sent(self) -> None:
        core = main_in(MainState.IN_FLIGHT)
        assert core.receive_data(ERROR + OK) == [Answer(command=Command.STATE, ok=False)]
        assert (core.state, core.unanswered) == (MainState.FAILED, 1)
        core.receive_end()
        assert core.state is MainState.CLOSED

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
