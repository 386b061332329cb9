"""The limit to how fast memory leaves, on the virtual clock."""

import asyncio

import pytest

from aiomigrate.rate import RateLimit
from tests.support.clock import VirtualClockLoop

pytestmark = pytest.mark.asyncio(loop_factories=["virtual"])


async def _send(rate: RateLimit, sizes: list[int], clock: VirtualClockLoop) -> list[float]:
    """When each of these left, seconds from the beginning."""
    began, left = clock.time(), []
    for nbytes in sizes:
        await rate.paid()
        rate.spend(nbytes)
        left.append(round(clock.time() - began, 3))
    return left


async def test_each_chunk_waits_until_the_one_before_is_paid_for(clock: VirtualClockLoop) -> None:
    assert await _send(RateLimit(1000), [500, 2000, 100, 1], clock) == [0.0, 0.5, 2.5, 2.6]


async def test_without_a_limit_nothing_waits(clock: VirtualClockLoop) -> None:
    assert await _send(RateLimit(0), [1 << 40, 1 << 40], clock) == [0.0, 0.0]


async def test_a_pause_saves_nothing_up(clock: VirtualClockLoop) -> None:
    rate = RateLimit(1000)
    clock.skip(100.0)
    assert await _send(rate, [1000, 1000, 1000], clock) == [0.0, 1.0, 2.0]


async def test_many_small_chunks_keep_the_rate(clock: VirtualClockLoop) -> None:
    """What is too little to be waited for is not forgiven."""
    clock.patience = 0.001
    left = await _send(RateLimit(1_000_000), [100] * 500, clock)
    assert left[-1] == pytest.approx(499 * 100 / 1_000_000, abs=1e-3)


@pytest.mark.parametrize(("limit", "after"), [(4000, 1.75), (0, 1.0), (500, 7.0)])
async def test_a_new_limit_holds_for_what_waits(
    clock: VirtualClockLoop, limit: int, after: float
) -> None:
    """4000 bytes were taken, and 1000 of them are paid for when the limit changes."""
    rate = RateLimit(1000)
    rate.spend(4000)
    began = clock.time()
    clock.call_later(1.0, rate.change, limit)
    await rate.paid()
    assert clock.time() - began == pytest.approx(after, abs=2e-3)


async def test_a_limit_that_is_lifted_does_not_come_back(clock: VirtualClockLoop) -> None:
    rate = RateLimit(1000)
    rate.lift()
    rate.change(1000)
    assert await _send(rate, [5000, 5000], clock) == [0.0, 0.0]


async def test_whoever_waits_can_be_cancelled(clock: VirtualClockLoop) -> None:
    rate = RateLimit(1)
    rate.spend(1000)
    waiting = asyncio.create_task(rate.paid())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert clock.time() == 1000.0


@pytest.mark.parametrize(
    ("limit", "chunk"), [(0, 1 << 24), (1 << 20, 25 * 4096), (1 << 40, 1 << 24), (1, 4096)]
)
async def test_a_chunk_is_a_tenth_of_a_second(
    limit: int, chunk: int, clock: VirtualClockLoop
) -> None:
    assert RateLimit(limit).chunk_bytes(1 << 24) == chunk
    assert clock.time() == 1000.0
