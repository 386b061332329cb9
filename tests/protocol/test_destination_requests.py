"""Requests to a destination: what each says, however it is cut, and an end inside of one."""

import pytest

from aiomigrate.protocol import (
    ALL_EXTENSIONS,
    Command,
    ConfigReceived,
    DestinationMain,
    Dialect,
    Extension,
    FaultOpened,
    LaneOpened,
    LaneState,
    Limits,
    MainState,
    Response,
    StateReceived,
    Status,
)
from tests.protocol.protocol_destination import BEFORE, FIRST, LIMITS, SAMPLES, lane_in, main_in
from tests.protocol.protocol_sides import ERROR, OK, misused, refused
from tests.support.feeding import every_way, feed, header


class TestSamples:
    @pytest.mark.parametrize("command", SAMPLES)
    def test_each_request_however_it_is_cut(self, command: Command) -> None:
        data, expected = SAMPLES[command]
        for cuts in every_way(data):
            core = main_in(BEFORE[command])
            assert (core.wanted, core.between_requests) == (16, True)
            assert feed(core, data, cuts) == [expected]
            assert (core.wanted, core.between_requests) == (0, False)
            answer = Response.decode(core.answer(ok=True))
            padding = bytes.fromhex("7f0000000000") if command is Command.START else bytes(6)
            assert answer == Response(Status.OK, padding=padding)
            assert (core.wanted, core.between_requests) == (16, True)

    @pytest.mark.parametrize("command", FIRST)
    def test_each_request_that_comes_first_however_it_is_cut(self, command: Command) -> None:
        data, expected = FIRST[command]
        for cuts in every_way(data):
            core = lane_in(LaneState.CONNECTED, extensions=ALL_EXTENSIONS)
            assert (core.wanted, core.between_requests) == (2, True)
            assert feed(core, data, cuts) == [expected]
            assert (core.wanted, core.between_requests) == (0, False)
            assert core.answer(ok=True) == OK
            assert (core.wanted, core.between_requests) == (16, True)

    @pytest.mark.parametrize("extensions", [Extension.ZERO_RUNS, ALL_EXTENSIONS])
    def test_zeros_on_a_lane_however_they_are_cut(self, extensions: Extension) -> None:
        data, expected = SAMPLES[Command.ZEROS]
        for cuts in every_way(data):
            core = lane_in(LaneState.READY, extensions=extensions)
            assert feed(core, data, cuts) == [expected]
            assert core.state.value == "Applying"
            assert core.answer(ok=True) == OK
            assert core.state.value == "Ready"

    @pytest.mark.parametrize("command", SAMPLES)
    def test_each_request_as_a_view(self, command: Command) -> None:
        data, expected = SAMPLES[command]
        core = main_in(BEFORE[command])
        assert core.receive_data(bytearray(data[:16])) == (None if data[16:] else expected)
        if data[16:]:
            assert core.receive_data(memoryview(data)[16:]) == expected

    def test_an_event_keeps_its_own_bytes(self) -> None:
        core = main_in(MainState.STARTED)
        feed(core, header(Command.CONFIG, 3))
        buffer = bytearray(b"abc")
        event = core.receive_data(buffer)
        buffer[:] = b"xyz"
        assert event == ConfigReceived(payload=b"abc")

    def test_every_event_is_frozen_and_small(self) -> None:
        events = [event for _, event in [*SAMPLES.values(), *FIRST.values()]]
        for event in [*events, LaneOpened(dialect=Dialect.V52), FaultOpened()]:
            assert not hasattr(event, "__dict__")
            assert hash(event) == hash(event)

    def test_it_says_what_it_is(self) -> None:
        assert repr(main_in(MainState.CONFIGURED)) == "<DestinationMain main Configured>"
        assert repr(DestinationMain(LIMITS, "first")) == "<DestinationMain first Established>"
        assert repr(lane_in(LaneState.READY)) == "<DestinationLane lane 7 Ready>"

    def test_a_payload_is_wanted_in_pieces_and_no_further(self) -> None:
        core = main_in(MainState.CONFIGURED, Limits())
        size = (1 << 20) + 3
        feed(core, header(Command.STATE, size))
        assert core.wanted == 1 << 20
        assert core.receive_data(bytes(1 << 20)) is None
        assert core.wanted == 3
        assert core.receive_data(b"end") == StateReceived(payload=bytes(1 << 20) + b"end")


class TestEndings:
    @pytest.mark.parametrize("command", SAMPLES)
    def test_an_end_inside_a_request(self, command: Command) -> None:
        data, _ = SAMPLES[command]
        for end in range(1, len(data)):
            core = main_in(BEFORE[command])
            feed(core, data[:end])
            assert not core.between_requests
            error = refused(core.receive_end)
            assert (error.got, error.reply) == ("end of stream", b"")
            if end < 16:
                assert (error.command, error.expected) == (None, f"{16 - end} more bytes")
            else:
                assert error.expected == "all of it"
            assert core.state.value == "Failed"
            assert not core.between_requests
            core.receive_end()
            assert core.state.value == "Closed"

    def test_an_end_inside_what_is_drained(self) -> None:
        core = main_in(MainState.ESTABLISHED)
        feed(core, header(Command.START, 9) + bytes(8))
        assert refused(core.receive_end).command == "Start"

    def test_an_early_error_forgets_the_payload(self) -> None:
        core = main_in(MainState.STARTED)
        feed(core, header(Command.CONFIG, 9) + bytes(8))
        misused(lambda: core.answer(ok=True))
        assert core.wanted == 1
        assert core.answer(ok=False) == ERROR
        assert core.wanted == 0
        core.receive_end()
        assert core.state is MainState.CLOSED

    @pytest.mark.parametrize("size", [0, 17])
    def test_no_more_and_no_less_than_wanted(self, size: int) -> None:
        core = main_in(MainState.ESTABLISHED)
        error = misused(lambda: core.receive_data(bytes(size)))
        assert (error.expected, error.got) == ("1 to 16 bytes", f"{size}")
        assert core.wanted == 16
        core = main_in(MainState.STARTING)
        assert misused(lambda: core.receive_data(b"\x00")).expected == "no bytes"
