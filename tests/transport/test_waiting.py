"""Tasks at a connection: one in each direction, others get their turn, and nothing is left of one
that is cancelled or closed under.
"""

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable

import pytest

from aiomigrate.transport import BusyError, Connection, ConnectionClosed, EndOfStream, Pace
from tests.transport.transport_pairs import MIB, Pair, assert_idle, fill, settle
from tests.transport.vectors import PlainVector

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

Operation = Callable[[Connection], Awaitable[object]]


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
