"""Hostile requests: unknown commands, lengths that are none, and any bytes at all."""

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.protocol import (
    Command,
    ConfigReceived,
    DestinationLane,
    DestinationMain,
    Dialect,
    Extension,
    FaultOpened,
    LaneOpened,
    LaneState,
    Limits,
    MainState,
    MemoryReceived,
    RemoteProtocolError,
    Request,
    StartReceived,
    StateReceived,
)
from aiomigrate.protocol.tables import DESTINATION_MAIN, Signal
from tests.protocol.protocol_destination import (
    BEFORE,
    DRAINED,
    EACH_LANE_STATE,
    HUGE,
    LIMITS,
    each_main_state,
    lane_in,
    main_in,
)
from tests.protocol.protocol_sides import ERROR, refused
from tests.support.feeding import every_way, feed, header


class TestHostile:
    @pytest.mark.parametrize("number", [0, 9, 10, 0x7FFF, 0xFFFF])
    @pytest.mark.parametrize("length", [0, 16, HUGE])
    def test_an_unknown_command_is_refused_by_its_header(self, number: int, length: int) -> None:
        data = header(number, length)
        for cuts in every_way(data):
            core = main_in(MainState.CONFIGURED)
            error = refused(lambda core=core, cuts=cuts: feed(core, data, cuts))  # type: ignore[misc]
            assert error.reply == ERROR
            assert error.expected == "State or Abandon or Memory or Zeros or RetireLane"
            names = {0: "Invalid", 9: "PageFault"}
            assert error.got == names.get(number, f"unknown command {number}")

    @pytest.mark.parametrize("command", [Command.START, Command.COMPLETE, Command.ABANDON])
    @pytest.mark.parametrize("length", [1, 15, 4096, DRAINED])
    def test_a_small_payload_where_none_belongs_is_drained_first(
        self, command: Command, length: int
    ) -> None:
        core = main_in(BEFORE[command])
        assert core.receive_data(header(command, length)) is None
        assert core.wanted == length
        assert not core.between_requests
        if length > 1:
            assert core.receive_data(bytes(length - 1)) is None
        assert core.wanted == 1
        error = refused(lambda: core.receive_data(b"\x00"))
        assert (error.expected, error.got) == ("no payload", f"{length} bytes")
        assert (error.command, error.reply) == (command.name.capitalize(), ERROR)
        assert core.state is MainState.FAILED
        assert core.wanted == 0

    @pytest.mark.parametrize("command", [Command.START, Command.COMPLETE, Command.ABANDON])
    @pytest.mark.parametrize("length", [DRAINED + 1, 1 << 32, HUGE])
    def test_a_long_payload_where_none_belongs_is_refused_at_once(
        self, command: Command, length: int
    ) -> None:
        core = main_in(BEFORE[command])
        error = refused(lambda: core.receive_data(header(command, length)))
        assert (error.got, error.reply) == (f"{length} bytes", ERROR)

    @pytest.mark.parametrize(
        ("command", "most"),
        [
            (Command.CONFIG, LIMITS.max_config_bytes),
            (Command.STATE, LIMITS.max_state_bytes),
        ],
    )
    def test_lengths_of_config_and_state(self, command: Command, most: int) -> None:
        for length in (0, most + 1, 1 << 40, HUGE):
            core = main_in(BEFORE[command])
            error = refused(lambda core=core, n=length: core.receive_data(header(command, n)))  # type: ignore[misc]
            assert (error.expected, error.got) == (f"1 to {most} bytes", f"{length} bytes")
            assert error.reply == ERROR
        for length in (1, most):
            core = main_in(BEFORE[command])
            (event,) = feed(core, header(command, length) + bytes(length))
            assert isinstance(event, ConfigReceived | StateReceived)
            assert event.payload == bytes(length)

    def test_a_limit_below_what_is_drained_is_drained(self) -> None:
        core = main_in(MainState.STARTED, Limits(max_config_bytes=10))
        assert core.receive_data(header(Command.CONFIG, 11)) is None
        refused(lambda: core.receive_data(bytes(11)))

    @pytest.mark.parametrize("length", [1, 8, 15, 17, 24, DRAINED + 1, HUGE])
    def test_a_table_of_broken_ranges_is_refused_by_its_header(self, length: int) -> None:
        cores: list[DestinationMain | DestinationLane] = [
            main_in(MainState.CONFIGURED),
            lane_in(LaneState.READY),
            lane_in(LaneState.CONNECTED),
        ]
        for core in cores:
            error = refused(lambda core=core: feed(core, header(Command.MEMORY, length)))  # type: ignore[misc]
            assert (error.command, error.expected) == ("Memory", "a multiple of 16 bytes")
            assert (error.got, error.reply) == (f"{length} bytes", ERROR)

    @pytest.mark.parametrize("length", [0, 16, HUGE - 15])
    def test_a_table_is_announced_not_taken(self, length: int) -> None:
        core = main_in(MainState.CONFIGURED)
        event = core.receive_data(header(Command.MEMORY, length))
        assert event == MemoryReceived(table_bytes=length)
        assert core.wanted == 0

    @pytest.mark.parametrize("length", [0, 3, 5, DRAINED, DRAINED + 1, HUGE])
    def test_a_slot_is_of_four_bytes(self, length: int) -> None:
        core = main_in(MainState.STARTED)
        data = header(Command.MEMORY_FD, length) + bytes(min(length, DRAINED))
        if not 0 < length <= DRAINED:
            data = data[:16]
        error = refused(lambda: feed(core, data))
        assert (error.command, error.expected) == ("MemoryFd", "4 bytes")
        assert error.reply == ERROR

    @pytest.mark.parametrize("version", [1, 2, 0xFFFF])
    def test_a_version_of_the_future_is_refused(self, version: int) -> None:
        core = main_in(MainState.ESTABLISHED)
        error = refused(lambda: core.receive_data(Request.start(version).encode()))
        assert (error.command, error.got) == ("Start", f"version {version}")
        assert (error.state, error.reply) == ("Starting", ERROR)
        core.receive_end()
        assert core.state is MainState.CLOSED

    def test_the_version_before_ours_is_accepted_and_no_older(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("aiomigrate.protocol.destination.PROTOCOL_VERSION", 3)
        for version in (2, 3):
            core = main_in(MainState.ESTABLISHED)
            event = core.receive_data(Request.start(version).encode())
            assert event == StartReceived(version=version, offer=Extension.NONE)
        for version in (0, 1, 4):
            core = main_in(MainState.ESTABLISHED)
            refused(lambda core=core, v=version: core.receive_data(Request.start(v).encode()))  # type: ignore[misc]

    def test_memory_held_is_what_has_arrived(self) -> None:
        core = main_in(MainState.CONFIGURED, Limits())
        tracemalloc.start()
        try:
            core.receive_data(header(Command.STATE, 1 << 30))
            for _ in range(64):
                core.receive_data(bytes(1024))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 256 << 10

    def test_what_is_drained_is_not_kept(self) -> None:
        core = main_in(MainState.ESTABLISHED, Limits(max_drained_bytes=8 << 20))
        core.receive_data(header(Command.START, 8 << 20))
        piece = bytes(1 << 20)
        tracemalloc.start()
        try:
            for _ in range(7):
                assert core.wanted == 1 << 20
                core.receive_data(piece)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 64 << 10


def _hostile_bytes() -> st.SearchStrategy[bytes]:
    lengths = st.sampled_from([0, 1, 4, 16, 17, DRAINED, DRAINED + 1, 1 << 40, HUGE])
    numbers = st.integers(0, 12) | st.integers(0x8000, 0x8006) | st.integers(0, 0xFFFF)
    headers = st.builds(header, numbers, lengths)
    return st.lists(headers | st.binary(max_size=40)).map(b"".join)


def _pieces(data: bytes, core: DestinationMain | DestinationLane) -> Iterator[bytes]:
    while data and core.wanted:
        piece, data = data[: core.wanted], data[core.wanted :]
        yield piece


@given(st.sampled_from(each_main_state()), _hostile_bytes())
def test_main_takes_any_bytes(which: tuple[MainState, Extension], data: bytes) -> None:
    state, accepted = which
    core = main_in(state, accepted=accepted)
    if core.wanted == 0 and (state, Signal.OK) in DESTINATION_MAIN:
        core.answer(ok=True)
    _survives(core, data, MainState.FAILED)


@given(st.sampled_from(EACH_LANE_STATE), st.sampled_from(Dialect), _hostile_bytes())
def test_a_lane_takes_any_bytes(
    which: tuple[LaneState, Extension], dialect: Dialect, data: bytes
) -> None:
    state, extensions = which
    core = lane_in(state, dialect, extensions)
    if state in {LaneState.APPLYING, LaneState.JOINING, LaneState.ASKED}:
        core.answer(ok=True)
    _survives(core, data, LaneState.FAILED)


def _survives(
    core: DestinationMain | DestinationLane, data: bytes, failed: MainState | LaneState
) -> None:
    try:
        for piece in _pieces(data, core):
            event = core.receive_data(piece)
            if event is not None and not isinstance(event, LaneOpened | FaultOpened):
                core.answer(ok=True)
        core.receive_end()
    except RemoteProtocolError:
        assert core.state is failed
        assert core.wanted == 0
    held = len(core._header) + len(core._payload or b"")
    assert held <= len(data)
