"""A small receiver that does everything right, or one thing wrong: what a probe is tried on.

It takes a migration up to Complete, which it knows nothing of, and writes down every byte that it
is sent. Each flaw in `FLAWS` breaks it in one way. It imports nothing of aiomigrate, and runs on
the test's own event loop.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from tests.support.sockets import free_port

__all__ = ["FLAWS", "MiniReceiver"]

START, CONFIG, STATE, MEMORY, ABANDON, MEMORY_FD, PAGE_FAULT = 1, 2, 3, 4, 6, 7, 9
OK, ERROR = 1, 2
_KNOWN = frozenset(range(10))
_MOST_LANES = 128
_LONGEST = 1 << 20
_PIECE = 1 << 16
_CHANGES = 0b111111
"""The extensions that exist; it accepts none of them."""

FLAWS = frozenset({
    "the first connection is the migration",
    "closes on an unknown command",
    "takes any version",
    "accepts extensions that nobody offered",
    "accepts extensions that do not exist",
    "reads the payload of Start as a request",
    "waits for the payload of Start",
    "refuses State",
    "takes Config twice",
    "takes State without memory",
    "refuses Abandon",
    "waits for what Config announces",
    "takes any JSON",
    "breaks on a broken table",
    "does not check ranges",
    "refuses overlapping ranges",
    "answers the first of requests sent at once",
    "announces content",
    "resets over unread content",
    "keeps a connection cut in content",
    "hangs after a reset",
    "waits for a sender that stops",
    "takes no lanes",
    "fails with a stranger",
    "fails when a lane ends",
    "forgets a broken lane",
    "forgets a busy lane",
    "drops a fault connection",
    "takes any number of lanes",
})  # fmt: skip

T = TypeVar("T")


class _Refused(Exception):
    """Answer Error, and let it be read."""


class _Over(Exception):
    """The migration has ended."""


class MiniReceiver:
    """Listens on a port of its own each time it is started; stops at the end of a migration.

    `start`, `failure`, `processes` and `fresh` are what a probe wants of who starts a receiver.
    """

    fresh = True

    def __init__(self, flaw: str = "", *, patience_s: float = 0.2) -> None:
        assert not flaw or flaw in FLAWS, flaw
        self._flaw = flaw
        self._patience_s = patience_s
        self.port = free_port()
        self.streams: list[bytearray] = []
        """What came on each connection, of all migrations."""
        self.starts = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self.stop()
        self.starts += 1
        self._stage = "established"
        self._hangs = False
        self._ranges: list[tuple[int, int]] = []
        self._filled = False
        self._lanes = 0
        self._busy = 0
        self._fault = False
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def failure(self) -> str:
        return ""

    def processes(self) -> list[int]:
        return []

    async def stop(self) -> None:
        self._end()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _end(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def _is(self, flaw: str) -> bool:
        return self._flaw == flaw

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(_Wire(self, reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, wire: "_Wire") -> None:
        """One connection to its end; `_Over` ends all of them."""
        try:
            if self._hangs:
                await asyncio.Event().wait()
            if self._is("the first connection is the migration") and self._stage == "established":
                self._stage = "connected"
                await self._first(wire)
            elif self._stage == "established":
                await self._first(wire)
            else:
                await self._additional(wire)
        except _Over:
            self._end()
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
            if wire.main and self._is("hangs after a reset") and _is_reset(error):
                self._hangs = True
            elif wire.main or wire.busy or self._stage == "connected":
                self._end()
        except asyncio.CancelledError:
            pass
        finally:
            wire.close()

    # The main connection

    async def _first(self, wire: "_Wire") -> None:
        command, headers, length = await wire.header()
        if command == ABANDON:
            await self._abandoned(wire)
        if command == START and length and self._is("waits for the payload of Start"):
            await asyncio.Event().wait()
        version = int.from_bytes(headers[:2], "little")
        wrong = version and not self._is("takes any version")
        reads_on = length == 16 and self._is("reads the payload of Start as a request")
        if self._is("closes on an unknown command") and command not in _KNOWN:
            return
        if command != START or wrong or (length and not reads_on):
            await wire.refuse()
            if self._stage == "connected":
                raise _Over
            return
        wire.main = True
        self._stage = "started"
        await wire.answer(OK, padding=self._accepted(headers[2:]))
        while True:
            try:
                await self._request(wire)
            except _Refused:
                await wire.refuse()
                raise _Over from None

    def _accepted(self, offer: bytes) -> bytes:
        bits = int.from_bytes(offer, "little")
        if self._is("accepts extensions that nobody offered"):
            return bytes([1, 0, 0, 0])
        if self._is("accepts extensions that do not exist"):
            return (bits & ~_CHANGES).to_bytes(4, "little")
        return bytes(4)

    async def _request(self, wire: "_Wire") -> None:
        command, _, length = await wire.header()
        if command not in _KNOWN and self._is("closes on an unknown command"):
            raise _Over
        if command == ABANDON:
            await self._abandoned(wire)
        elif (self._stage, command) == ("started", CONFIG) or (
            command == CONFIG and self._stage == "configured" and self._is("takes Config twice")
        ):
            await self._config(wire, length)
        elif (self._stage, command) == ("configured", MEMORY):
            await self._memory(wire, length)
            self._filled = True
        elif (self._stage, command) == ("configured", STATE):
            await self._state(wire, length)
        else:
            raise _Refused
        await wire.answer(OK, length=4 if self._is("announces content") else 0)
        if command == MEMORY and self._is("answers the first of requests sent at once"):
            wire.forget_unread()

    async def _abandoned(self, wire: "_Wire") -> None:
        await wire.answer(ERROR if self._is("refuses Abandon") else OK)
        raise _Over

    async def _config(self, wire: "_Wire", length: int) -> None:
        if self._is("waits for what Config announces") and length > _LONGEST:
            await asyncio.Event().wait()
        if not 0 < length <= _LONGEST:
            raise _Refused
        try:
            document = json.loads(await wire.read(length))
        except ValueError:
            if not self._is("takes any JSON"):
                raise _Refused from None
            document = {"memory_manager_data": {"guest_ram_mappings": []}}
        mappings = document["memory_manager_data"]["guest_ram_mappings"]
        self._ranges = [(entry["gpa"], entry["size"]) for entry in mappings]
        self._stage = "configured"

    async def _state(self, wire: "_Wire", length: int) -> None:
        for _ in range(5):  # whatever lies in the lanes' sockets is read before
            await asyncio.sleep(0)
        missing = not self._filled and not self._is("takes State without memory")
        busy = self._busy and not self._is("forgets a busy lane")
        if missing or busy or self._fault or not 0 < length <= _LONGEST:
            raise _Refused
        if self._is("refuses State"):
            raise _Refused
        await wire.read(length)
        self._stage = "restored"

    # Memory, on any connection

    async def _memory(self, wire: "_Wire", length: int) -> None:
        if length % 16 and self._is("breaks on a broken table"):
            raise _Over
        if length % 16 or length > _LONGEST:
            raise _Refused
        table = list(struct.iter_unpack("<QQ", await wire.read(length)))
        if not self._is("does not check ranges") and not all(map(self._inside, table)):
            if self._is("resets over unread content") and table[0][1] > _PIECE:
                await wire.answer(ERROR)
                wire.reset()
                raise _Over
            raise _Refused
        if len(set(table)) < len(table) and self._is("refuses overlapping ranges"):
            raise _Refused
        if wire.stranger:
            self._join(wire)
        try:
            await wire.skip(sum(size for _, size in table))
        except asyncio.IncompleteReadError:
            if wire.main and self._is("keeps a connection cut in content"):
                await asyncio.Event().wait()
            raise

    def _inside(self, entry: tuple[int, int]) -> bool:
        gpa, size = entry
        return any(low <= gpa and gpa + size <= low + long for low, long in self._ranges)

    def _join(self, wire: "_Wire") -> None:
        if self._lanes >= _MOST_LANES and not self._is("takes any number of lanes"):
            raise _Refused
        self._lanes += 1
        wire.stranger = False

    # Additional connections

    async def _additional(self, wire: "_Wire") -> None:
        wire.stranger = True
        number = int.from_bytes(await wire.read(2), "little")
        if number == 2:
            self._fault = not self._is("drops a fault connection")
            if self._fault:
                await asyncio.Event().wait()
        elif number in (1, 4) and not self._is("takes no lanes"):
            await self._lane(wire, b"" if number == 1 else struct.pack("<H", number))
        elif number not in (1, 2, 4) and self._is("fails with a stranger"):
            raise _Over

    async def _lane(self, wire: "_Wire", begun: bytes) -> None:
        while True:
            try:
                command, _, length = await wire.header(begun)
            except asyncio.IncompleteReadError as error:
                if not error.partial and self._is("fails when a lane ends"):
                    raise _Over from None
                raise
            begun = b""
            self._busy += 1
            wire.busy = not self._is("forgets a broken lane")
            try:
                if command != MEMORY:
                    raise _Refused
                await self._memory(wire, length)
            except _Refused:
                await wire.refuse()
                return
            finally:
                self._busy -= 1
            wire.busy = False
            await wire.answer(OK)


def _is_reset(error: Exception) -> bool:
    return isinstance(error, ConnectionResetError)


class _Wire:
    """A connection of it; whatever is read is written down."""

    def __init__(
        self,
        receiver: MiniReceiver,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._receiver = receiver
        self._reader = reader
        self._writer = writer
        self._record = bytearray()
        receiver.streams.append(self._record)
        self.main = False
        self.stranger = False
        self.busy = False
        """In the middle of a request of a lane."""

    async def _timely(self, reading: Awaitable[T]) -> T:
        if self._receiver._is("waits for a sender that stops"):
            return await reading
        async with asyncio.timeout(self._receiver._patience_s):
            return await reading

    async def header(self, begun: bytes = b"") -> tuple[int, bytes, int]:
        """Waits without limit for its first byte."""
        if not begun:
            begun = await self._reader.readexactly(1)
            self._record += begun
        command, headers, length = struct.unpack("<H6sQ", begun + await self.read(16 - len(begun)))
        return command, headers, length

    async def read(self, length: int) -> bytes:
        data = await self._timely(self._reader.readexactly(length))
        self._record += data
        return data

    async def skip(self, length: int) -> None:
        while length:
            length -= len(await self.read(min(length, _PIECE)))

    def forget_unread(self) -> None:
        """Lose what has come already."""
        self._reader._buffer.clear()  # type: ignore[attr-defined]  # there is no other way

    async def answer(self, status: int, length: int = 0, padding: bytes = b"") -> None:
        self._writer.write(struct.pack("<H6sQ", status, padding.ljust(6, b"\0"), length))
        await self._writer.drain()

    async def refuse(self) -> None:
        """Error, and a close that lingers until the sender has read it."""
        await self.answer(ERROR)
        self._writer.write_eof()
        while data := await self._reader.read(_PIECE):
            self._record += data

    def reset(self) -> None:
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        with suppress(RuntimeError):
            self._writer.close()
