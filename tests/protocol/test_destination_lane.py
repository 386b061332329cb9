"""A destination's lane: how each dialect begins one, and what is no lane."""

import struct

import pytest

from aiomigrate.protocol import (
    ALL_EXTENSIONS,
    Command,
    DestinationLane,
    Dialect,
    Extension,
    FaultOpened,
    LaneOpened,
    LaneState,
    MemoryReceived,
)
from tests.protocol.protocol_destination import lane_in
from tests.protocol.protocol_sides import ERROR, OK, misused, refused
from tests.support.feeding import every_way, feed, header


class TestLane:
    def test_the_dialects_are_told_apart(self) -> None:
        memory = header(Command.MEMORY, 32)
        opened = {b"\x01\x00": Dialect.V53, b"": Dialect.V52}
        for role, dialect in opened.items():
            for cuts in every_way(role + memory):
                core = DestinationLane("lane 1")
                assert core.between_requests
                assert feed(core, role + memory, cuts) == [
                    LaneOpened(dialect=dialect),
                    MemoryReceived(table_bytes=32),
                ]
                assert core.answer(ok=True) == OK
                assert core.state is LaneState.READY
                assert feed(core, memory, cuts) == [MemoryReceived(table_bytes=32)]

    def test_an_opened_v52_lane_is_inside_its_first_request(self) -> None:
        core = DestinationLane("lane 1")
        assert core.wanted == 2
        feed(core, b"\x04")
        assert (core.wanted, core.between_requests) == (1, False)
        feed(core, b"\x00")
        assert (core.wanted, core.between_requests) == (14, False)
        assert refused(core.receive_end).expected == "14 more bytes"

    def test_a_role_cut_in_two(self) -> None:
        core = DestinationLane("lane 1")
        feed(core, b"\x01")
        assert refused(core.receive_end).expected == "1 more bytes"
        assert core.wanted == 0

    def test_a_fault_connection_is_no_lane(self) -> None:
        for cuts in every_way(b"\x02\x00"):
            core = DestinationLane("lane 1")
            assert feed(core, b"\x02\x00", cuts) == [FaultOpened()]
            assert core.wanted == 0
            misused(lambda core=core: core.receive_data(header(Command.MEMORY, 16)))  # type: ignore[misc]
            core.receive_end()
            assert core.state is LaneState.CLOSED

    @pytest.mark.parametrize(
        ("extensions", "expected"),
        [
            (Extension.NONE, "role 1 or Memory or role 2"),
            (Extension.ZERO_RUNS, "role 1 or Memory or role 2"),
            (Extension.SESSION, "Join or role 2"),
            (ALL_EXTENSIONS, "Join or Owner or role 2"),
        ],
    )
    def test_a_stranger_gets_no_reply(self, extensions: Extension, expected: str) -> None:
        strangers = [0, 3, 5, 8, 0x0104, 0x0201, 0x4547, 0x8000, 0x8002, 0x8004, 0xFFFF]
        if Extension.SESSION in extensions:
            strangers += [1, 4]
        if Extension.OWNERSHIP not in extensions:
            strangers += [0x8003]
        for number in strangers:
            self._is_refused(DestinationLane("lane 1", extensions), number, expected)

    def _is_refused(self, core: DestinationLane, number: int, expected: str) -> None:
        error = refused(lambda: core.receive_data(struct.pack("<H", number)))
        assert (error.reply, error.got) == (b"", f"{number}")
        assert error.expected == expected
        assert core.state is LaneState.FAILED
        assert core.wanted == 0

    @pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 0x7FFF, 0xFFFF])
    @pytest.mark.parametrize("dialect", Dialect)
    def test_only_memory_is_taken(self, number: int, dialect: Dialect) -> None:
        core = lane_in(LaneState.READY, dialect)
        error = refused(lambda: core.receive_data(header(number, 16)))
        assert (error.state, error.expected, error.reply) == (
            "Ready",
            "Memory or end of stream",
            ERROR,
        )

    @pytest.mark.parametrize("size", [0, 3])
    def test_no_more_and_no_less_than_a_role(self, size: int) -> None:
        core = DestinationLane("lane 1")
        assert misused(lambda: core.receive_data(bytes(size))).expected == "1 to 2 bytes"
        assert core.wanted == 2
