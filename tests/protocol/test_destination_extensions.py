"""Extensions at a destination: of Start and its answer, and of lengths.

What is in order is in test_destination_states.py.
"""

import pytest

from aiomigrate.protocol import (
    ALL_EXTENSIONS,
    Command,
    ConfigReceived,
    DestinationLane,
    DestinationMain,
    Extension,
    LaneState,
    MainState,
    Request,
    Response,
    StartReceived,
    Status,
    Verdict,
)
from tests.protocol.protocol_destination import BEFORE, DRAINED, HUGE, LIMITS, lane_in, main_in
from tests.protocol.protocol_sides import ERROR, misused, refused
from tests.support.feeding import feed, header


class TestExtensions:
    @pytest.mark.parametrize(
        ("offer", "willing", "accepted"),
        [
            (0, 0x1F, 0),  # a plain peer
            (0x1F, 0, 0),
            (0x1F, 0x1F, 0x1F),
            (0xFFFFFFFF, 0x1F, 0x1F),
            (0xFFFFFFE0, 0x1F, 0),
            (0x18, 0x1F, 0x18),
            (0x06, 0x1F, 0),  # both need SESSION ...
            (0x16, 0x1F, 0x10),
            (0x1F, 0x06, 0),  # ... which this side does not want
            (0x1F, 0x03, 0x03),
            (0x05, 0x1F, 0x05),
        ],
    )
    def test_what_is_accepted(self, offer: int, willing: int, accepted: int) -> None:
        core = DestinationMain(LIMITS, willing=Extension(willing))
        data = Request.start(0, offer.to_bytes(4, "little")).encode()
        assert feed(core, data) == [StartReceived(version=0, offer=Extension(offer))]
        assert core.extensions == accepted
        padding = accepted.to_bytes(6, "little")
        assert core.answer(ok=True) == Response(Status.OK, padding=padding).encode()
        assert core.extensions == accepted

    @pytest.mark.parametrize(
        ("headers", "data_bytes"),
        [
            ("000000000000", None),
            ("010000000000", 4096),
            ("010203040506", 0x60504030201 * 4096),
            ("ffffffffffff", (2**48 - 1) * 4096),
        ],
    )
    def test_config_says_how_much_is_data_if_that_was_agreed(
        self, headers: str, data_bytes: int | None
    ) -> None:
        for extensions, expected in ((Extension.GUEST_DATA, data_bytes), (Extension.NONE, None)):
            core = main_in(MainState.STARTED, accepted=extensions)
            data = header(Command.CONFIG, 2, headers=bytes.fromhex(headers)) + b"{}"
            assert feed(core, data) == [ConfigReceived(payload=b"{}", data_bytes=expected)]

    def test_a_refused_start_accepts_nothing(self) -> None:
        core = main_in(MainState.STARTING)
        assert core.answer(ok=False) == ERROR

    @pytest.mark.parametrize(
        ("command", "right"), [(Command.SESSION, 16), (Command.RETIRE_LANE, 4)]
    )
    def test_lengths_on_the_main_connection(self, command: Command, right: int) -> None:
        for length in (0, right - 1, right + 1, DRAINED, DRAINED + 1, HUGE):
            core = main_in(BEFORE[command])
            body = bytes(length if 0 < length <= DRAINED else 0)
            error = refused(lambda c=core, n=length, b=body: feed(c, header(command, n) + b))  # type: ignore[misc]
            assert (error.expected, error.got) == (f"{right} bytes", f"{length} bytes")
            assert error.reply == ERROR

    @pytest.mark.parametrize(("command", "right"), [(Command.JOIN, 20), (Command.OWNER, 16)])
    def test_lengths_of_what_comes_first(self, command: Command, right: int) -> None:
        for length in (0, right - 1, right + 1, DRAINED, HUGE):
            core = DestinationLane("lane 1", ALL_EXTENSIONS)
            error = refused(lambda c=core, n=length: feed(c, header(command, n)))  # type: ignore[misc]
            assert (error.expected, error.got) == (f"{right} bytes", f"{length} bytes")
            assert error.reply == ERROR

    @pytest.mark.parametrize("length", [1, 15, 17, DRAINED - 1])
    def test_a_broken_table_of_zeros_is_drained_where_there_is_room(self, length: int) -> None:
        core = main_in(MainState.CONFIGURED)
        error = refused(lambda: feed(core, header(Command.ZEROS, length) + bytes(length)))
        assert (error.command, error.expected) == ("Zeros", "a multiple of 16 bytes")
        lane = lane_in(LaneState.READY, extensions=ALL_EXTENSIONS)
        assert refused(lambda: feed(lane, header(Command.ZEROS, length))).command == "Zeros"

    @pytest.mark.parametrize("verdict", Verdict)
    def test_a_verdict(self, verdict: Verdict) -> None:
        core = lane_in(LaneState.ASKED, extensions=ALL_EXTENSIONS)
        padding = bytes([verdict]) + bytes(5)
        assert core.answer_owner(verdict) == Response(Status.OK, padding=padding).encode()
        assert (core.state, core.wanted) == (LaneState.TOLD, 16)
        core.receive_end()
        assert core.state is LaneState.CLOSED

    def test_no_verdict_unless_it_is_asked_for(self) -> None:
        core = lane_in(LaneState.JOINING, extensions=ALL_EXTENSIONS)
        error = misused(lambda: core.answer_owner(Verdict.ABORTED))
        assert (error.command, error.expected, error.got) == ("Owner", "Asked", "Joining")
        assert core.state is LaneState.JOINING
        asked = DestinationLane("lane 1", ALL_EXTENSIONS)
        feed(asked, header(Command.OWNER, 16) + bytes(15))
        misused(lambda: asked.answer_owner(Verdict.ABORTED))
        assert asked.wanted == 1

    def test_a_refused_owner_or_join_ends_the_connection(self) -> None:
        for state in (LaneState.ASKED, LaneState.JOINING):
            core = lane_in(state, extensions=ALL_EXTENSIONS)
            assert core.answer(ok=False) == ERROR
            assert (core.state, core.wanted) == (LaneState.FAILED, 0)
