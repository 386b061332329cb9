"""What is particular about a connection through TLS."""

import asyncio
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from aiomigrate.transport import (
    Connection,
    ConnectionLost,
    HandshakeFailed,
    Identity,
    Pace,
    destination_context,
    source_context,
)
from aiomigrate.transport import identity as contexts
from aiomigrate.transport.scratch import PIECE_BYTES
from aiomigrate.transport.tls import TlsChannel
from tests.support.handshakes import HeldHandshakes
from tests.transport.transport_pairs import settle
from tests.transport.vectors import PlainVector

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

Pair = tuple[Connection, Connection]


@pytest.fixture
def kind() -> str:
    return "tls"


class Foreign:
    """Another program's end: Python's own TLS on a blocking socket, in threads."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self.sock.sendall, data)

    def leave(self) -> None:
        """As Cloud Hypervisor does: without a close_notify."""
        socket.socket(fileno=self.sock.detach()).close()


@pytest.fixture
def forgiving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts begin with OpenSSL's option that takes an end without a close_notify for a clean
    one. Whether they do by themselves is up to the build and the configuration of Python and
    OpenSSL: where these tests run they may not.
    """
    load = contexts._load

    def load_forgiving(
        context: ssl.SSLContext, directory: str | os.PathLike[str], names: tuple[str, str]
    ) -> None:
        context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
        load(context, directory, names)

    monkeypatch.setattr(contexts, "_load", load_forgiving)


@pytest.fixture
async def foreign(certificates: Path) -> AsyncIterator[tuple[Connection, Foreign]]:
    """A destination of ours, and a client that is none of ours."""
    near, far = socket.socketpair()
    far.setblocking(False)
    near.settimeout(10)
    identity = Identity(await asyncio.to_thread(destination_context, certificates))
    connection = Connection(far, "peer", "", identity=identity)
    context = await asyncio.to_thread(source_context, certificates)
    shaking = asyncio.create_task(
        asyncio.to_thread(context.wrap_socket, near, server_hostname="127.0.0.1")
    )
    await connection.secure(10.0)
    other = Foreign(await shaking)
    yield connection, other
    connection.close()
    other.sock.close()
    identity.close()


async def test_what_write_now_has_taken_goes_with_the_next_write(pair: Pair) -> None:
    """The record is OpenSSL's and ours alone until then: the kernel had no room for all of it."""
    near, far = pair
    data = bytes(range(256)) * 1024
    taken = sum(iter(lambda: near.write_now(data), 0))
    assert near.written < taken
    reading = asyncio.create_task(far.read_exactly(taken))
    await near.write(b"")
    assert near.written == taken
    assert await reading == data * (taken // len(data))


async def test_what_write_now_cannot_hand_over_at_all_was_not_taken(pair: Pair) -> None:
    near, far = pair
    far.abort()
    assert await near.wait_hang_up(10.0)
    before = near.written
    with pytest.raises(ConnectionLost):
        near.write_now(b"complete")
    assert near.written == before


async def test_an_abort_hands_over_nothing_more(pair: Pair) -> None:
    near, far = pair
    data = bytes(PIECE_BYTES)
    taken = sum(iter(lambda: near.write_now(data), 0))
    sent = near.written
    near.abort()
    with pytest.raises(ConnectionLost):
        await far.read_exactly(taken)
    assert far.received <= sent


async def test_an_end_without_a_farewell_is_one_between_messages(
    foreign: tuple[Connection, Foreign],
) -> None:
    connection, other = foreign
    await other.send(b"message")
    assert await connection.read_exactly(7) == b"message"
    other.leave()
    assert await connection.read_some(1) == b""
    assert await connection.close_lingering(10.0)


READS: dict[str, Callable[[Connection], Awaitable[object]]] = {
    "read_exactly": lambda c: c.read_exactly(7),
    "read_into": lambda c: c.read_into(bytearray(7), Pace()),
    "read_vector": lambda c: c.read_vector(PlainVector([bytearray(7)]), Pace()),
}


@pytest.mark.parametrize("read", READS)
async def test_an_end_without_a_farewell_inside_of_a_message_is_a_lost_connection(
    forgiving: None, foreign: tuple[Connection, Foreign], read: str
) -> None:
    connection, other = foreign
    await other.send(b"mess")
    other.leave()
    with pytest.raises(ConnectionLost, match="without a TLS close_notify"):
        await READS[read](connection)


@pytest.mark.parametrize("make", [source_context, destination_context])
async def test_neither_side_forgives_an_end_without_a_farewell(
    forgiving: None, certificates: Path, make: Callable[[Path], ssl.SSLContext]
) -> None:
    context = await asyncio.to_thread(make, certificates)
    assert not context.options & ssl.OP_IGNORE_UNEXPECTED_EOF


async def test_an_end_inside_of_a_record_is_never_a_clean_one(
    foreign: tuple[Connection, Foreign],
) -> None:
    connection, other = foreign
    raw = socket.socket(fileno=other.sock.detach())
    raw.sendall(bytes.fromhex("1703030100") + bytes(100))
    raw.close()
    with pytest.raises(ConnectionLost, match="inside of a TLS record"):
        await connection.read_some(1)


async def test_the_beginning_of_a_record_counts_as_unread(
    foreign: tuple[Connection, Foreign],
) -> None:
    """What was asked at State: whether a lane is between two requests."""
    connection, other = foreign
    raw = socket.socket(fileno=other.sock.detach())
    with raw:
        raw.sendall(bytes.fromhex("1703030100") + bytes(100))
        reading = asyncio.create_task(connection.read_exactly(16))
        while not connection.unread():
            await asyncio.sleep(0)
        reading.cancel()


async def test_a_farewell_that_waits_does_not_count_as_content_that_waits(
    foreign: tuple[Connection, Foreign],
) -> None:
    connection, other = foreign
    await connection.write(b"abc")
    assert connection.acknowledged() < 3
    assert await asyncio.to_thread(other.sock.recv, 3) == b"abc"
    connection.end_stream()
    assert connection.acknowledged() == 3


async def test_bytes_that_were_changed_on_the_way_are_refused(
    foreign: tuple[Connection, Foreign],
) -> None:
    connection, other = foreign
    raw = socket.socket(fileno=other.sock.detach())
    with raw:
        raw.sendall(bytes.fromhex("1703030040") + bytes(64))
        with pytest.raises(ConnectionLost, match="bytes came that the peer has not sent"):
            await connection.read_some(1)
        with pytest.raises(ConnectionLost, match="bytes came that the peer has not sent"):
            await connection.read_some(1)


async def test_who_looks_for_unread_bytes_takes_none_from_who_waits_for_them(pair: Pair) -> None:
    """They are decrypted, so the socket is empty: it does not wake whoever waits for it."""
    near, far = pair
    reading = asyncio.create_task(far.read_exactly(5))
    await asyncio.sleep(0)
    near.write_now(b"hello")
    while not far.unread() and not reading.done():
        pass
    async with asyncio.timeout(10):
        assert await reading == b"hello"


async def test_messages_of_all_sizes_pass_each_other(pair: Pair) -> None:
    """One TLS object is written and read by two tasks."""
    near, far = pair
    sizes = random.Random(7)
    messages = [sizes.randbytes(sizes.randint(1, 40_000)) for _ in range(100)]

    async def say(connection: Connection) -> None:
        for message in messages:
            await connection.write(message)

    async def hear(connection: Connection) -> None:
        for message in messages:
            assert await connection.read_exactly(len(message)) == message

    async with asyncio.TaskGroup() as group:
        for end in pair:
            group.create_task(say(end))
            group.create_task(hear(end))
    assert near.written == far.received == sum(map(len, messages))


async def test_a_handshake_has_a_deadline(certificates: Path) -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    identity = Identity(await asyncio.to_thread(destination_context, certificates))
    connection = Connection(far, "peer", "", identity=identity)
    with pytest.raises(HandshakeFailed, match=r"it was not done in 0.05 s"):
        await connection.secure(0.05)
    assert connection.peer_certificate is None
    connection.close()
    identity.close()
    near.close()


async def test_a_step_of_a_handshake_keeps_its_descriptor(
    certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is cancelled, and however often: its number would be somebody else's by then."""
    near, far = socket.socketpair()
    far.setblocking(False)
    held = HeldHandshakes(monkeypatch)
    identity = Identity(await asyncio.to_thread(destination_context, certificates))
    connection = Connection(far, "peer", "", identity=identity)
    shaking = asyncio.create_task(connection.secure(10.0))
    await held.begun.wait()
    assert isinstance(connection._channel, TlsChannel)
    assert connection._channel._tls is not None
    descriptor = connection._channel._tls.fileno()
    for _ in range(3):
        shaking.cancel()
        await settle()
    connection.close()
    assert not shaking.done()
    os.fstat(descriptor)
    held.go_on()
    with pytest.raises(asyncio.CancelledError):
        await shaking
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    identity.close()
    near.close()


@pytest.mark.parametrize("writes", [True, False])
async def test_an_error_keeps_nobody_from_closing_the_buffer(pair: Pair, writes: bool) -> None:
    """The frames that it came through hold what they were called with."""
    near, far = pair
    channel = near._channel
    assert isinstance(channel, TlsChannel)
    vector = PlainVector([bytearray(4096) for _ in range(8)])
    if writes:
        far.abort()
        assert await near.wait_hang_up(10.0)
    else:
        far._sock.sendall(bytes.fromhex("1703030040") + bytes(64))
    with pytest.raises(ConnectionLost) as held:
        await (near.write_vector(vector) if writes else near.read_vector(vector))
    channel._identity.scratch.view.release()
    assert held.value.__cause__


async def test_closing_during_a_handshake_ends_it(certificates: Path) -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    identity = Identity(await asyncio.to_thread(destination_context, certificates))
    connection = Connection(far, "peer", "", identity=identity)
    shaking = asyncio.create_task(connection.secure(10.0))
    while not isinstance(connection._channel, TlsChannel) or not connection._reading.ready._waiter:
        await asyncio.sleep(0)
    connection.close()
    with pytest.raises(Exception, match="this side has closed it"):
        await shaking
    identity.close()
    near.close()
