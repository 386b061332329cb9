"""What is sent arrives, and an end says how much came: on both loops, over each kind of address."""

import asyncio
import mmap
import random
import tempfile

import pytest

from aiomigrate.transport import EndOfStream, MemoryFault, Pace
from tests.transport.transport_pairs import MIB, Pair, assert_idle, fill, read_filled, settle
from tests.transport.vectors import PlainVector

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


def scattered(data: bytes) -> list[bytearray]:
    """`data` in pieces of 1 to 9,000 bytes."""
    sizes = random.Random(5)
    pieces = []
    while data:
        size = sizes.randint(1, 9000)
        pieces.append(bytearray(data[:size]))
        data = data[size:]
    return pieces


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
    if kind.startswith("tls"):
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


async def test_write_now_takes_what_the_kernel_takes(pair: Pair, kind: str) -> None:
    near, far = pair
    taken = await fill(near)
    assert 0 < near.written <= taken
    assert near.write_now(b"x") == 0
    waiting = asyncio.create_task(near.writable(60.0))
    await settle()
    assert not waiting.done()
    piece = MIB // 4 if kind.startswith("tls") else 0  # perhaps not all of the last one has left
    await far.read_exactly(near.written - piece)
    await waiting
    await read_filled(near, far, taken - far.received)
    assert near.written == taken == far.received
    assert near.write_now(b"x") == 1


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


@pytest.mark.parametrize("write", [False, True])
async def test_memory_that_is_not_there_is_no_lost_connection(pair: Pair, write: bool) -> None:
    near, far = pair
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        vector = PlainVector([mapped], steady=False)
        file.truncate(0)
        await near.write(b"x")
        with pytest.raises(MemoryFault):
            await (far.write_vector(vector) if write else far.read_vector(vector))
