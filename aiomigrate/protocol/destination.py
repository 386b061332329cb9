"""The destination's cores: the main connection, and a lane.

A driver reads at most `wanted` bytes, feeds them to `receive_data` and acts on the event that
comes back, if one does; then it writes what `answer` returns. After `MemoryReceived` it moves the
table and the content itself before it answers.
"""

from dataclasses import dataclass

from aiomigrate.protocol.extensions import (
    ALL_EXTENSIONS,
    LANE_NUMBER_BYTES,
    TOKEN_BYTES,
    Extension,
    Verdict,
    accept,
    decode_data,
    decode_extensions,
    encode_extensions,
)
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
    decode_lane_number,
    decode_role,
    decode_slot,
)

__all__ = [
    "AbandonReceived",
    "CompleteReceived",
    "ConfigReceived",
    "ConfirmReceived",
    "DestinationLane",
    "DestinationMain",
    "Event",
    "FaultOpened",
    "LaneJoining",
    "LaneOpened",
    "LaneRetired",
    "MemoryFdReceived",
    "MemoryReceived",
    "OwnershipAsked",
    "SessionReceived",
    "StartReceived",
    "StateReceived",
    "ZerosReceived",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReceived:
    """A source begins a migration; its version has been accepted."""

    version: int
    offer: Extension
    """What it can do besides; nothing if it is a plain peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReceived:
    """The migration's token."""

    token: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFdReceived:
    """The memory of a slot comes as a descriptor beside these 4 bytes."""

    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigReceived:
    """The VM's configuration and memory map, as sent."""

    payload: bytes
    data_bytes: int | None = None
    """How much of guest memory may be other than zero; None: the source does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReceived:
    """A range table of `table_bytes` follows, then the content of its ranges."""

    table_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ZerosReceived:
    """A range table of `table_bytes` follows: what becomes zero."""

    table_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRetired:
    """The source has lost lane `number`; it is answered once nothing of it can touch memory."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateReceived:
    """The VM's state, as sent."""

    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteReceived:
    """The destination becomes the owner, and runs the VM if it is not `paused`."""

    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmReceived:
    """The source has read Ok to Complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbandonReceived:
    """The source gives up; what was built is to be discarded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneOpened:
    """The connection is a lane, in this dialect."""

    dialect: Dialect


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneJoining:
    """The connection says that it is lane `number` of the migration with this token."""

    token: bytes
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnershipAsked:
    """Who owns the VM of the migration with this token? Answered with `answer_owner`."""

    token: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultOpened:
    """The connection is a fault connection: the source means post-copy."""


Event = (
    StartReceived
    | SessionReceived
    | MemoryFdReceived
    | ConfigReceived
    | MemoryReceived
    | ZerosReceived
    | LaneRetired
    | StateReceived
    | CompleteReceived
    | ConfirmReceived
    | AbandonReceived
    | LaneOpened
    | LaneJoining
    | OwnershipAsked
    | FaultOpened
)


_FIRST = (Command.JOIN, Command.OWNER)
"""The requests of extensions that a connection may begin with."""


def _whole_ranges(length: int) -> str | None:
    return None if length % RANGE_BYTES == 0 else f"a multiple of {RANGE_BYTES} bytes"


def _exactly(size: int, length: int) -> str | None:
    return None if length == size else (f"{size} bytes" if size else "no payload")


def _table_event(
    unanswered: Command | None, table_bytes: int
) -> MemoryReceived | ZerosReceived | None:
    """The event of a request whose table goes past the core, as soon as its header is there."""
    match unanswered:
        case Command.MEMORY:
            return MemoryReceived(table_bytes=table_bytes)
        case Command.ZEROS:
            return ZerosReceived(table_bytes=table_bytes)
        case _:
            return None


class DestinationMain(RequestReceiver[MainState]):
    """The main connection, read by the destination, which is `willing` to accept extensions."""

    def __init__(
        self, limits: Limits, name: str = "main", willing: Extension = ALL_EXTENSIONS
    ) -> None:
        super().__init__(
            name,
            DESTINATION_MAIN,
            MainState.ESTABLISHED,
            MainState.FAILED,
            limits.max_drained_bytes,
        )
        self._limits = limits
        self._willing = willing

    def _expected_length(self, command: Command, length: int) -> str | None:
        limits = self._limits
        match command:
            case Command.CONFIG if not 0 < length <= limits.max_config_bytes:
                return f"1 to {limits.max_config_bytes} bytes"
            case Command.STATE if not 0 < length <= limits.max_state_bytes:
                return f"1 to {limits.max_state_bytes} bytes"
            case Command.CONFIG | Command.STATE:
                return None
            case Command.MEMORY | Command.ZEROS:
                return _whole_ranges(length)
            case Command.MEMORY_FD:
                return _exactly(SLOT_BYTES, length)
            case Command.SESSION:
                return _exactly(TOKEN_BYTES, length)
            case Command.RETIRE_LANE:
                return _exactly(LANE_NUMBER_BYTES, length)
            case _:
                return _exactly(0, length)

    def receive_data(self, data: bytes | bytearray | memoryview) -> Event | None:
        """Take up to `wanted` bytes; the request that is whole with them.

        RemoteProtocolError for a request out of order, unknown, of a wrong length or of a version
        that is not ours; its `reply` is the Error to send.
        """
        taken = self._take(data)
        if taken is None:
            return _table_event(self._unanswered, self._request.length)
        request, payload = taken
        match request.command:
            case Command.START:
                if not PROTOCOL_VERSION - 1 <= request.version <= PROTOCOL_VERSION:
                    got = f"version {request.version}"
                    self._refuse("Start", f"version {PROTOCOL_VERSION}", got, answer=True)
                offer = decode_extensions(request.offer)
                self.extensions = accept(offer, self._willing)
                return StartReceived(version=request.version, offer=offer)
            case Command.SESSION:
                return SessionReceived(token=payload)
            case Command.RETIRE_LANE:
                return LaneRetired(number=decode_lane_number(payload))
            case Command.MEMORY_FD:
                return MemoryFdReceived(slot=decode_slot(payload))
            case Command.CONFIG:
                told = Extension.GUEST_DATA in self.extensions
                data_bytes = decode_data(request.headers) if told else None
                return ConfigReceived(payload=payload, data_bytes=data_bytes)
            case Command.STATE:
                return StateReceived(payload=payload)
            case Command.COMPLETE | Command.COMPLETE_PAUSED:
                return CompleteReceived(paused=request.command == Command.COMPLETE_PAUSED)
            case Command.CONFIRM:
                return ConfirmReceived()
            case _:
                return AbandonReceived()

    def answer(self, *, ok: bool, padding: bytes = bytes(6)) -> bytes:
        """The 16 bytes that answer the request at hand; Start's Ok says what is accepted."""
        if ok and self.state is MainState.STARTING:
            accepted = encode_extensions(self.extensions)
            padding = accepted + padding[len(accepted) :]
        return super().answer(ok=ok, padding=padding)


class DestinationLane(RequestReceiver[LaneState]):
    """An additional connection, read by the destination; it finds out what the connection is.

    The first two bytes are a role (1 or 2), or in the v52 dialect the command of the first
    request, which can only be Memory (4). Where `extensions` has SESSION a lane's first request is
    Join instead, and where it has OWNERSHIP the connection may be a query.
    """

    def __init__(self, name: str, extensions: Extension = Extension.NONE) -> None:
        # A payload on a lane is a table or an error: nothing is ever drained.
        super().__init__(name, DESTINATION_LANE, LaneState.CONNECTED, LaneState.FAILED, 0)
        self.extensions = extensions
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

    def _expected_length(self, command: Command, length: int) -> str | None:
        match command:
            case Command.JOIN:
                return _exactly(TOKEN_BYTES + LANE_NUMBER_BYTES, length)
            case Command.OWNER:
                return _exactly(TOKEN_BYTES, length)
            case _:
                return _whole_ranges(length)

    def receive_data(self, data: bytes | bytearray | memoryview) -> Event | None:
        """Take up to `wanted` bytes; what they say.

        RemoteProtocolError without a reply for a first number that no connection may begin with,
        with an Error as reply for a request that does not belong on it.
        """
        if not self._opened:
            return self._open_with(data)
        taken = self._take(data)
        if taken is None:
            return _table_event(self._unanswered, self._request.length)
        request, payload = taken
        if request.command == Command.OWNER:
            return OwnershipAsked(token=payload)
        return LaneJoining(
            token=payload[:TOKEN_BYTES], number=decode_lane_number(payload[TOKEN_BYTES:])
        )

    def _open_with(self, data: bytes | bytearray | memoryview) -> LaneOpened | FaultOpened | None:
        self._check_size(data)
        self._header += data
        if len(self._header) < ROLE_BYTES:
            return None
        self._opened = True
        number = decode_role(self._header)
        if number in _FIRST and self._speaks(Command(number)):
            return None  # the rest of its header is next
        joins = Extension.SESSION in self.extensions
        if number == Command.MEMORY and not joins:
            return LaneOpened(dialect=Dialect.V52)
        self._header.clear()
        if number == Role.PRECOPY_MEMORY and not joins:
            self._move_locally(Signal.ROLE)
            return LaneOpened(dialect=Dialect.V53)
        if number != Role.FAULT:
            first = [] if joins else [f"role {Role.PRECOPY_MEMORY:d}", "Memory"]
            first += [command_name(asked) for asked in _FIRST if self._speaks(asked)]
            self._refuse(None, " or ".join([*first, f"role {Role.FAULT:d}"]), f"{number}")
        self._fault = True
        return FaultOpened()

    def answer_owner(self, verdict: Verdict) -> bytes:
        """The 16 bytes that answer Owner; LocalProtocolError if that was not asked."""
        if self.state is not LaneState.ASKED:
            self._misused("Owner", LaneState.ASKED.value, self.state.value)
        return self.answer(ok=True, padding=bytes([verdict]) + bytes(5))
