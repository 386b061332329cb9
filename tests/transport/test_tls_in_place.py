"""OpenSSL on scattered memory itself: what happens in the middle of it is told as elsewhere."""

import asyncio
import ctypes
import errno
import importlib
import mmap
import random
import socket
import ssl
import tempfile
from collections.abc import Callable
from typing import Any

import pytest

from aiomigrate.memory.iovec import IoVector
from aiomigrate.transport import (
    Connection,
    ConnectionLost,
    EndOfStream,
    MemoryFault,
    Pace,
)
from aiomigrate.transport.openssl import OpenSsl
from aiomigrate.transport.scratch import PIECE_BYTES, Scratch
from aiomigrate.transport.tls import TlsChannel
from tests.transport.transport_pairs import Pair
from tests.transport.vectors import PlainVector

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

RECORD_BYTES = 1 << 14


@pytest.fixture
def kind() -> str:
    return "tls"


@pytest.fixture
def uncopied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is copied by nobody but OpenSSL."""

    def refuse(*_: object) -> None:
        raise AssertionError("memory was copied")

    monkeypatch.setattr(Scratch, "gather", refuse)
    monkeypatch.setattr(Scratch, "scatter", refuse)


def random_pieces(count: int) -> list[bytearray]:
    return [bytearray(random.Random(number).randbytes(PIECE_BYTES)) for number in range(count)]


def empty_pieces(count: int) -> list[bytearray]:
    return [bytearray(PIECE_BYTES) for _ in range(count)]


def errors_left() -> int:
    """OpenSSL's last error of this thread that nobody has taken, or 0."""
    library = ctypes.CDLL(importlib.import_module("_ssl").__file__)
    library["ERR_peek_error"].restype = ctypes.c_ulong
    return int(library["ERR_peek_error"]())


async def received(connection: Connection, nbytes: int) -> None:
    async with asyncio.timeout(10):
        while connection.received < nbytes:
            await asyncio.sleep(0)


async def test_here_it_is_found(pair: Pair) -> None:
    """Else every test of this module would be one of copies."""
    for connection in pair:
        assert isinstance(connection._channel, TlsChannel)
        assert connection._channel._openssl is not None


async def test_it_is_not_believed_where_the_context_is_not_beside_it() -> None:
    class Other:
        _sslobj = object()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    assert OpenSsl.of(Other()) is None  # type: ignore[arg-type]


async def test_memory_is_not_copied(pair: Pair, uncopied: None) -> None:
    near, far = pair
    sent, filled = random_pieces(16), empty_pieces(16)
    async with asyncio.TaskGroup() as group:
        group.create_task(near.write_vector(IoVector.of_buffers(sent), Pace()))
        group.create_task(far.read_vector(IoVector.of_buffers(filled), Pace()))
    assert filled == sent
    assert near.written == far.received == 16 * PIECE_BYTES


async def test_a_reader_that_is_late_loses_and_gets_nothing_twice(
    pair: Pair, uncopied: None
) -> None:
    """The socket is full in the middle of a record: its content is sent, and the rest follows."""
    near, far = pair
    sent, filled = random_pieces(64), empty_pieces(64)
    writing = asyncio.create_task(near.write_vector(IoVector.of_buffers(sent)))
    while not near._writing.ready._waiter and not writing.done():
        await asyncio.sleep(0)
    assert near._channel.owed == RECORD_BYTES
    assert near.written % RECORD_BYTES == 0
    await far.read_vector(IoVector.of_buffers(filled))
    await writing
    assert filled == sent
    assert near._channel.owed == 0


async def test_small_pieces_are_copied_together(pair: Pair) -> None:
    near, far = pair
    data = bytearray(random.Random(1).randbytes(64 * 4096))
    sent = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    filled = [bytearray(4096) for _ in sent]
    async with asyncio.TaskGroup() as group:
        group.create_task(near.write_vector(IoVector.of_buffers(sent)))
        group.create_task(far.read_vector(IoVector.of_buffers(filled)))
    assert filled == sent


@pytest.mark.parametrize("writes", [True, False])
async def test_memory_that_may_go_away_is_touched_by_the_kernel_only(
    pair: Pair, writes: bool
) -> None:
    near, far = pair
    await far.write(bytes(PIECE_BYTES))
    with tempfile.TemporaryFile() as file:
        file.truncate(PIECE_BYTES)
        vector = PlainVector([mmap.mmap(file.fileno(), PIECE_BYTES)], steady=False)
        file.truncate(0)
        with pytest.raises(MemoryFault):
            await (near.write_vector(vector) if writes else near.read_vector(vector))


async def test_a_reset_in_the_middle_has_its_errno(pair: Pair) -> None:
    near, far = pair
    reading = asyncio.create_task(far.read_vector(IoVector.of_buffers(empty_pieces(2))))
    await near.write(bytes(PIECE_BYTES))
    await received(far, PIECE_BYTES)
    near.abort()
    with pytest.raises(ConnectionLost) as caught:
        await reading
    assert caught.value.errno == errno.ECONNRESET
    assert errors_left() == 0


async def test_an_end_in_the_middle_says_how_much_came(pair: Pair) -> None:
    near, far = pair
    await near.write(bytes(PIECE_BYTES + 5))
    near.close()
    with pytest.raises(EndOfStream) as caught:
        await far.read_vector(IoVector.of_buffers(empty_pieces(2)))
    assert caught.value.expected == 2 * PIECE_BYTES
    assert caught.value.received == PIECE_BYTES + 5
    assert errors_left() == 0


def leave(sock: socket.socket) -> None:
    """As Cloud Hypervisor does: without a close_notify."""
    sock.shutdown(socket.SHUT_WR)


def lie(sock: socket.socket) -> None:
    sock.sendall(bytes.fromhex("1703030040") + bytes(64))


BREACHES: list[tuple[Callable[[socket.socket], None], str]] = [
    (leave, "without a TLS close_notify"),
    (lie, "bytes came that the peer has not sent"),
]


@pytest.mark.parametrize(("breach", "words"), BREACHES)
@pytest.mark.parametrize("begun", [0, 5, PIECE_BYTES + 5])
async def test_a_breach_in_the_middle_is_told_and_leaves_no_error_behind(
    pair: Pair, begun: int, breach: Callable[[socket.socket], None], words: str
) -> None:
    """Another connection of the thread would take an error that is left for its own."""
    near, far = pair
    await near.write(bytes(begun))
    channel: Any = near._channel
    breach(channel._sock)
    with pytest.raises(ConnectionLost, match=words):
        await far.read_vector(IoVector.of_buffers(empty_pieces(2)))
    assert far.received == begun
    assert errors_left() == 0


async def test_the_beginning_of_a_record_in_the_middle_counts_as_unread(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = pair
    tried = asyncio.Event()
    decrypt = TlsChannel._decrypt_in_place

    def counted(*arguments: Any) -> int:
        tried.set()
        return decrypt(*arguments)

    monkeypatch.setattr(TlsChannel, "_decrypt_in_place", counted)
    reading = asyncio.create_task(far.read_vector(IoVector.of_buffers(empty_pieces(2))))
    await tried.wait()
    tried.clear()
    channel: Any = near._channel
    channel._sock.sendall(bytes.fromhex("1703030100") + bytes(100))
    await tried.wait()  # OpenSSL holds it now, and the socket nothing
    assert far.unread()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_after_a_breach_nothing_can_be_written(pair: Pair) -> None:
    near, far = pair
    channel: Any = near._channel
    lie(channel._sock)
    with pytest.raises(ConnectionLost):
        await far.read_some(1)
    with pytest.raises(ConnectionLost) as caught:
        await far.write_vector(IoVector.of_buffers(empty_pieces(1)))
    assert caught.value.errno == errno.EPIPE
    assert far.written == 0
    assert errors_left() == 0


async def test_after_our_farewell_nothing_can_be_written(pair: Pair) -> None:
    near, _ = pair
    near.end_stream()
    with pytest.raises(ConnectionLost) as caught:
        await near.write_vector(IoVector.of_buffers(empty_pieces(1)))
    assert caught.value.errno == errno.EPIPE
    assert errors_left() == 0


async def test_a_peer_that_is_gone_is_a_lost_connection(pair: Pair) -> None:
    near, far = pair
    far.abort()
    assert await near.wait_hang_up(10.0)
    with pytest.raises(ConnectionLost) as caught:
        await near.write_vector(IoVector.of_buffers(empty_pieces(2)))
    assert caught.value.errno in {errno.EPIPE, errno.ECONNRESET}
    assert errors_left() == 0


async def test_content_that_comes_after_our_farewell_is_read(pair: Pair) -> None:
    near, far = pair
    sent, filled = random_pieces(4), empty_pieces(4)
    await far.write(sent[0])
    near.end_stream()
    near.end_stream()
    for piece in sent[1:]:
        await far.write(piece)
    await near.read_vector(IoVector.of_buffers(filled))
    assert filled == sent
    assert await far.read_some(1) == b""
    far.end_stream()
    with pytest.raises(EndOfStream):
        await near.read_vector(IoVector.of_buffers(empty_pieces(1)))
    assert await near.read_some(1) == b""


async def test_an_end_inside_of_a_record_is_told_as_one(pair: Pair) -> None:
    near, far = pair
    await near.write(bytes(5))
    channel: Any = near._channel
    reading = asyncio.create_task(far.read_vector(IoVector.of_buffers(empty_pieces(2))))
    await received(far, 5)
    channel._sock.sendall(bytes.fromhex("1703030100") + bytes(100))
    channel._sock.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionLost, match="inside of a TLS record"):
        await reading
