"""The destination's cores: the main connection, and a lane.

A driver reads at most `wanted` bytes, feeds them to `receive_data` and acts on the event that
comes back, if one does; then it writes what `answer` returns. After `MemoryReceived` it moves the
table and the content itself before it answers.
"""

from dataclasses import dataclass

from aiomigrate.protocol.limits import Limits
from aiomigrate.protocol.machine import RequestReceiver
from aiomigrate.protocol.tables import (
    DESTINATION_LANE,
    DESTINATION_MAIN,
    LaneState,
    MainState,
    Signal,
)
from aiomigrate.protocol.wire import (
    PROTOCOL_VERSION,
    RANGE_BYTES,
    ROLE_BYTES,
    SLOT_BYTES,
    Command,
    Dialect,
    Role,
    command_name,
    decode_role,
    decode_slot,
)

__all__ = [
    "AbandonReceived",
    "CompleteReceived",
    "ConfigReceived",
    "DestinationLane",
    "DestinationMain",
    "Event",
    "FaultOpened",
    "LaneOpened",
    "MemoryFdReceived",
    "MemoryReceived",
    "StartReceived",
    "StateReceived",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReceived:
    """A source begins a migration; its version has been accepted."""

    version: int
    offer: bytes
    """4 bytes, all zero from a plain peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFdReceived:
    """The memory of a slot comes as a descriptor beside these 4 bytes."""

    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigReceived:
    """The VM's configuration and memory map, as sent."""

    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReceived:
    """A range table of `table_bytes` follows, then the content of its ranges."""

    table_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateReceived:
    """The VM's state, as sent."""

    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteReceived:
    """The destination becomes the owner, and runs the VM if it is not `paused`."""

    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AbandonReceived:
    """The source gives up; what was built is to be discarded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneOpened:
    """The connection is a lane, in this dialect."""

    dialect: Dialect


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultOpened:
    """The connection is a fault connection: the source means post-copy."""


Event = (
    StartReceived
    | MemoryFdReceived
    | ConfigReceived
    | MemoryReceived
    | StateReceived
    | CompleteReceived
    | AbandonReceived
    | LaneOpened
    | FaultOpened
)


def _whole_ranges(length: int) -> str | None:
    return None if length % RANGE_BYTES == 0 else f"a multiple of {RANGE_BYTES} bytes"


class DestinationMain(RequestReceiver[MainState]):
    """The main connection, read by the destination."""

    def __init__(self, limits: Limits, name: str = "main") -> None:
        super().__init__(
            name,
            DESTINATION_MAIN,
            MainState.ESTABLISHED,
            MainState.FAILED,
            limits.max_drained_bytes,
        )
        self._limits = limits

    def _expected_length(self, command: Command, length: int) -> str | None:
        limits = self._limits
        match command:
            case Command.CONFIG if not 0 < length <= limits.max_config_bytes:
                return f"1 to {limits.max_config_bytes} bytes"
            case Command.STATE if not 0 < length <= limits.max_state_bytes:
                return f"1 to {limits.max_state_bytes} bytes"
            case Command.CONFIG | Command.STATE:
                return None
            case Command.MEMORY:
                return _whole_ranges(length)
            case Command.MEMORY_FD:
                return None if length == SLOT_BYTES else f"{SLOT_BYTES} bytes"
            case _:
                return None if length == 0 else "no payload"

    def receive_data(self, data: bytes | bytearray | memoryview) -> Event | None:
        """Take up to `wanted` bytes; the request that is whole with them.

        RemoteProtocolError for a request out of order, unknown, of a wrong length or of a version
        that is not ours; its `reply` is the Error to send.
        """
        taken = self._take(data)
        if taken is None:
            return self._memory_event()
        request, payload = taken
        match request.command:
            case Command.START:
                if not PROTOCOL_VERSION - 1 <= request.version <= PROTOCOL_VERSION:
                    got = f"version {request.version}"
                    self._refuse("Start", f"version {PROTOCOL_VERSION}", got, answer=True)
                return StartReceived(version=request.version, offer=request.offer)
            case Command.MEMORY_FD:
                return MemoryFdReceived(slot=decode_slot(payload))
            case Command.CONFIG:
                return ConfigReceived(payload=payload)
            case Command.STATE:
                return StateReceived(payload=payload)
            case Command.COMPLETE | Command.COMPLETE_PAUSED:
                return CompleteReceived(paused=request.command == Command.COMPLETE_PAUSED)
            case _:
                return AbandonReceived()

    def _memory_event(self) -> MemoryReceived | None:
        if self._unanswered is not Command.MEMORY:
            return None
        return MemoryReceived(table_bytes=self._request.length)


class DestinationLane(RequestReceiver[LaneState]):
    """An additional connection, read by the destination; it finds out what the connection is.

    The first two bytes are a role (1 or 2), or in the v52 dialect the command of the first
    request, which can only be Memory (4).
    """

    def __init__(self, name: str) -> None:
        # A payload on a lane is a table or an error: nothing is ever drained.
        super().__init__(name, DESTINATION_LANE, LaneState.CONNECTED, LaneState.FAILED, 0)
        self._opened = False
        self._fault = False

    @property
    def wanted(self) -> int:
        """How many bytes of the stream are next.

        0 while a request waits for its answer, once the connection has failed or closed, and for
        a fault connection, which is no lane: `FaultDestination` goes on with it.
        """
        if self._fault:
            return 0
        if not self._opened and self.state is LaneState.CONNECTED:
            return ROLE_BYTES - len(self._header)
        return super().wanted

    def _expected_length(self, command: Command, length: int) -> str | None:  # noqa: ARG002  # see below
        return _whole_ranges(length)  # the table lets no other command than Memory come this far

    def receive_data(
        self, data: bytes | bytearray | memoryview
    ) -> LaneOpened | FaultOpened | MemoryReceived | None:
        """Take up to `wanted` bytes; what they say.

        RemoteProtocolError without a reply for a first number that is neither a role nor Memory,
        with an Error as reply for any request that is not a Memory.
        """
        if self._opened:
            self._take(data)
            if self._unanswered is None:
                return None
            return MemoryReceived(table_bytes=self._request.length)
        self._check_size(data)
        self._header += data
        if len(self._header) < ROLE_BYTES:
            return None
        self._opened = True
        number = decode_role(self._header)
        if number == Command.MEMORY:
            return LaneOpened(dialect=Dialect.V52)
        self._header.clear()
        if number == Role.PRECOPY_MEMORY:
            self._move_locally(Signal.ROLE)
            return LaneOpened(dialect=Dialect.V53)
        if number != Role.FAULT:
            memory = command_name(Command.MEMORY)
            expected = f"role {Role.PRECOPY_MEMORY:d} or {Role.FAULT:d}, or {memory}"
            self._refuse(None, expected, f"{number}")
        self._fault = True
        return FaultOpened()
