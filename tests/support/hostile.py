"""The other end of a migration, byte for byte as a test wants it: raw sockets on the running loop.

`Raw` is a connection that sends anything and says what it was answered and how the connection
ended. `Server` takes the connections of a source. Nothing here shares code with aiomigrate, and no
read or write has a time of its own: a virtual clock moves only by the engine's deadlines.
"""

import asyncio
import select
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Self

from tests.support import sockets
from tests.support.image import PAGE, Mapping
from tests.support.peer import COMPLETE, CONFIG, MEMORY, START, STATE
from tests.support.vms import STATE_JSON, config_of

__all__ = [
    "ERROR",
    "OK",
    "PAGE_FAULT",
    "RAM",
    "ROLE_FAULT",
    "ROLE_MEMORY",
    "SMALL",
    "SMALL_CONFIG",
    "Raw",
    "Server",
    "memory",
    "migrate_whole",
    "raw_sources",
    "request",
    "response",
    "table",
]

PAGE_FAULT = 9
ROLE_MEMORY, ROLE_FAULT = struct.pack("<H", 1), struct.pack("<H", 2)
# Two mappings that touch, and one far away.
SMALL = (
    Mapping(0, 0, 64 * PAGE, "mem0", virtio_mem=False, file_offset=0),
    Mapping(1, 64 * PAGE, 16 * PAGE, "mem1", virtio_mem=False, file_offset=0),
    Mapping(2, 4 << 30, 16 * PAGE, "mem1", virtio_mem=False, file_offset=0),
)
RAM = sum(mapping.size for mapping in SMALL)
SMALL_CONFIG = config_of(SMALL)
_PIECE = 1 << 18


def request(
    command: int, payload: bytes = b"", *, length: int | None = None, headers: bytes = bytes(6)
) -> bytes:
    """A request; `length` is what its header claims, if not the truth."""
    claimed = len(payload) if length is None else length
    return struct.pack("<H6sQ", command, headers, claimed) + payload


def table(ranges: Iterable[tuple[int, int]]) -> bytes:
    return b"".join(struct.pack("<QQ", gpa, length) for gpa, length in ranges)


def memory(ranges: Sequence[tuple[int, int]], content: bytes | None = None) -> bytes:
    """A Memory; without `content`, each range is filled with its number (from 1)."""
    if content is None:
        content = b"".join(bytes([n]) * length for n, (_, length) in enumerate(ranges, 1))
    return request(MEMORY, table(ranges)) + content


def response(status: int, length: int = 0) -> bytes:
    return struct.pack("<H6xQ", status, length)


OK, ERROR = response(1), response(2)


class Raw:
    """A connection of a hostile peer; a context manager that closes it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, address: object, local: str = "") -> Self:
        """Connect to "tcp:host:port", from the address `local` if one is given."""
        host, _, port = str(address).removeprefix("tcp:").rpartition(":")
        sock = socket.socket()
        try:
            sock.setblocking(False)
            if local:
                sock.bind((local, 0))
            await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    @property
    def name(self) -> str:
        """What the engine calls this connection where it accepted it."""
        host, port = self._sock.getsockname()[:2]
        return f"tcp:{host}:{port}"

    async def send(self, data: bytes | memoryview) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def send_in_vain(self, data: bytes | memoryview) -> None:
        """Send what the other end may not want to the end."""
        try:
            await self.send(data)
        except OSError:
            return

    async def receive(self, length: int) -> bytes:
        """`length` bytes, or what came of them before the end of the stream or a reset."""
        data = bytearray()
        try:
            while len(data) < length:
                piece = await self._loop.sock_recv(self._sock, min(_PIECE, length - len(data)))
                if not piece:
                    break
                data += piece
        except ConnectionResetError:
            pass
        return bytes(data)

    async def rest(self) -> tuple[bytes, str]:
        """What still comes, and how that ends: "eof" or "reset"."""
        data = bytearray()
        try:
            while piece := await self._loop.sock_recv(self._sock, _PIECE):
                data += piece
        except OSError:
            return bytes(data), "reset"
        return bytes(data), "eof"

    def unread(self) -> bool:
        """Whether something lies there to be received, an end of stream included."""
        return bool(select.select([self._sock], [], [], 0)[0])

    async def ask(self, data: bytes) -> None:
        """Send one request, which is to be answered with Ok."""
        await self.send(data)
        answer = await self.receive(16)
        assert answer == OK, answer

    def end(self) -> None:
        """Let the other end read an end of stream."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        if reset:
            no_linger = struct.pack("ii", 1, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def migrate_whole(address: object) -> bytes:
    """A whole good migration of SMALL with one connection: the content of its first page."""
    with await Raw.connect(address) as raw:
        await raw.ask(request(START))
        await raw.ask(request(CONFIG, SMALL_CONFIG))
        await raw.ask(memory([(0, PAGE), (63 * PAGE, PAGE)], b"\xc5" * 2 * PAGE))
        await raw.ask(request(STATE, STATE_JSON))
        await raw.ask(request(COMPLETE))
        return b"\xc5" * PAGE


class Server:
    """Listens for a source. `receive_buffer` is SO_RCVBUF of what it accepts."""

    def __init__(self, receive_buffer: int | None = None) -> None:
        self._listener = sockets.listen("tcp:127.0.0.1:0")
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.setblocking(False)
        self.address = sockets.text_of(self._listener)

    async def accept(self) -> Raw:
        sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        return Raw(sock)

    async def up_to(self, command: int, start: bytes = OK) -> Raw:
        """A source's connection that has sent `command`: all before that was answered with Ok, and
        Start with `start`.
        """
        raw = await self.accept()
        while (got := (await self.take_memory(raw))[0]) != command:
            assert got != -1, f"it ended before {command:#x}"
            await raw.send(start if got == START else OK)
        return raw

    async def request(self, raw: Raw) -> tuple[int, bytes]:
        """The next request without content: its command and payload; (-1, b"") at the end."""
        header = await raw.receive(16)
        if len(header) < 16:
            return -1, b""
        command, length = struct.unpack("<H6xQ", header)
        return command, await raw.receive(length)

    async def take_memory(self, raw: Raw) -> tuple[int, bytes]:
        """A request, with the content that follows it if it is a Memory."""
        command, payload = await self.request(raw)
        if command == MEMORY:
            await raw.receive(sum(size for _, size in struct.iter_unpack("<QQ", payload)))
        return command, payload

    def close(self) -> None:
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@asynccontextmanager
async def raw_sources(address: object, count: int, local: str = "") -> AsyncIterator[list[Raw]]:
    """`count` connections that have said nothing yet."""
    raws: list[Raw] = []
    try:
        while len(raws) < count:
            raws.append(await Raw.connect(address, local))
        yield raws
    finally:
        for raw in raws:
            raw.close()
