"""The contract of a connection; every case on both loops and over every kind of address."""

import asyncio
import errno
import itertools
import mmap
import os
import random
import socket
import tempfile
from collections.abc import Awaitable, Callable

import pytest

from aiomigrate.transport import (
    BusyError,
    Connection,
    ConnectionClosed,
    ConnectionLost,
    EndOfStream,
    MemoryFault,
    Pace,
)
from tests.transport.vectors import PlainVector

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

Pair = tuple[Connection, Connection]
Operation = Callable[[Connection], Awaitable[object]]
MIB = 1 << 20


def scattered(data: bytes) -> list[bytearray]:
    """`data` in pieces of 1 to 9,000 bytes."""
    sizes = random.Random(5)
    pieces = []
    while data:
        size = sizes.randint(1, 9000)
        pieces.append(bytearray(data[:size]))
        data = data[size:]
    return pieces


def assert_idle(connection: Connection) -> None:
    """Nothing of the connection is on the loop."""
    loop = asyncio.get_running_loop()
    assert not loop.remove_reader(connection._fd)
    assert not loop.remove_writer(connection._fd)


async def settle(turns: int = 5) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def fill(connection: Connection) -> int:
    """Write until the socket takes no more: how much was taken."""
    data = bytes(MIB)
    return sum(iter(lambda: connection.write_now(data), 0))


async def read_filled(near: Connection, far: Connection, nbytes: int) -> None:
    """Read what `fill` has written; TLS hands its rest over with the next write."""
    async with asyncio.TaskGroup() as group:
        group.create_task(near.write(b""))
        group.create_task(far.read_exactly(nbytes))


async def test_bytes_arrive_as_they_were_sent(pair: Pair) -> None:
    near, far = pair
    data = random.Random(1).randbytes(3 * MIB + 17)
    target = bytearray(len(data))
    async with asyncio.TaskGroup() as group:
        group.create_task(near.write(data))
        group.create_task(far.read_into(target))
    assert target == data
    assert near.written == far.received == len(data)
    async with asyncio.TaskGroup() as group:
        group.create_task(far.write(memoryview(data)))
        read = group.create_task(near.read_exactly(len(data)))
    assert read.result() == data
    assert_idle(near)
    assert_idle(far)


async def test_vectors_arrive_as_they_were_sent(pair: Pair) -> None:
    near, far = pair
    data = random.Random(2).randbytes(9 * MIB + 5)
    source = PlainVector(scattered(data))
    target = PlainVector(scattered(bytes(len(data) - 9)))
    async with asyncio.TaskGroup() as group:
        group.create_task(near.write_vector(source, Pace()))
        group.create_task(far.read_vector(target, Pace()))
    assert b"".join(target.pieces) == data[:-9]
    assert await far.read_some(100) == data[-9:]
    assert max(source.asked + target.asked) <= MIB


async def test_both_directions_run_at_once(pair: Pair) -> None:
    data = random.Random(3).randbytes(4 * MIB)
    async with asyncio.TaskGroup() as group:
        reads = [group.create_task(end.read_exactly(len(data))) for end in pair]
        for end in pair:
            group.create_task(end.write(data))
    assert [read.result() for read in reads] == [data, data]


async def test_a_call_that_moved_little_makes_the_next_offer_small(pair: Pair, kind: str) -> None:
    if kind == "tls":
        pytest.skip("TLS decrypts what has come, and asks the vector for the room for that")
    near, far = pair
    vector = PlainVector([bytearray(4096) for _ in range(1024)])
    reading = asyncio.create_task(far.read_vector(vector))
    await near.write(b"x" * 10)
    await settle(20)
    assert vector.asked[-1] == 65536
    await near.write(bytes(4 * MIB - 10))
    await reading


async def test_read_exactly_nothing_waits_for_nothing(pair: Pair) -> None:
    for end in pair:
        assert await end.read_exactly(0) == b""
        await end.write(b"")


async def test_rest_within_and_pace_exclude_each_other(pair: Pair) -> None:
    with pytest.raises(ValueError, match="exclude"):
        await pair[0].read_exactly(1, rest_within=1.0, pace=Pace())


async def test_read_some_gives_what_is_there_and_then_the_end(pair: Pair) -> None:
    near, far = pair
    await near.write(b"abc")
    assert await far.read_some(2) == b"ab"
    assert far.unread() == 1
    assert await far.read_some(100) == b"c"
    near.close()
    assert await far.read_some(100) == b""


@pytest.mark.parametrize("sent", [0, 1, 15])
async def test_an_end_of_stream_says_how_much_came(pair: Pair, sent: int) -> None:
    near, far = pair
    await near.write(bytes(sent))
    near.close()
    with pytest.raises(EndOfStream) as caught:
        await far.read_exactly(16)
    assert (caught.value.received, caught.value.expected) == (sent, 16)
    assert caught.value.connection == far.name


async def test_an_end_of_stream_inside_a_buffer_says_how_much_came(pair: Pair) -> None:
    near, far = pair
    await near.write(bytes(5))
    near.close()
    with pytest.raises(EndOfStream) as caught:
        await far.read_into(bytearray(8))
    assert (caught.value.received, caught.value.expected) == (5, 8)
    vector = PlainVector([bytearray(8)])
    with pytest.raises(EndOfStream):
        await far.read_vector(vector)


async def test_an_abort_resets_the_peer(pair: Pair) -> None:
    near, far = pair
    near.abort()
    if far.name.startswith("unix:"):
        assert await far.read_some(1) == b""
    else:
        with pytest.raises(ConnectionLost) as caught:
            await far.read_some(1)
        assert caught.value.errno == errno.ECONNRESET
        assert isinstance(caught.value.__cause__, OSError)
    near.abort()


async def test_writing_to_a_peer_that_is_gone_is_a_lost_connection(pair: Pair) -> None:
    near, far = pair
    far.abort()
    with pytest.raises(ConnectionLost) as caught:
        await near.write(bytes(MIB))
    assert caught.value.errno in {errno.EPIPE, errno.ECONNRESET}
    with pytest.raises(ConnectionLost):
        near.write_now(b"x")
    with pytest.raises(ConnectionLost):
        await near.write_vector(PlainVector([bytearray(1)]))


async def test_write_now_takes_what_the_kernel_takes(pair: Pair, kind: str) -> None:
    near, far = pair
    taken = await fill(near)
    assert 0 < near.written <= taken
    assert near.write_now(b"x") == 0
    waiting = asyncio.create_task(near.writable(60.0))
    await settle()
    assert not waiting.done()
    piece = MIB // 4 if kind == "tls" else 0  # perhaps not all of the last one has left
    await far.read_exactly(near.written - piece)
    await waiting
    await read_filled(near, far, taken - far.received)
    assert near.written == taken == far.received
    assert near.write_now(b"x") == 1


async def test_a_second_task_in_one_direction_is_found_out(pair: Pair) -> None:
    near, _ = pair
    await fill(near)
    reading = asyncio.create_task(near.read_some(1))
    writing = asyncio.create_task(near.write(b"x"))
    watching = asyncio.create_task(near.wait_hang_up(60.0))
    await settle()
    for operation in (near.read_some(1), near.read_exactly(1), near.read_into(bytearray(1))):
        with pytest.raises(BusyError, match="two tasks read"):
            await operation
    with pytest.raises(BusyError, match="two tasks write"):
        await near.write(b"y")
    with pytest.raises(BusyError, match="two tasks write"):
        near.write_now(b"y")
    with pytest.raises(BusyError, match="two tasks watch"):
        await near.wait_hang_up(1.0)
    with pytest.raises(BusyError, match="two tasks read"):
        await near.close_lingering()
    results = await asyncio.gather(reading, writing, watching, return_exceptions=True)
    assert near.closed, "a lingering close closes, come what may"
    assert [type(result) for result in results] == [ConnectionClosed] * 3


async def test_closing_wakes_who_waits_and_leaves_nothing_on_the_loop(pair: Pair) -> None:
    near, _ = pair
    await fill(near)
    fd = near._fd
    tasks = [
        asyncio.create_task(near.read_exactly(1)),
        asyncio.create_task(near.write_vector(PlainVector([bytearray(MIB)]))),
        asyncio.create_task(near.wait_hang_up(60.0)),
    ]
    await settle()
    near.close()
    assert not asyncio.get_running_loop().remove_reader(fd)
    assert not asyncio.get_running_loop().remove_writer(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    for task in tasks:
        with pytest.raises(ConnectionClosed):
            await task


async def test_a_closed_connection_says_so(pair: Pair) -> None:
    near, far = pair
    await near.write(b"abc")
    await far.read_exactly(3)
    near.close()
    near.close()
    near.abort()
    await near.close_lingering()
    assert near.closed
    assert "closed" in repr(near)
    assert near.acknowledged() == near.written == 3
    for use in (near.hung_up, near.unread, lambda: near.write_now(b"x")):
        with pytest.raises(ConnectionClosed):
            use()
    for operation in (near.read_some(1), near.write(b"x"), near.wait_hang_up(1.0)):
        with pytest.raises(ConnectionClosed):
            await operation


async def test_a_close_during_another_tasks_turn_is_seen_at_its_next_call(pair: Pair) -> None:
    near, far = pair
    peer = asyncio.create_task(far.read_into(bytearray(64 * MIB)))
    writing = asyncio.create_task(near.write(bytes(64 * MIB)))
    await settle()
    assert 0 < near.written < 64 * MIB
    near.close()
    with pytest.raises(ConnectionClosed):
        await writing
    with pytest.raises(EndOfStream):
        await peer


async def test_a_hang_up_is_seen_behind_unread_bytes(pair: Pair) -> None:
    near, far = pair
    await near.write(b"not read yet")
    assert not far.hung_up()
    watching = asyncio.create_task(far.wait_hang_up(60.0))
    await settle()
    assert not watching.done()
    near.close()
    assert await watching
    assert far.hung_up()
    assert await far.read_exactly(12) == b"not read yet"
    assert await far.wait_hang_up(60.0)


async def test_a_reset_is_a_hang_up(pair: Pair) -> None:
    near, far = pair
    near.abort()
    assert await far.wait_hang_up(60.0)
    assert far.hung_up()


async def test_acknowledged_follows_the_peers_kernel(pair: Pair) -> None:
    near, far = pair
    taken = await fill(near)
    before = near.acknowledged()
    assert before < taken, "what the peer has no room for is not acknowledged"
    await read_filled(near, far, taken)
    assert before < near.acknowledged() <= taken
    far.close()
    assert await near.wait_hang_up(60.0)
    near.close()
    assert near.acknowledged() == taken


async def test_a_lingering_close_lets_the_peer_read_our_last_words(pair: Pair) -> None:
    near, far = pair

    async def refused() -> bytes:
        await near.write(bytes(8 * MIB))
        answer = await near.read_exactly(5)
        assert await near.read_some(1) == b""
        near.close()
        return answer

    peer = asyncio.create_task(refused())
    await far.read_exactly(16)
    await far.write(b"error")
    await far.close_lingering(60.0)
    assert far.closed
    assert await peer == b"error"


async def test_an_ended_stream_can_still_be_read_from(pair: Pair) -> None:
    near, far = pair
    await near.write(b"question")
    near.end_stream()
    assert await far.read_exactly(8) == b"question"
    assert await far.read_some(1) == b""
    await far.write(b"answer")
    assert await near.read_exactly(6) == b"answer"
    with pytest.raises(ConnectionLost):
        await near.write(b"more")
    near.close()
    with pytest.raises(ConnectionClosed):
        near.end_stream()


async def test_a_lingering_close_survives_a_reset(pair: Pair) -> None:
    near, far = pair
    closing = asyncio.create_task(far.close_lingering(60.0))
    await settle()
    near.abort()
    await closing
    assert far.closed


@pytest.mark.parametrize("write", [False, True])
async def test_memory_that_is_not_there_is_no_lost_connection(pair: Pair, write: bool) -> None:
    near, far = pair
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        vector = PlainVector([mapped])
        file.truncate(0)
        await near.write(b"x")
        with pytest.raises(MemoryFault):
            await (far.write_vector(vector) if write else far.read_vector(vector))


async def test_a_stream_of_tiny_messages_leaves_others_their_turn(pair: Pair) -> None:
    near, far = pair
    await near.write(bytes(16 * 1000))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(others())
    for _ in range(1000):
        await far.read_exactly(16)
    ticking.cancel()
    assert turns >= 10


async def test_long_transfers_leave_others_their_turn(pair: Pair) -> None:
    near, far = pair
    moves: list[int] = []

    async def others() -> None:
        while True:
            moves.append(far.received)
            await asyncio.sleep(0)

    ticking = asyncio.create_task(others())
    async with asyncio.TaskGroup() as group:
        group.create_task(near.write(bytes(16 * MIB)))
        group.create_task(far.read_into(bytearray(16 * MIB)))
    ticking.cancel()
    moves.append(far.received)
    assert max(after - before for before, after in itertools.pairwise(moves)) <= 1.5 * MIB


async def write_to_a_full_socket(connection: Connection) -> None:
    await fill(connection)
    await connection.write(b"x")


async def vector_to_a_full_socket(connection: Connection) -> None:
    await fill(connection)
    await connection.write_vector(PlainVector([bytearray(1)]), Pace())


async def wait_to_write(connection: Connection) -> None:
    await fill(connection)
    await connection.writable(60.0)


WAITING: dict[str, Operation] = {
    "read_some": lambda c: c.read_some(1),
    "read_exactly": lambda c: c.read_exactly(1, rest_within=10.0),
    "read_into": lambda c: c.read_into(bytearray(1), Pace()),
    "read_vector": lambda c: c.read_vector(PlainVector([bytearray(1)])),
    "write": write_to_a_full_socket,
    "write_vector": vector_to_a_full_socket,
    "writable": wait_to_write,
    "wait_hang_up": lambda c: c.wait_hang_up(60.0),
}


@pytest.mark.parametrize("name", WAITING)
async def test_a_cancelled_wait_leaves_nothing_behind(pair: Pair, name: str) -> None:
    near, _ = pair
    for turns in range(4):
        before = set(os.listdir("/proc/self/fd"))
        task = asyncio.ensure_future(WAITING[name](near))
        await settle(turns)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert_idle(near)
        assert set(os.listdir("/proc/self/fd")) == before
    near.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(near._sock.fileno())


async def test_a_lingering_close_closes_also_when_cancelled(pair: Pair) -> None:
    near, _ = pair
    task = asyncio.create_task(near.close_lingering(60.0))
    await settle()
    assert not near.closed
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert near.closed


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_cancelling_after_any_number_of_turns_leaves_nothing_behind(
    pair: Pair, direction: str
) -> None:
    near, far = pair
    for turns in range(30):
        writing = asyncio.create_task(near.write(bytes(4 * MIB), Pace()))
        reading = asyncio.create_task(far.read_into(bytearray(4 * MIB), Pace()))
        await settle(turns)
        victim = reading if direction == "read" else writing
        victim.cancel()
        await asyncio.wait([victim])
        assert victim.cancelled() or victim.exception() is None
        (reading if direction == "write" else writing).cancel()
        await asyncio.wait([reading, writing])
        assert_idle(near)
        assert_idle(far)


async def test_a_socket_of_ours_has_the_options_of_the_reference(pair: Pair) -> None:
    for end in pair:
        if end.name.startswith("unix:"):
            assert end.peer_host == ""
            continue
        sock = end._sock
        assert end.peer_host in {"127.0.0.1", "::1"}
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        values = {
            option: sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (
                socket.TCP_KEEPIDLE,
                socket.TCP_KEEPINTVL,
                socket.TCP_KEEPCNT,
                socket.TCP_USER_TIMEOUT,
            )
        }
        assert list(values.values()) == [60, 15, 4, 120_000]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_quick_acknowledgement_is_asked_for_again_after_each_read(pair: Pair) -> None:
    near, far = pair
    if far.name.startswith("unix:"):
        assert not far._quick_ack.wanted
        return

    def quick(end: Connection) -> bool:
        return bool(end._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))

    # Answering at once is what makes Linux delay acknowledgements again.
    for _ in range(3):
        await near.write(b"ask")
        await far.read_exactly(3)
        await far.write(b"answer")
        await near.read_exactly(6)
    assert not quick(near)
    await near.write(b"ask")
    await far.read_exactly(3)
    assert quick(far)
