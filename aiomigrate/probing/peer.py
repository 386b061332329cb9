"""One connection of a probe: any bytes out, and what comes of them.

A receiver may do anything, so nothing that it does is an error here: answers, the end of its
stream, a reset and silence are all described by a `Reaction`. Each answer is waited for as long as
the probe is patient.
"""

import asyncio
from dataclasses import dataclass
from enum import StrEnum

from aiomigrate.probing.vm import Range
from aiomigrate.protocol.wire import (
    RESPONSE_BYTES,
    Command,
    Request,
    Response,
    Status,
    encode_range,
)
from aiomigrate.transport import Connection, TransportError

__all__ = ["End", "Peer", "Reaction", "memory", "request"]

_READ_BYTES = 1 << 12
_NEVER_SENT = frozenset({Command.COMPLETE, Command.COMPLETE_PAUSED})


def request(command: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A request with its payload; `length` is what its header claims, if not the truth.

    ValueError for the requests that would give a VM away: a probe sends none.
    """
    if command in _NEVER_SENT:
        raise ValueError(f"a probe never sends command {command}")
    return Request(command, len(payload) if length is None else length).encode() + payload


def memory(*ranges: Range, content: int | None = None) -> bytes:
    """A Memory request of these ranges; all of its content, or `content` bytes of it. Zeros."""
    if content is None:
        content = sum(length for _, length in ranges)
    table = b"".join(encode_range(gpa, length) for gpa, length in ranges)
    return request(Command.MEMORY, table) + bytes(content)


class End(StrEnum):
    """How a receiver's stream stands."""

    OPEN = "open"
    CLOSED = "closed"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Reaction:
    """What came back."""

    answers: tuple[Response, ...]
    end: End
    waited_s: float
    """Since the probe began to listen."""
    stray_bytes: int = 0
    """Of an answer that never became whole."""

    @property
    def statuses(self) -> tuple[int, ...]:
        """The answers' statuses, in order."""
        return tuple(answer.status for answer in self.answers)

    @property
    def silent(self) -> bool:
        """Whether nothing came, and the connection still stands."""
        return not self.answers and self.end is End.OPEN

    def __str__(self) -> str:
        said = ", ".join(_status_name(status) for status in self.statuses)
        if self.stray_bytes:
            said = f"{said or 'no answer'}, {self.stray_bytes} bytes of one more"
        if self.end is End.OPEN:
            return said or f"no answer in {self.waited_s:.1f} s"
        return f"{said}, then {self.end}" if said else f"{self.end} without an answer"


def _status_name(status: int) -> str:
    if status in (Status.OK, Status.ERROR):
        return Status(status).name.capitalize()
    return f"an answer of status {status}"


class Peer:
    """A connection to the receiver."""

    def __init__(self, connection: Connection, patience_s: float) -> None:
        self._connection = connection
        self._patience_s = patience_s
        self._partial = bytearray()
        self._lost = False
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        """Send; a receiver that does not take it, or goes meanwhile, is met when it is read."""
        try:
            async with asyncio.timeout(self._patience_s):
                await self._connection.write(data)
        except TimeoutError:
            pass
        except TransportError:
            self._lost = True

    async def exchange(
        self, data: bytes, answers: int = 1, within: float | None = None
    ) -> Reaction:
        """Send, and read up to so many answers at the same time, each `within` seconds."""
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(self.send(data))
            reaction = await self.react(answers, within)
            sending.cancel()
        return reaction

    async def react(self, answers: int, within: float | None = None) -> Reaction:
        """Read up to so many answers, each `within` seconds (default: as the probe is patient)."""
        patience = self._patience_s if within is None else within
        begun = self._loop.time()
        got: list[Response] = []
        end = End.OPEN
        while len(got) < answers and end is End.OPEN:
            try:
                async with asyncio.timeout(patience):
                    end = await self._fill()
            except TimeoutError:
                break
            if end is End.OPEN:
                got.append(Response.decode(self._partial[:RESPONSE_BYTES]))
                del self._partial[:RESPONSE_BYTES]
        return Reaction(tuple(got), end, self._loop.time() - begun, len(self._partial))

    async def until_end(self, within: float) -> Reaction:
        """Read whatever comes until the receiver ends the connection, or for `within` seconds."""
        begun = self._loop.time()
        got: list[Response] = []
        end = End.OPEN
        while end is End.OPEN and (left := begun + within - self._loop.time()) > 0:
            reaction = await self.react(1, left)
            got += reaction.answers
            end = reaction.end
        return Reaction(tuple(got), end, self._loop.time() - begun, len(self._partial))

    async def _fill(self) -> End:
        """Wait for a whole answer, or the end."""
        while len(self._partial) < RESPONSE_BYTES:
            try:
                data = await self._connection.read_some(_READ_BYTES)
            except TransportError:
                return End.RESET
            if not data:
                # A reset that a write has met is a plain end for who reads (socket(7), SO_ERROR).
                return End.RESET if self._lost else End.CLOSED
            self._partial += data
        return End.OPEN

    def end(self) -> None:
        """End our stream: the receiver reads an end of stream, and what it does can be read."""
        try:
            self._connection.end_stream()
        except TransportError:
            self._lost = True

    def reset(self) -> None:
        """Reset the connection (on a unix socket: close it)."""
        self._connection.abort()

    async def refusal(self, within: float) -> str:
        """Why the receiver ends a connection that has said nothing yet, or nothing if it keeps it
        for so long.
        """
        try:
            async with asyncio.timeout(within):
                data = await self._connection.read_some(_READ_BYTES)
        except TimeoutError:
            return ""
        except TransportError as error:
            return str(error)
        self._partial += data
        return "" if data else f"{self._connection.name}: closes the connection"

    async def stands(self, within: float) -> bool:
        """Whether the receiver keeps the connection for so long."""
        return not await self._connection.wait_hang_up(within)
