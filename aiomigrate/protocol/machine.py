"""What the cores share: a state table at work, and the two directions of request and response."""

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Generic, NoReturn

from aiomigrate.protocol.errors import LocalProtocolError, RemoteProtocolError
from aiomigrate.protocol.extensions import EXTENSION_OF, Extension
from aiomigrate.protocol.tables import Input, S, Signal, Table
from aiomigrate.protocol.wire import (
    REQUEST_BYTES,
    RESPONSE_BYTES,
    TLS_ALERT,
    Command,
    Request,
    Response,
    Status,
    command_name,
)

__all__ = ["Answer", "Machine", "RequestReceiver", "RequestSender"]

_PIECE = 1 << 20
"""A payload is asked for in pieces of this size: no more is allocated than has arrived."""
_TABLES = frozenset({Command.MEMORY, Command.ZEROS})
"""Their range tables go past the core, straight to where they belong."""
_STATELESS = frozenset({Command.MEMORY, Command.ZEROS, Command.RETIRE_LANE, Command.PAGE_FAULT})
"""Requests of which many may be unanswered: their Ok changes no state of the sender's."""
_NO_PADDING = bytes(6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The response to the oldest unanswered request."""

    command: Command
    """What is answered."""
    ok: bool
    """False: the peer refused, and with it every request sent after this one."""
    length: int = 0
    """Bytes of content that follow (fault connections only)."""
    padding: bytes = _NO_PADDING
    """Six bytes that are zero from a plain peer."""


_NOTHING_TO_WAIT_FOR = frozenset({Signal.END, Command.CONFIRM})
"""In a state that takes nothing else the answer that counted has come."""


class Machine(Generic[S]):
    """A connection's name, its state, and the table that moves it."""

    def __init__(self, name: str, table: Table[S], first: S, failed: S) -> None:
        self.name = name
        self.state: S = first
        self.extensions = Extension.NONE
        """What both sides agreed on: requests of other extensions are unknown here."""
        self._table = table
        self._failed = failed
        self._lasting = {state for state, _ in table}
        self._moving = {state for state, entry in table if entry not in _NOTHING_TO_WAIT_FOR}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.state.value}>"

    def _allowed(self) -> str:
        names = [
            command_name(entry) if isinstance(entry, Command) else entry.value
            for state, entry in self._table
            if state is self.state and self._speaks(entry)
        ]
        return " or ".join(names) or "nothing more"

    def _speaks(self, entry: Input) -> bool:
        needed = EXTENSION_OF.get(entry) if isinstance(entry, Command) else None
        return needed is None or needed in self.extensions

    @property
    def _over(self) -> bool:
        """Whether only an end of stream or a confirmation can follow, or nothing at all."""
        return self.state not in self._moving

    def _move(self, entry: Input) -> bool:
        """Take the transition if there is one."""
        following = self._table.get((self.state, entry))
        if following is None or not self._speaks(entry):
            return False
        self.state = following
        return True

    def _move_locally(self, entry: Input) -> None:
        """Take a transition that our own caller asked for; LocalProtocolError if there is none."""
        if not self._move(entry):
            got = command_name(entry) if isinstance(entry, Command) else entry.value
            self._misused(None, self._allowed(), got)

    def _misused(self, command: str | None, expected: str, got: str) -> NoReturn:
        """Our own caller erred; nothing was written and nothing has changed."""
        raise LocalProtocolError(
            connection=self.name,
            state=self.state.value,
            command=command,
            expected=expected,
            got=got,
        )

    def _refuse(
        self, command: str | None, expected: str, got: str, *, answer: bool = False
    ) -> NoReturn:
        """The peer broke a rule: the connection has failed."""
        state = self.state.value
        self.state = self._failed
        raise RemoteProtocolError(
            connection=self.name,
            state=state,
            command=command,
            expected=expected,
            got=got,
            reply=Response(Status.ERROR).encode() if answer else b"",
        )


class RequestReceiver(Machine[S], ABC):
    """The side that reads requests: one at a time, each answered before the next is read."""

    def __init__(self, name: str, table: Table[S], first: S, failed: S, max_drained: int) -> None:
        super().__init__(name, table, first, failed)
        self._header = bytearray()
        self._payload: bytearray | None = None
        self._request = Request(Command.INVALID)
        self._drain_left = 0
        self._drained_for: tuple[str, str] = ("", "")
        self._max_drained = max_drained
        self._unanswered: Command | None = None

    @property
    def wanted(self) -> int:
        """How many bytes of the stream are next.

        0 while a request waits for its answer, and once the connection has failed or closed.
        """
        if self.state is self._failed or self.state not in self._lasting:
            return 0
        if self._drain_left:
            return min(self._drain_left, _PIECE)
        if self._payload is not None:
            return min(self._request.length - len(self._payload), _PIECE)
        if self._unanswered is not None:
            return 0
        return REQUEST_BYTES - len(self._header)

    @property
    def between_requests(self) -> bool:
        """Whether an end of stream here would cut nothing."""
        return (
            self.state is not self._failed
            and not self._header
            and not self._drain_left
            and self._payload is None
            and self._unanswered is None
        )

    def _take(self, data: bytes | bytearray | memoryview) -> tuple[Request, bytes] | None:
        """Collect bytes; a request with its payload once it is whole."""
        self._check_size(data)
        if self._drain_left:
            self._drain_left -= len(data)
            if not self._drain_left:
                expected, got = self._drained_for
                self._refuse(command_name(self._request.command), expected, got, answer=True)
            return None
        if self._payload is not None:
            self._payload += data
        else:
            self._header += data
            if len(self._header) < REQUEST_BYTES:
                return None
            self._request = Request.decode(self._header)
            self._header.clear()
            self._open(self._request)
        if self._payload is None or len(self._payload) < self._request.length:
            return None
        payload, self._payload = bytes(self._payload), None
        self._unanswered = Command(self._request.command)
        return self._request, payload

    def _check_size(self, data: bytes | bytearray | memoryview) -> None:
        if not 0 < len(data) <= self.wanted:
            expected = f"1 to {self.wanted} bytes" if self.wanted else "no bytes"
            self._misused(None, expected, f"{len(data)}")

    def _open(self, request: Request) -> None:
        """Check a header before anything of its payload is taken."""
        name = command_name(request.command)
        try:
            command = Command(request.command)
        except ValueError:
            self._refuse(None, self._allowed(), name, answer=True)
        if not self._move(command):
            self._refuse(None, self._allowed(), name, answer=True)
        expected = self._expected_length(command, request.length)
        if expected is None:
            self._payload = None if command in _TABLES else bytearray()
            if self._payload is None:
                self._unanswered = command
            return
        got = f"{request.length} bytes"
        if not 0 < request.length <= self._max_drained or command is Command.MEMORY:
            self._refuse(name, expected, got, answer=True)
        self._drain_left = request.length
        self._drained_for = expected, got

    @abstractmethod
    def _expected_length(self, command: Command, length: int) -> str | None:
        """None if `length` is right for `command`, else what would be."""

    def answer(self, *, ok: bool, padding: bytes = _NO_PADDING) -> bytes:
        """The 16 bytes that answer the request at hand; `padding` are six of them.

        After `ok=False`, which may come before the payload is whole, the connection takes nothing
        more: close it with lingering.
        """
        if ok and self._unanswered is None:
            self._misused(None, "a whole request before its Ok", "none")
        self._move_locally(Signal.OK if ok else Signal.ERROR)
        self._forget()
        return Response(Status.OK if ok else Status.ERROR, padding=padding).encode()

    def receive_end(self) -> None:
        """The stream ended. RemoteProtocolError if that cut something."""
        if self._unanswered is not None or self._payload is not None or self._drain_left:
            self._refuse(command_name(self._request.command), "all of it", "end of stream")
        if self._header:
            self._refuse(None, f"{self.wanted} more bytes", "end of stream")
        if not self._move(Signal.END):
            self._refuse(None, self._allowed(), "end of stream")

    def _forget(self) -> None:
        self._header.clear()
        self._payload = None
        self._drain_left = 0
        self._unanswered = None

    def _refuse(
        self, command: str | None, expected: str, got: str, *, answer: bool = False
    ) -> NoReturn:
        self._forget()
        super()._refuse(command, expected, got, answer=answer)


class RequestSender(Machine[S]):
    """The side that writes requests: a ledger of the unanswered ones, oldest first."""

    _content_follows = False

    def __init__(self, name: str, table: Table[S], first: S, failed: S) -> None:
        super().__init__(name, table, first, failed)
        self._ledger: deque[Command] = deque()
        self._partial = bytearray()

    @property
    def unanswered(self) -> int:
        """How many requests wait for their response."""
        return len(self._ledger)

    def _request(self, command: Command, length: int = 0, headers: bytes = _NO_PADDING) -> bytes:
        if not 0 <= length < 1 << 64:
            self._misused(command_name(command), "a length of 64 bits", f"{length}")
        self._move_locally(command)
        self._ledger.append(command)
        return Request(command, length, headers).encode()

    def _request_exactly(self, command: Command, size: int, payload: bytes) -> bytes:
        """Header and payload of a request that carries `size` bytes."""
        if len(payload) != size:
            self._misused(command_name(command), f"{size} bytes", f"{len(payload)}")
        return self._request(command, size) + payload

    def _require_answers(self, command: str | None) -> None:
        if self._ledger:
            self._misused(command, "every request answered", f"{len(self._ledger)} unanswered")

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Answer]:
        """Take any number of bytes; the answers that are whole with them, in order.

        An Error, and the Ok to Complete or Abandon, are the last that count. What follows them is
        ignored, so that no stray byte behind the decisive answer can hide it from the caller.

        RemoteProtocolError for a response that nothing asked for, of a status other than Ok and
        Error, or with content where none belongs.
        """
        self._partial += data
        answers = []
        at = 0
        while not self._over and len(self._partial) - at >= RESPONSE_BYTES:
            answers.append(self._settle(Response.decode(self._partial[at : at + RESPONSE_BYTES])))
            at += RESPONSE_BYTES
        del self._partial[: len(self._partial) if self._over else at]
        return answers

    def _settle(self, response: Response) -> Answer:
        if not self._ledger:
            self._refuse(None, "no response", f"one of status {response.status}")
        command = self._ledger.popleft()
        name = command_name(command)
        if response.status not in (Status.OK, Status.ERROR):
            self._refuse(name, "status Ok or Error", f"status {response.status}")
        if response.length and not self._content_follows:
            self._refuse(name, "a response without content", f"{response.length} bytes of it")
        ok = response.status == Status.OK
        if not ok:
            self._move_locally(Signal.ERROR)
        elif command not in _STATELESS:
            self._move_locally(Signal.OK)
        return Answer(command=command, ok=ok, length=response.length, padding=response.padding)

    def receive_end(self) -> None:
        """The stream ended. RemoteProtocolError if an answer was due or the state wants more."""
        if (self._ledger or self._partial) and not self._over:
            name = command_name(self._ledger[0]) if self._ledger else None
            wants_tls = self._partial.startswith(TLS_ALERT)
            got = "a TLS alert: it speaks TLS only" if wants_tls else "end of stream"
            self._refuse(name, "a response", got)
        if not self._move(Signal.END):
            self._refuse(None, self._allowed(), "end of stream")

    def _refuse(
        self, command: str | None, expected: str, got: str, *, answer: bool = False
    ) -> NoReturn:
        self._partial.clear()
        super()._refuse(command, expected, got, answer=answer)
