"""Each state of a destination's connections, with each command, each answer and the end."""

import pytest

from aiomigrate.protocol import Command, Dialect, Extension, LaneState, MainState, Response, Status
from aiomigrate.protocol.extensions import EXTENSION_OF
from aiomigrate.protocol.tables import DESTINATION_LANE, DESTINATION_MAIN, Signal
from tests.protocol.protocol_destination import (
    EACH_LANE_STATE,
    FIRST,
    SAMPLES,
    each_main_state,
    lane_in,
    main_in,
)
from tests.protocol.protocol_sides import ERROR, misused, refused
from tests.support.feeding import feed, header


class TestEveryPair:
    @pytest.mark.parametrize(("state", "accepted"), each_main_state())
    @pytest.mark.parametrize("command", Command)
    def test_main_and_command(
        self, state: MainState, accepted: Extension, command: Command
    ) -> None:
        core = main_in(state, accepted=accepted)
        data, expected = SAMPLES.get(command, (header(command), None))
        asked = DESTINATION_MAIN.get((state, command))
        if EXTENSION_OF.get(command, accepted) not in accepted:
            asked = None
        if core.wanted == 0:  # unanswered, failed or closed: nothing may be fed
            assert asked is None
            misused(lambda: core.receive_data(data[:16]))
            assert core.state is state
        elif asked is None:
            error = refused(lambda: core.receive_data(data[:16]))
            assert core.state is MainState.FAILED
            assert (error.connection, error.state, error.command) == ("main", state.value, None)
            assert error.got == "".join(word.capitalize() for word in command.name.split("_"))
            assert error.got not in error.expected.split(" or ")
            assert error.reply == ERROR
            assert core.wanted == 0
        else:
            assert feed(core, data) == [expected]
            assert core.state is asked

    @pytest.mark.parametrize(("state", "accepted"), each_main_state())
    @pytest.mark.parametrize("ok", [True, False])
    def test_main_and_answer(self, state: MainState, accepted: Extension, ok: bool) -> None:
        core = main_in(state, accepted=accepted)
        following = DESTINATION_MAIN.get((state, Signal.OK if ok else Signal.ERROR))
        if following is None:
            misused(lambda: core.answer(ok=ok))
            assert core.state is state
        else:
            answer = Response.decode(core.answer(ok=ok))
            said = accepted if ok and state is MainState.STARTING else 0
            padding = said.to_bytes(6, "little")
            assert answer == Response(Status.OK if ok else Status.ERROR, padding=padding)
            assert core.state is following
            assert core.wanted == (16 if ok else 0)

    @pytest.mark.parametrize(("state", "accepted"), each_main_state())
    def test_main_and_end(self, state: MainState, accepted: Extension) -> None:
        core = main_in(state, accepted=accepted)
        following = DESTINATION_MAIN.get((state, Signal.END))
        if following is None:
            error = refused(core.receive_end)
            assert (error.state, error.got) == (state.value, "end of stream")
            assert error.reply == b""
            assert core.state is MainState.FAILED
        else:
            core.receive_end()
            assert core.state is following

    @pytest.mark.parametrize(("state", "extensions"), EACH_LANE_STATE)
    @pytest.mark.parametrize("command", [c for c in Command if c not in (1, 2)])
    def test_lane_and_command(
        self, state: LaneState, extensions: Extension, command: Command
    ) -> None:
        core = lane_in(state, extensions=extensions)
        data = FIRST[command][0] if command in FIRST else header(command, 16)
        asked = DESTINATION_LANE.get((state, command))
        if EXTENSION_OF.get(command, extensions) not in extensions:
            asked = None
        if (state, command) == (LaneState.CONNECTED, Command.MEMORY) and extensions:
            asked = None  # where SESSION was accepted a lane joins
        if core.wanted == 0:
            misused(lambda: core.receive_data(data))
            assert core.state is state
        elif asked is None:
            error = refused(lambda: feed(core, data))
            assert error.connection == "lane 7"
            assert error.reply == (b"" if state is LaneState.CONNECTED else ERROR)
            assert core.state is LaneState.FAILED
        else:
            feed(core, data)
            assert core.state is asked

    @pytest.mark.parametrize(("state", "extensions"), EACH_LANE_STATE)
    @pytest.mark.parametrize("ok", [True, False])
    def test_lane_and_answer(self, state: LaneState, extensions: Extension, ok: bool) -> None:
        core = lane_in(state, extensions=extensions)
        following = DESTINATION_LANE.get((state, Signal.OK if ok else Signal.ERROR))
        if following is None:
            misused(lambda: core.answer(ok=ok))
            assert core.state is state
        else:
            core.answer(ok=ok)
            assert core.state is following

    @pytest.mark.parametrize(("state", "extensions"), EACH_LANE_STATE)
    @pytest.mark.parametrize("dialect", Dialect)
    def test_lane_and_end(self, state: LaneState, extensions: Extension, dialect: Dialect) -> None:
        core = lane_in(state, dialect, extensions)
        following = DESTINATION_LANE.get((state, Signal.END))
        if following is None:
            error = refused(core.receive_end)
            asked = {"Applying": "Memory", "Joining": "Join", "Asked": "Owner"}
            command = asked.get(state.value)
            assert (error.state, error.command) == (state.value, command)
            assert core.state is LaneState.FAILED
        else:
            core.receive_end()
            assert core.state is following
