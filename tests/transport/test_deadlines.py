"""Deadlines judge progress: on a virtual clock, over every kind of address."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from aiomigrate.transport import Connection, Pace, Stalled
from tests.support.clock import VirtualClockLoop
from tests.transport.vectors import PlainVector

pytestmark = pytest.mark.asyncio(loop_factories=["virtual"])

Pair = tuple[Connection, Connection]
KIB = 1 << 10
MIB = 1 << 20
PACE = Pace(min_bytes=64 * KIB, seconds=30.0)

READS: dict[str, Callable[[Connection, int], Awaitable[object]]] = {
    "read_exactly": lambda c, n: c.read_exactly(n, pace=PACE),
    "read_into": lambda c, n: c.read_into(bytearray(n), PACE),
    "read_vector": lambda c, n: c.read_vector(PlainVector([bytearray(n)]), PACE),
}
WRITES: dict[str, Callable[[Connection, int], Awaitable[object]]] = {
    "write": lambda c, n: c.write(bytes(n), PACE),
    "write_vector": lambda c, n: c.write_vector(PlainVector([bytearray(n)]), PACE),
}


async def drip(connection: Connection, size: int, every: float) -> None:
    while True:
        await connection.write(bytes(size))
        await asyncio.sleep(every)


@pytest.mark.parametrize("name", READS)
async def test_a_peer_that_falls_silent_is_cut(
    pair: Pair, clock: VirtualClockLoop, name: str
) -> None:
    near, far = pair
    await near.write(bytes(100))
    start = clock.time()
    with pytest.raises(Stalled) as caught:
        await READS[name](far, 1000)
    assert clock.time() - start == pytest.approx(30.0)
    assert (caught.value.seconds, caught.value.connection) == (30.0, far.name)
    assert caught.value.moved == (0 if name == "read_exactly" else 100)


@pytest.mark.parametrize("name", READS)
async def test_a_drip_of_single_bytes_is_cut(
    pair: Pair, clock: VirtualClockLoop, name: str
) -> None:
    near, far = pair
    dripping = asyncio.create_task(drip(near, 1, 0.5))
    start = clock.time()
    with pytest.raises(Stalled) as caught:
        await READS[name](far, MIB)
    assert clock.time() - start == pytest.approx(30.0, abs=1)
    assert caught.value.expected == 64 * KIB
    assert 50 < caught.value.moved < 70
    dripping.cancel()


@pytest.mark.parametrize("name", READS)
async def test_a_slow_honest_peer_is_not_cut(
    pair: Pair, clock: VirtualClockLoop, name: str
) -> None:
    near, far = pair
    dripping = asyncio.create_task(drip(near, 64 * KIB, 29.0))
    start = clock.time()
    await READS[name](far, MIB)
    assert clock.time() - start >= 15 * 29
    dripping.cancel()


async def test_a_rest_smaller_than_the_pace_is_due_in_one_window(
    pair: Pair, clock: VirtualClockLoop
) -> None:
    near, far = pair
    reading = asyncio.create_task(far.read_into(bytearray(64 * KIB + 3), PACE))
    await near.write(bytes(64 * KIB + 2))
    with pytest.raises(Stalled) as caught:
        await reading
    assert (caught.value.expected, caught.value.moved) == (1, 0)


async def test_the_first_byte_may_take_any_time_the_rest_may_not(
    pair: Pair, clock: VirtualClockLoop
) -> None:
    near, far = pair
    reading = asyncio.create_task(far.read_exactly(16, rest_within=10.0))
    await asyncio.sleep(100_000.0)
    assert not reading.done()
    dripping = asyncio.create_task(drip(near, 1, 1.0))
    start = clock.time()
    with pytest.raises(Stalled) as caught:
        await reading
    assert clock.time() - start == pytest.approx(10.0)
    assert (caught.value.seconds, caught.value.moved) == (10.0, 10)
    dripping.cancel()


async def test_a_rest_that_comes_in_time_is_read(pair: Pair, clock: VirtualClockLoop) -> None:
    near, far = pair
    dripping = asyncio.create_task(drip(near, 1, 0.5))
    assert await far.read_exactly(16, rest_within=10.0) == bytes(16)
    dripping.cancel()


async def test_without_a_pace_nothing_is_cut(pair: Pair, clock: VirtualClockLoop) -> None:
    near, far = pair
    reading = asyncio.create_task(far.read_into(bytearray(2)))
    await near.write(b"x")
    await asyncio.sleep(1_000_000.0)
    await near.write(b"x")
    await reading


@pytest.mark.parametrize("name", WRITES)
async def test_a_peer_that_does_not_read_is_cut(
    pair: Pair, clock: VirtualClockLoop, name: str
) -> None:
    near, _ = pair
    reached: dict[int, float] = {}

    def note() -> bool:
        """Before each jump of the clock. A kernel may make room once more when it is well over."""
        reached.setdefault(near.written, clock.time())
        return False

    clock.watch(note)
    with pytest.raises(Stalled) as caught:
        await WRITES[name](near, 64 * MIB)
    assert clock.time() - max(reached.values()) == pytest.approx(30.0)
    assert caught.value.seconds == 30.0
    assert caught.value.what == "write"
    assert near.written < 64 * MIB


@pytest.mark.parametrize("name", WRITES)
async def test_a_peer_that_reads_slowly_is_not_cut_though_the_socket_stays_full(
    pair: Pair, clock: VirtualClockLoop, name: str
) -> None:
    near, far = pair
    while near.write_now(bytes(MIB)):
        pass
    writing = asyncio.ensure_future(WRITES[name](near, MIB))

    async def read_slowly() -> None:
        while True:
            # A kernel whose window was shut opens it again only for a sixteenth of its buffer.
            await far.read_exactly(512 * KIB)
            await asyncio.sleep(29.0)

    reading = asyncio.create_task(read_slowly())
    await writing
    reading.cancel()


async def test_what_came_while_the_loop_was_held_up_is_no_stall(
    pair: Pair, clock: VirtualClockLoop
) -> None:
    near, far = pair
    reading = asyncio.create_task(far.read_into(bytearray(10), PACE))
    await asyncio.sleep(0)
    # The timer is due before the loop looks at the socket again.
    clock.skip(1000.0)
    assert near.write_now(bytes(10)) == 10
    await reading


async def test_waiting_to_write_ends(pair: Pair, clock: VirtualClockLoop) -> None:
    near, _ = pair
    while near.write_now(bytes(MIB)):
        pass
    start = clock.time()
    with pytest.raises(Stalled) as caught:
        await near.writable(7.0)
    assert clock.time() - start == pytest.approx(7.0)
    assert (caught.value.seconds, caught.value.moved) == (7.0, 0)


async def test_waiting_for_a_hang_up_ends(pair: Pair, clock: VirtualClockLoop) -> None:
    near, far = pair
    await near.write(b"unread bytes are no hang-up")
    start = clock.time()
    assert not await far.wait_hang_up(7.0)
    assert clock.time() - start == pytest.approx(7.0)


async def test_a_lingering_close_gives_up(pair: Pair, clock: VirtualClockLoop) -> None:
    near, far = pair
    dripping = asyncio.create_task(drip(near, 1, 1.0))
    start = clock.time()
    await far.close_lingering(5.0)
    assert clock.time() - start == pytest.approx(5.0)
    assert far.closed
    dripping.cancel()
    await asyncio.wait([dripping])
