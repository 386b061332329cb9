"""The source's cores: the main connection, and a lane.

Methods named for requests return the bytes to write: the header, which the driver sends together
with the payload it has at hand. Any number of Memory requests may be unanswered; every other
request of the main connection waits until they are answered, Abandon alone excepted.
"""

from aiomigrate.protocol.machine import Answer, RequestSender
from aiomigrate.protocol.tables import SOURCE_LANE, SOURCE_MAIN, LaneState, MainState, Signal
from aiomigrate.protocol.wire import (
    PROTOCOL_VERSION,
    RANGE_BYTES,
    SLOT_BYTES,
    Command,
    Dialect,
    Request,
    Role,
    encode_role,
    encode_slot,
)

__all__ = ["Answer", "SourceLane", "SourceMain"]


class SourceMain(RequestSender[MainState]):
    """The main connection, written by the source."""

    def __init__(self, name: str = "main") -> None:
        super().__init__(name, SOURCE_MAIN, MainState.ESTABLISHED, MainState.FAILED)

    def start(self, offer: bytes = bytes(4)) -> bytes:
        """Open the migration; `offer` is 4 bytes that a plain peer ignores."""
        self._request(Command.START)
        return Request.start(PROTOCOL_VERSION, offer).encode()

    def memory_fd(self, slot: int) -> tuple[bytes, bytes]:
        """Header and payload, to be sent apart: the payload with its one descriptor."""
        payload = encode_slot(slot)
        return self._request(Command.MEMORY_FD, SLOT_BYTES), payload

    def config(self, length: int) -> bytes:
        """The header before a Config of `length` bytes."""
        return self._request(Command.CONFIG, length)

    def memory(self, ranges: int) -> bytes:
        """The header before a table of `ranges` entries and their content."""
        return self._request(Command.MEMORY, ranges * RANGE_BYTES)

    def state_snapshot(self, length: int) -> bytes:
        """The header before a State of `length` bytes."""
        self._require_answers("State")
        return self._request(Command.STATE, length)

    def complete(self, *, paused: bool) -> bytes:
        """Hand the VM over: the destination owns it once it has executed this."""
        return self._request(Command.COMPLETE_PAUSED if paused else Command.COMPLETE)

    def abandon(self) -> bytes:
        """Give up; possible until Complete, while no other request but Memory is unanswered."""
        return self._request(Command.ABANDON)


class SourceLane(RequestSender[LaneState]):
    """A memory connection, written by the source."""

    def __init__(self, name: str, dialect: Dialect) -> None:
        super().__init__(name, SOURCE_LANE, LaneState.CONNECTED, LaneState.FAILED)
        self._dialect = dialect

    def open(self) -> bytes:
        """What the connection begins with: its role, or nothing in the v52 dialect."""
        if self._dialect is Dialect.V52:
            return b""
        self._move_locally(Signal.ROLE)
        return encode_role(Role.PRECOPY_MEMORY)

    def memory(self, ranges: int) -> bytes:
        """The header before a table of `ranges` entries and their content."""
        if self._dialect is Dialect.V53 and self.state is LaneState.CONNECTED:
            self._misused("Memory", "the role first", "Memory")
        return self._request(Command.MEMORY, ranges * RANGE_BYTES)

    def close(self) -> None:
        """The source closes between two requests; LocalProtocolError if answers are due."""
        self._require_answers(None)
        self._move_locally(Signal.CLOSE)
