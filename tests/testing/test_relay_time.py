"""Faults of time: bytes come late, slowly, with jitter, in order; on a virtual clock."""

import asyncio
import random

import pytest

from aiomigrate.testing import Delay, Rate
from tests.support.clock import VirtualClockLoop
from tests.testing.relay_rig import DOWN, UP, receive, relayed, send, virtual


@virtual
async def test_each_byte_is_late_by_the_delay(clock: VirtualClockLoop) -> None:
    async with relayed(Delay(seconds=0.5), Delay(direction=DOWN, seconds=1)) as rig:
        near, far = await rig.pair()
        began = clock.time()
        await send(near, b"a")
        assert await receive(far, 1) == b"a"
        assert clock.time() - began == pytest.approx(0.5)
        await send(far, b"b")
        assert await receive(near, 1) == b"b"
        assert clock.time() - began == pytest.approx(2.0)


@virtual
async def test_bytes_come_no_faster_than_the_rate(clock: VirtualClockLoop) -> None:
    async with relayed(Rate(direction=UP, bytes_per_s=2000)) as rig:
        near, far = await rig.pair()
        began = clock.time()
        await send(near, bytes(2000))
        times = []
        for _ in range(5):
            await receive(far, 400)
            times.append(clock.time() - began)
        assert times == pytest.approx(
            [0.2, 0.4, 0.6, 0.8, 1.0], abs=0.03
        )  # 0.02: it was idle before


async def arrivals(clock: VirtualClockLoop, seed: int) -> list[float]:
    """The times that ten messages took, each sent when the last had come."""
    times = []
    async with relayed(Delay(direction=UP, seconds=1, jitter_s=0.5), seed=seed) as rig:
        near, far = await rig.pair()
        for number in range(10):
            sent = clock.time()
            await send(near, bytes([number]))
            assert await receive(far, 1) == bytes([number])
            times.append(clock.time() - sent)
    return times


@virtual
async def test_jitter_is_what_the_seed_says(clock: VirtualClockLoop) -> None:
    first = await arrivals(clock, seed=1)
    assert first == pytest.approx(await arrivals(clock, seed=1))
    assert first != pytest.approx(await arrivals(clock, seed=2))
    assert all(1 <= seconds <= 1.501 for seconds in first)
    assert max(first) - min(first) > 0.1


@virtual
async def test_jitter_does_not_reorder(clock: VirtualClockLoop) -> None:
    data = random.Random(1).randbytes(40)
    async with relayed(Delay(seconds=1, jitter_s=5)) as rig:
        near, far = await rig.pair()
        for byte in data:
            await send(near, bytes([byte]))
            await asyncio.sleep(0.1)  # virtual: between two bytes
        assert await receive(far, len(data)) == data
