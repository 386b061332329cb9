"""A source's main connection by itself: what it owes an answer to, and for how long."""

import asyncio
from typing import cast

import pytest

from aiomigrate.lane import Shared, SilentLane
from aiomigrate.main_connection import MainConnection
from aiomigrate.memory.ranges import make_table
from aiomigrate.options import SendOptions
from aiomigrate.pool import Chunk, WorkPool
from aiomigrate.progress import Tracker
from aiomigrate.protocol import Extension
from aiomigrate.protocol.extensions import encode_extensions
from aiomigrate.protocol.wire import Response, Status
from aiomigrate.tasks import settle
from aiomigrate.transport import Connection
from tests.support.clock import VirtualClockLoop
from tests.support.image import PAGE
from tests.support.turns import turns
from tests.support.vms import Guest

pytestmark = pytest.mark.asyncio(loop_factories=["virtual"])

_LIMIT = SendOptions().deadlines.memory_answer_s


class _Taking:
    """A connection whose peer takes all requests at once and answers none."""

    name = "tcp:peer:1"
    peer_certificate = None
    write_wait_s = 0.0

    async def read_some(self, _: int) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError("nothing comes")

    async def write(self, *_: object) -> None:
        pass

    async def write_vector(self, *_: object) -> None:
        pass

    def acknowledged(self) -> int:
        return 0

    def times(self) -> None:
        """The kernel says nothing."""


class _OneChunk:
    """A work pool that has one chunk, from the moment that it is `there`."""

    def __init__(self) -> None:
        self.there = asyncio.Event()

    async def take(self) -> Chunk:
        await self.there.wait()
        self.there.clear()
        return Chunk(make_table([(0, PAGE)]), PAGE)


def configured(guest: Guest) -> MainConnection:
    """One whose Start, Session and Config have their answers."""
    shared = Shared(guest.memory, Tracker(), SendOptions())
    connection = MainConnection(cast("Connection", _Taking()), shared)
    offer = Extension.SESSION | Extension.RETIRE_LANE
    connection.main.start(offer)
    accepted = Response(Status.OK, padding=encode_extensions(offer).ljust(6, b"\0"))
    connection.main.receive_data(accepted.encode())
    connection.main.session(bytes(16))
    connection.main.receive_data(Response(Status.OK).encode())
    connection.main.config(2)
    connection.main.receive_data(Response(Status.OK).encode())
    return connection


async def silent_after(clock: VirtualClockLoop, retire_at: float, memory_at: float) -> float:
    """When the connection is given up whose peer is asked for both at these times, in seconds."""
    with Guest() as guest:
        main, pool = configured(guest), _OneChunk()
        began = clock.time()
        clock.call_at(began + memory_at, pool.there.set)
        carrying = asyncio.create_task(main.run(cast("WorkPool", pool)))
        await turns()
        await asyncio.sleep(retire_at)
        retiring = asyncio.create_task(main.retire(1))
        with pytest.raises(SilentLane):
            await carrying
        passed = clock.time() - began
        retiring.cancel()
        await settle(retiring)
        return passed


async def test_a_fence_gives_a_peer_that_owes_memory_no_more_time(
    clock: VirtualClockLoop,
) -> None:
    """Else lanes that are lost one after the other would put off the end for ever."""
    assert await silent_after(clock, _LIMIT / 2, 0) == pytest.approx(_LIMIT)


async def test_a_fence_that_is_not_answered_is_silence_by_itself(
    clock: VirtualClockLoop,
) -> None:
    passed = await silent_after(clock, _LIMIT, 10 * _LIMIT)
    # While nothing is owed it is looked for silence each quarter of the limit.
    assert 2 * _LIMIT <= passed <= 2.25 * _LIMIT
