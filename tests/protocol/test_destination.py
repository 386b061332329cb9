import struct
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.protocol import (
    AbandonReceived,
    Command,
    CompleteReceived,
    ConfigReceived,
    DestinationLane,
    DestinationMain,
    Dialect,
    Event,
    FaultOpened,
    LaneOpened,
    LaneState,
    Limits,
    LocalProtocolError,
    MainState,
    MemoryFdReceived,
    MemoryReceived,
    RemoteProtocolError,
    Request,
    Response,
    StartReceived,
    StateReceived,
    Status,
)
from aiomigrate.protocol.tables import DESTINATION_LANE, DESTINATION_MAIN, Signal
from tests.support.feeding import every_way, feed, header

OK = Response(Status.OK).encode()
ERROR = Response(Status.ERROR).encode()
LIMITS = Limits(max_config_bytes=200_000, max_state_bytes=300_000)
DRAINED = LIMITS.max_drained_bytes
HUGE = (1 << 64) - 1

# A valid sample of each request and what it says.
SAMPLES: dict[Command, tuple[bytes, Event]] = {
    Command.START: (
        header(Command.START, headers=b"\x00\x00abcd"),
        StartReceived(version=0, offer=b"abcd"),
    ),
    Command.MEMORY_FD: (
        header(Command.MEMORY_FD, 4) + b"\x01\x02\x00\x00",
        MemoryFdReceived(slot=0x201),
    ),
    Command.CONFIG: (header(Command.CONFIG, 5) + b"{'a'}", ConfigReceived(payload=b"{'a'}")),
    Command.MEMORY: (header(Command.MEMORY, 48), MemoryReceived(table_bytes=48)),
    Command.STATE: (header(Command.STATE, 2) + b"{}", StateReceived(payload=b"{}")),
    Command.COMPLETE: (header(Command.COMPLETE), CompleteReceived(paused=False)),
    Command.COMPLETE_PAUSED: (header(Command.COMPLETE_PAUSED), CompleteReceived(paused=True)),
    Command.ABANDON: (header(Command.ABANDON), AbandonReceived()),
}

# The requests, all but the last answered Ok, that lead to a state.
PATHS: dict[MainState, list[Command]] = {
    MainState.ESTABLISHED: [],
    MainState.STARTING: [Command.START],
    MainState.STARTED: [Command.START],
    MainState.TAKING_FD: [Command.START, Command.MEMORY_FD],
    MainState.FDS_RECEIVED: [Command.START, Command.MEMORY_FD],
    MainState.CONFIGURING: [Command.START, Command.CONFIG],
    MainState.CONFIGURED: [Command.START, Command.CONFIG],
    MainState.APPLYING: [Command.START, Command.CONFIG, Command.MEMORY],
    MainState.RESTORING: [Command.START, Command.CONFIG, Command.STATE],
    MainState.STATE_RECEIVED: [Command.START, Command.CONFIG, Command.STATE],
    MainState.COMPLETING: [Command.START, Command.CONFIG, Command.STATE, Command.COMPLETE],
    MainState.COMPLETED: [Command.START, Command.CONFIG, Command.STATE, Command.COMPLETE],
    MainState.ABANDONING: [Command.START, Command.ABANDON],
    MainState.ABORTED: [Command.START, Command.ABANDON],
    MainState.FAILED: [Command.START],
    MainState.CLOSED: [Command.START, Command.ABANDON],
}
# Where a request of each command is legal.
BEFORE = {
    Command.START: MainState.ESTABLISHED,
    Command.MEMORY_FD: MainState.STARTED,
    Command.CONFIG: MainState.STARTED,
    Command.MEMORY: MainState.CONFIGURED,
    Command.STATE: MainState.CONFIGURED,
    Command.COMPLETE: MainState.STATE_RECEIVED,
    Command.COMPLETE_PAUSED: MainState.STATE_RECEIVED,
    Command.ABANDON: MainState.CONFIGURED,
}


def main_in(state: MainState, limits: Limits = LIMITS) -> DestinationMain:
    core = DestinationMain(limits)
    for command in PATHS[state]:
        if core.wanted == 0:
            assert core.answer(ok=True) == OK
        assert feed(core, SAMPLES[command][0])
    if state is MainState.FAILED:
        assert core.answer(ok=False) == ERROR
    elif core.state is not state:
        core.answer(ok=True)
    if state is MainState.CLOSED:
        core.receive_end()
    assert core.state == state
    return core


def lane_in(state: LaneState, dialect: Dialect = Dialect.V53) -> DestinationLane:
    core = DestinationLane("lane 7")
    if state == LaneState.CONNECTED:
        return core
    if dialect == Dialect.V53:
        assert feed(core, b"\x01\x00") == [LaneOpened(dialect=Dialect.V53)]
    if state != LaneState.READY or dialect == Dialect.V52:
        feed(core, header(Command.MEMORY, 16))
    if state in {LaneState.FAILED, LaneState.CLOSED}:
        core.answer(ok=False)
    elif core.state != state:
        core.answer(ok=True)
    if state == LaneState.CLOSED:
        core.receive_end()
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


class TestSamples:
    @pytest.mark.parametrize("command", SAMPLES)
    def test_each_request_however_it_is_cut(self, command: Command) -> None:
        data, expected = SAMPLES[command]
        for cuts in every_way(data):
            core = main_in(BEFORE[command])
            assert (core.wanted, core.between_requests) == (16, True)
            assert feed(core, data, cuts) == [expected]
            assert (core.wanted, core.between_requests) == (0, False)
            assert core.answer(ok=True) == OK
            assert (core.wanted, core.between_requests) == (16, True)

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
        events = [event for _, event in SAMPLES.values()]
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


class TestEveryPair:
    @pytest.mark.parametrize("state", MainState)
    @pytest.mark.parametrize("command", Command)
    def test_main_and_command(self, state: MainState, command: Command) -> None:
        core = main_in(state)
        data, expected = SAMPLES.get(command, (header(command), None))
        asked = DESTINATION_MAIN.get((state, command))
        if core.wanted == 0:  # unanswered, failed or closed: nothing may be fed
            assert asked is None
            misused(lambda: core.receive_data(data[:16]))
            assert core.state is state
        elif asked is None:
            error = refused(lambda: core.receive_data(data[:16]))
            assert core.state is MainState.FAILED
            assert (error.connection, error.state, error.command) == ("main", state.value, None)
            assert error.got in {"Invalid", "PageFault"} | {
                "".join(word.capitalize() for word in command.name.split("_"))
            }
            assert error.reply == ERROR
            assert core.wanted == 0
        else:
            assert feed(core, data) == [expected]
            assert core.state is asked

    @pytest.mark.parametrize("state", MainState)
    @pytest.mark.parametrize("ok", [True, False])
    def test_main_and_answer(self, state: MainState, ok: bool) -> None:
        core = main_in(state)
        following = DESTINATION_MAIN.get((state, Signal.OK if ok else Signal.ERROR))
        if following is None:
            misused(lambda: core.answer(ok=ok))
            assert core.state is state
        else:
            assert core.answer(ok=ok) == (OK if ok else ERROR)
            assert core.state is following
            assert core.wanted == (16 if ok else 0)

    @pytest.mark.parametrize("state", MainState)
    def test_main_and_end(self, state: MainState) -> None:
        core = main_in(state)
        following = DESTINATION_MAIN.get((state, Signal.END))
        if following is None:
            error = refused(core.receive_end)
            assert (error.state, error.got) == (state.value, "end of stream")
            assert error.reply == b""
            assert core.state is MainState.FAILED
        else:
            core.receive_end()
            assert core.state is following

    @pytest.mark.parametrize("state", LaneState)
    @pytest.mark.parametrize("command", [c for c in Command if c not in (1, 2)])
    def test_lane_and_command(self, state: LaneState, command: Command) -> None:
        core = lane_in(state)
        asked = DESTINATION_LANE.get((state, command))
        if core.wanted == 0:
            misused(lambda: core.receive_data(header(command, 16)))
            assert core.state is state
        elif asked is None:
            assert refused(lambda: feed(core, header(command, 16))).connection == "lane 7"
            assert core.state is LaneState.FAILED
        else:
            feed(core, header(command, 16))
            assert core.state is asked

    @pytest.mark.parametrize("state", LaneState)
    @pytest.mark.parametrize("ok", [True, False])
    def test_lane_and_answer(self, state: LaneState, ok: bool) -> None:
        core = lane_in(state)
        following = DESTINATION_LANE.get((state, Signal.OK if ok else Signal.ERROR))
        if following is None:
            misused(lambda: core.answer(ok=ok))
            assert core.state is state
        else:
            core.answer(ok=ok)
            assert core.state is following

    @pytest.mark.parametrize("state", LaneState)
    @pytest.mark.parametrize("dialect", Dialect)
    def test_lane_and_end(self, state: LaneState, dialect: Dialect) -> None:
        core = lane_in(state, dialect)
        following = DESTINATION_LANE.get((state, Signal.END))
        if following is None:
            error = refused(core.receive_end)
            command = "Memory" if state is LaneState.APPLYING else None
            assert (error.state, error.command) == (state.value, command)
            assert core.state is LaneState.FAILED
        else:
            core.receive_end()
            assert core.state is following


class TestHostile:
    @pytest.mark.parametrize("number", [0, 9, 10, 0x7FFF, 0xFFFF])
    @pytest.mark.parametrize("length", [0, 16, HUGE])
    def test_an_unknown_command_is_refused_by_its_header(self, number: int, length: int) -> None:
        data = header(number, length)
        for cuts in every_way(data):
            core = main_in(MainState.CONFIGURED)
            error = refused(lambda core=core, cuts=cuts: feed(core, data, cuts))  # type: ignore[misc]
            assert error.reply == ERROR
            assert error.expected == "State or Abandon or Memory"
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
            assert event == StartReceived(version=version, offer=bytes(4))
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

    @pytest.mark.parametrize("number", [0, 3, 5, 8, 0x0104, 0x0201, 0x4547, 0x8000, 0xFFFF])
    def test_a_stranger_gets_no_reply(self, number: int) -> None:
        core = DestinationLane("lane 1")
        error = refused(lambda: core.receive_data(struct.pack("<H", number)))
        assert (error.reply, error.got) == (b"", f"{number}")
        assert error.expected == "role 1 or 2, or Memory"
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


def _hostile_bytes() -> st.SearchStrategy[bytes]:
    lengths = st.sampled_from([0, 1, 4, 16, 17, DRAINED, DRAINED + 1, 1 << 40, HUGE])
    headers = st.builds(header, st.integers(0, 12) | st.integers(0, 0xFFFF), lengths)
    return st.lists(headers | st.binary(max_size=40)).map(b"".join)


def _pieces(data: bytes, core: DestinationMain | DestinationLane) -> Iterator[bytes]:
    while data and core.wanted:
        piece, data = data[: core.wanted], data[core.wanted :]
        yield piece


@given(st.sampled_from(MainState), _hostile_bytes())
def test_main_takes_any_bytes(state: MainState, data: bytes) -> None:
    core = main_in(state)
    if core.wanted == 0 and (state, Signal.OK) in DESTINATION_MAIN:
        core.answer(ok=True)
    _survives(core, data, MainState.FAILED)


@given(st.sampled_from(LaneState), st.sampled_from(Dialect), _hostile_bytes())
def test_a_lane_takes_any_bytes(state: LaneState, dialect: Dialect, data: bytes) -> None:
    core = lane_in(state, dialect)
    if state is LaneState.APPLYING:
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
