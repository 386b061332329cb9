"""Extensions at a source: what it offers, what may be accepted, and what they add."""

import struct

import pytest

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
    SourceQuery,
    Status,
)
from tests.protocol.protocol_sides import OK, TOKEN, misused, refused
from tests.protocol.protocol_source import main_in, ok_to_start


class TestExtensions:
    @pytest.mark.parametrize("offer", [0, 0x01, 0x1F, 0xFFFFFFFF])
    def test_an_offer(self, offer: int) -> None:
        written = SourceMain().start(Extension(offer))
        assert written.hex() == "01000000" + offer.to_bytes(4, "little").hex() + "00" * 8

    @pytest.mark.parametrize(
        ("data_bytes", "headers"),
        [
            (None, "000000000000"),
            (0, "000000000000"),
            (1, "010000000000"),
            (4097, "020000000000"),
            (0x60504030201 * 4096, "010203040506"),
            (2**62, "ffffffffffff"),
        ],
    )
    def test_config_says_how_much_is_data_if_that_was_agreed(
        self, data_bytes: int | None, headers: str
    ) -> None:
        for extensions, expected in ((Extension.GUEST_DATA, headers), (Extension.NONE, "00" * 6)):
            core = main_in(MainState.STARTED, extensions)
            assert core.config(5, data_bytes).hex() == f"0200{expected}0500000000000000"

    def test_an_offer_that_does_not_fit_changes_nothing(self) -> None:
        core = SourceMain()
        with pytest.raises(OverflowError):
            core.start(Extension(1 << 32))
        assert (core.state, core.unanswered) == (MainState.ESTABLISHED, 0)

    @pytest.mark.parametrize(
        ("offer", "accepted"), [(0, 0), (0x1F, 0), (0x1F, 0x1F), (0x1F, 0x18), (0x1B, 0x03)]
    )
    def test_what_is_accepted(self, offer: int, accepted: int) -> None:
        core = SourceMain()
        core.start(Extension(offer))
        assert core.extensions == 0
        assert [answer.ok for answer in core.receive_data(ok_to_start(accepted))] == [True]
        assert core.extensions == accepted

    @pytest.mark.parametrize(
        ("offer", "accepted"),
        [
            (0, 0x01),
            (0x01, 0x03),
            (0x01, 0x80000001),  # a bit that has no meaning yet
            (0x1F, 0x8000001F),
            (0xFFFFFFFF, 0x8000007F),
            (0x1F, 0x02),  # without the SESSION that it needs
            (0x1F, 0x1C),
            (0x06, 0x06),
        ],
    )
    def test_more_than_was_offered_is_refused(self, offer: int, accepted: int) -> None:
        core = SourceMain()
        core.start(Extension(offer))
        error = refused(lambda: core.receive_data(ok_to_start(accepted)))
        assert (error.command, error.got, error.reply) == ("Start", f"{accepted:#x}", b"")
        assert f"{offer:#x}" in error.expected
        assert (core.state, core.extensions) == (MainState.FAILED, 0)

    def test_an_error_accepts_nothing_whatever_it_carries(self) -> None:
        core = SourceMain()
        core.start(ALL_EXTENSIONS)
        core.receive_data(Response(Status.ERROR, padding=b"\xff" * 6).encode())
        assert (core.state, core.extensions) == (MainState.FAILED, 0)

    @pytest.mark.parametrize("size", [0, 15, 17])
    def test_a_token_that_is_none_changes_nothing(self, size: int) -> None:
        main = main_in(MainState.STARTED)
        lane = SourceLane("lane 7", Dialect.V53, ALL_EXTENSIONS)
        query = SourceQuery("query")
        token = bytes(size)
        assert misused(lambda: main.session(token)).got == f"{size}"
        assert misused(lambda: lane.join(token, 1)).got == f"{size + 4}"
        assert misused(lambda: query.ask(token)).got == f"{size}"
        assert (main.state, main.unanswered) == (MainState.STARTED, 0)
        assert (lane.state, lane.unanswered) == (LaneState.CONNECTED, 0)
        assert (query.state, query.unanswered) == (LaneState.CONNECTED, 0)

    @pytest.mark.parametrize("number", [-1, 1 << 32])
    def test_a_lane_number_that_is_none_changes_nothing(self, number: int) -> None:
        main = main_in(MainState.CONFIGURED)
        lane = SourceLane("lane 7", Dialect.V53, ALL_EXTENSIONS)
        with pytest.raises(struct.error):
            main.retire_lane(number)
        with pytest.raises(struct.error):
            lane.join(TOKEN, number)
        assert (main.unanswered, lane.unanswered) == (0, 0)
        assert lane.state is LaneState.CONNECTED

    def test_many_of_them_may_be_unanswered(self) -> None:
        core = main_in(MainState.CONFIGURED)
        core.memory(1)
        core.retire_lane(1)
        core.zeros(1)
        misused(lambda: core.state_snapshot(1))
        commands = [answer.command for answer in core.receive_data(OK * 3)]
        assert commands == [Command.MEMORY, Command.RETIRE_LANE, Command.ZEROS]
        assert core.state is MainState.CONFIGURED
