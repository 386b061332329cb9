import itertools
import struct
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.protocol import (
    ALL_EXTENSIONS,
    AbandonReceived,
    Command,
    CompleteReceived,
    ConfigReceived,
    ConfirmReceived,
    DestinationLane,
    DestinationMain,
    Dialect,
    Event,
    Extension,
    FaultOpened,
    LaneJoining,
    LaneOpened,
    LaneRetired,
    LaneState,
    Limits,
    LocalProtocolError,
    MainState,
    MemoryFdReceived,
    MemoryReceived,
    OwnershipAsked,
    RemoteProtocolError,
    Request,
    Response,
    SessionReceived,
    StartReceived,
    StateReceived,
    Status,
    Verdict,
    ZerosReceived,
)
from aiomigrate.protocol.extensions import EXTENSION_OF
from aiomigrate.protocol.tables import DESTINATION_LANE, DESTINATION_MAIN, Signal
from tests.support.feeding import every_way, feed, header

OK = Response(Status.OK).encode()
ERROR = Response(Status.ERROR).encode()
LIMITS = Limits(max_config_bytes=200_000, max_state_bytes=300_000)
DRAINED = LIMITS.max_drained_bytes
HUGE = (1 << 64) - 1
TOKEN = bytes(range(16))

# A valid sample of each request that a main connection takes, and what it says.
SAMPLES: dict[Command, tuple[bytes, Event]] = {
    Command.START: (
        header(Command.START, headers=bytes.fromhex("0000 7f000000")),
        StartReceived(version=0, offer=ALL_EXTENSIONS),
    ),
    Command.SESSION: (header(Command.SESSION, 16) + TOKEN, SessionReceived(token=TOKEN)),
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
    Command.RETIRE_LANE: (
        header(Command.RETIRE_LANE, 4) + b"\x03\x00\x01\x00",
        LaneRetired(number=0x10003),
    ),
    Command.ZEROS: (header(Command.ZEROS, 64), ZerosReceived(table_bytes=64)),
    Command.CONFIRM: (header(Command.CONFIRM), ConfirmReceived()),
}
# The same for a connection that begins with a request of an extension.
FIRST: dict[Command, tuple[bytes, Event]] = {
    Command.JOIN: (
        header(Command.JOIN, 20) + TOKEN + b"\x07\x00\x00\x01",
        LaneJoining(token=TOKEN, number=0x1000007),
    ),
    Command.OWNER: (header(Command.OWNER, 16) + TOKEN, OwnershipAsked(token=TOKEN)),
}

_COMPLETED = [Command.START, Command.CONFIG, Command.STATE, Command.COMPLETE]
# The requests, all but the last answered Ok, that lead to a state.
PATHS: dict[MainState, list[Command]] = {
    MainState.ESTABLISHED: [],
    MainState.STARTING: [Command.START],
    MainState.STARTED: [Command.START],
    MainState.NAMING: [Command.START, Command.SESSION],
    MainState.NAMED: [Command.START, Command.SESSION],
    MainState.TAKING_FD: [Command.START, Command.MEMORY_FD],
    MainState.FDS_RECEIVED: [Command.START, Command.MEMORY_FD],
    MainState.CONFIGURING: [Command.START, Command.CONFIG],
    MainState.CONFIGURED: [Command.START, Command.CONFIG],
    MainState.APPLYING: [Command.START, Command.CONFIG, Command.MEMORY],
    MainState.RETIRING: [Command.START, Command.CONFIG, Command.RETIRE_LANE],
    MainState.RESTORING: [Command.START, Command.CONFIG, Command.STATE],
    MainState.STATE_RECEIVED: [Command.START, Command.CONFIG, Command.STATE],
    MainState.COMPLETING: _COMPLETED,
    MainState.COMPLETED: _COMPLETED,
    MainState.CONFIRMING: [*_COMPLETED, Command.CONFIRM],
    MainState.CONFIRMED: [*_COMPLETED, Command.CONFIRM],
    MainState.ABANDONING: [Command.START, Command.ABANDON],
    MainState.ABORTED: [Command.START, Command.ABANDON],
    MainState.FAILED: [Command.START],
    MainState.CLOSED: [Command.START, Command.ABANDON],
}
# Where a request of each command is legal.
BEFORE = {
    Command.START: MainState.ESTABLISHED,
    Command.SESSION: MainState.STARTED,
    Command.MEMORY_FD: MainState.STARTED,
    Command.CONFIG: MainState.STARTED,
    Command.MEMORY: MainState.CONFIGURED,
    Command.STATE: MainState.CONFIGURED,
    Command.COMPLETE: MainState.STATE_RECEIVED,
    Command.COMPLETE_PAUSED: MainState.STATE_RECEIVED,
    Command.ABANDON: MainState.CONFIGURED,
    Command.RETIRE_LANE: MainState.CONFIGURED,
    Command.ZEROS: MainState.CONFIGURED,
    Command.CONFIRM: MainState.COMPLETED,
}


def main_in(
    state: MainState, limits: Limits = LIMITS, accepted: Extension = ALL_EXTENSIONS
) -> DestinationMain:
    """A core that was led to `state` and accepts all extensions in Start, or what is said."""
    core = DestinationMain(limits, willing=accepted)
    for command in PATHS[state]:
        if core.wanted == 0:
            core.answer(ok=True)
        assert feed(core, SAMPLES[command][0])
    if state is MainState.FAILED:
        assert core.answer(ok=False) == ERROR
    elif core.state is not state:
        core.answer(ok=True)
    if state is MainState.CLOSED:
        core.receive_end()
    assert core.state == state
    return core


def possible(state: MainState, accepted: Extension) -> bool:
    return all(EXTENSION_OF.get(c, accepted) in accepted for c in PATHS[state])


def each_main_state() -> list[tuple[MainState, Extension]]:
    both = itertools.product(PATHS, (Extension.NONE, ALL_EXTENSIONS))
    return [(state, accepted) for state, accepted in both if possible(state, accepted)]


def lane_in(
    state: LaneState, dialect: Dialect = Dialect.V53, extensions: Extension = Extension.NONE
) -> DestinationLane:
    core = DestinationLane("lane 7", extensions)
    if state == LaneState.CONNECTED:
        return core
    if state in {LaneState.ASKED, LaneState.TOLD}:
        feed(core, FIRST[Command.OWNER][0])
    elif Extension.SESSION in extensions:
        feed(core, FIRST[Command.JOIN][0])
        if state != LaneState.JOINING:
            assert core.answer(ok=True) == OK
    elif dialect == Dialect.V53:
        assert feed(core, b"\x01\x00") == [LaneOpened(dialect=Dialect.V53)]
    if core.wanted and core.state != state:
        feed(core, header(Command.MEMORY, 16))
    if state in {LaneState.FAILED, LaneState.CLOSED}:
        core.answer(ok=False)
    elif core.state != state:
        core.answer(ok=True)
    if state == LaneState.CLOSED:
        core.receive_end()
    assert core.state == state
    return core


EACH_LANE_STATE = [(state, ALL_EXTENSIONS) for state in LaneState] + [
    (state, Extension.NONE)
    for state in LaneState
    if state not in {LaneState.JOINING, LaneState.ASKED, LaneState.TOLD}
]


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


class TestExtensions:
    """Of Start and its answer, and of lengths; what is in order is in TestEveryPair."""

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
