"""The source's cores: the main connection, and a lane.

Methods named for requests return the bytes to write: the header, which the driver sends together
with the payload it has at hand. Any number of Memory, Zeros and RetireLane requests may be
unanswered; every other request of the main connection waits until they are answered, Abandon
alone excepted. Complete need not wait for the answer to State.
"""

from aiomigrate.protocol.extensions import (
    LANE_NUMBER_BYTES,
    TOKEN_BYTES,
    Extension,
    Verdict,
    accept,
    decode_extensions,
    encode_data,
    encode_extensions,
)
from aiomigrate.protocol.machine import Answer, RequestSender
from aiomigrate.protocol.tables import (
    SOURCE_LANE,
    SOURCE_MAIN,
    SOURCE_QUERY,
    LaneState,
    MainState,
    Signal,
)
from aiomigrate.protocol.wire import (
    PROTOCOL_VERSION,
    RANGE_BYTES,
    SLOT_BYTES,
    Command,
    Dialect,
    Request,
    Response,
    Role,
    command_name,
    encode_lane_number,
    encode_role,
    encode_slot,
)

__all__ = ["Answer", "SourceLane", "SourceMain", "SourceQuery"]


class SourceMain(RequestSender[MainState]):
    """The main connection, written by the source."""

    def __init__(self, name: str = "main") -> None:
        super().__init__(name, SOURCE_MAIN, MainState.ESTABLISHED, MainState.FAILED)
        self._offer = Extension.NONE

    def start(self, offer: Extension = Extension.NONE) -> bytes:
        """Open the migration and offer extensions; `extensions` are those accepted, once Ok came.

        An answer that accepts what was not offered, or an extension without what it needs, is a
        RemoteProtocolError.
        """
        written = Request.start(PROTOCOL_VERSION, encode_extensions(offer)).encode()
        self._request(Command.START)
        self._offer = offer
        return written

    def _settle(self, response: Response) -> Answer:
        answer = super()._settle(response)
        if answer.command is Command.START and answer.ok:
            accepted = decode_extensions(answer.padding)
            if accepted != accept(accepted, self._offer):
                expected = f"some of the extensions {self._offer:#x} with what they need"
                self._refuse("Start", expected, f"{accepted:#x}")
            self.extensions = accepted
        return answer

    def session(self, token: bytes) -> bytes:
        """Header and payload that give the migration its token."""
        return self._request_exactly(Command.SESSION, TOKEN_BYTES, token)

    def retire_lane(self, number: int) -> bytes:
        """Header and payload that have a lost lane fenced."""
        payload = encode_lane_number(number)
        return self._request_exactly(Command.RETIRE_LANE, LANE_NUMBER_BYTES, payload)

    def memory_fd(self, slot: int) -> tuple[bytes, bytes]:
        """Header and payload, to be sent apart: the payload with its one descriptor."""
        payload = encode_slot(slot)
        return self._request(Command.MEMORY_FD, SLOT_BYTES), payload

    def config(self, length: int, data_bytes: int | None = None) -> bytes:
        """The header before a Config of `length` bytes; `data_bytes` of guest memory may be other
        than zero, which a plain peer is not told.
        """
        if Extension.GUEST_DATA not in self.extensions:
            return self._request(Command.CONFIG, length)
        return self._request(Command.CONFIG, length, encode_data(data_bytes))

    def memory(self, ranges: int) -> bytes:
        """The header before a table of `ranges` entries and their content."""
        return self._request(Command.MEMORY, ranges * RANGE_BYTES)

    def zeros(self, ranges: int) -> bytes:
        """The header before a table of `ranges` entries that become zero."""
        return self._request(Command.ZEROS, ranges * RANGE_BYTES)

    def state_snapshot(self, length: int) -> bytes:
        """The header before a State of `length` bytes."""
        self._require_answers("State")
        return self._request(Command.STATE, length)

    def complete(self, *, paused: bool) -> bytes:
        """Hand the VM over: the destination owns it once it has executed this.

        State may still be unanswered: an Error to it proves that this was not executed.
        """
        return self._request(Command.COMPLETE_PAUSED if paused else Command.COMPLETE)

    def confirm(self) -> bytes:
        """Say that Ok to Complete was read."""
        return self._request(Command.CONFIRM)

    def abandon(self) -> bytes:
        """Give up; possible until Complete, while no other request is unanswered than those of
        which many may be.
        """
        return self._request(Command.ABANDON)


class SourceLane(RequestSender[LaneState]):
    """A memory connection, written by the source."""

    def __init__(self, name: str, dialect: Dialect, extensions: Extension = Extension.NONE) -> None:
        super().__init__(name, SOURCE_LANE, LaneState.CONNECTED, LaneState.FAILED)
        self._dialect = dialect
        self.extensions = extensions
        self._joins = Extension.SESSION in extensions

    def join(self, token: bytes, number: int) -> bytes:
        """What the connection begins with where SESSION was accepted; it is answered."""
        payload = token + encode_lane_number(number)
        return self._request_exactly(Command.JOIN, TOKEN_BYTES + LANE_NUMBER_BYTES, payload)

    def open(self) -> bytes:
        """What the connection begins with elsewhere: its role, or nothing in the v52 dialect."""
        if self._joins:
            self._misused(None, command_name(Command.JOIN), Signal.ROLE.value)
        if self._dialect is Dialect.V52:
            return b""
        self._move_locally(Signal.ROLE)
        return encode_role(Role.PRECOPY_MEMORY)

    def memory(self, ranges: int) -> bytes:
        """The header before a table of `ranges` entries and their content."""
        if self.state is LaneState.CONNECTED and (self._joins or self._dialect is Dialect.V53):
            first = command_name(Command.JOIN) if self._joins else "the role"
            self._misused("Memory", f"{first} first", "Memory")
        return self._request(Command.MEMORY, ranges * RANGE_BYTES)

    def zeros(self, ranges: int) -> bytes:
        """The header before a table of `ranges` entries that become zero."""
        return self._request(Command.ZEROS, ranges * RANGE_BYTES)

    def close(self) -> None:
        """The source closes between two requests; LocalProtocolError if answers are due."""
        self._require_answers(None)
        self._move_locally(Signal.CLOSE)


class SourceQuery(RequestSender[LaneState]):
    """A connection that only asks who owns the VM."""

    def __init__(self, name: str) -> None:
        super().__init__(name, SOURCE_QUERY, LaneState.CONNECTED, LaneState.FAILED)
        self.extensions = Extension.OWNERSHIP

    def ask(self, token: bytes) -> bytes:
        """Header and payload of the question."""
        return self._request_exactly(Command.OWNER, TOKEN_BYTES, token)

    def verdict(self, answer: Answer) -> Verdict | None:
        """What the answer to `ask` says; None if the destination does not know the token.

        RemoteProtocolError for a verdict that does not exist.
        """
        if not answer.ok:
            return None
        try:
            return Verdict(answer.padding[0])
        except ValueError:
            self._refuse("Owner", "a verdict", f"{answer.padding[0]}")
