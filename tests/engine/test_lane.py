"""A source's lane by itself: how losing it and ending it meet."""

import asyncio
from typing import cast

import pytest

from aiomigrate.lane import Lane, Shared
from aiomigrate.memory.ranges import make_table
from aiomigrate.options import SendOptions
from aiomigrate.pool import Chunk, WorkPool
from aiomigrate.progress import Tracker
from aiomigrate.protocol import Dialect, Extension, SourceLane
from aiomigrate.transport import Certificate, Connection, ConnectionLost
from tests.support.image import PAGE
from tests.support.turns import turns
from tests.support.vms import Guest


class _Breaking:
    """A connection that is lost, in both directions, when `lost` is set."""

    name = "tcp:peer:1"
    write_wait_s = 0.0

    def __init__(self) -> None:
        self.peer_certificate: Certificate | None = None
        self.lost = asyncio.Event()

    async def read_some(self, _: int) -> bytes:
        await self.lost.wait()
        raise ConnectionLost(self.name, "read", errno=104, got="Connection reset by peer")

    async def write_vector(self, *_: object) -> None:
        await self.lost.wait()
        raise ConnectionLost(self.name, "write", errno=32, got="Broken pipe")

    def acknowledged(self) -> int:
        return 0

    def times(self) -> None:
        """The kernel says nothing."""


class _Pool:
    """A work pool of so many chunks."""

    def __init__(self, chunks: int) -> None:
        self._left = chunks

    async def take(self) -> Chunk:
        if not self._left:
            await asyncio.Event().wait()
        self._left -= 1
        return Chunk(make_table([(0, PAGE)]), PAGE)


def running(
    guest: Guest, connection: _Breaking, chunks: int, extensions: Extension = Extension.NONE
) -> asyncio.Task[None]:
    core = SourceLane("lane 1", Dialect.V53, extensions)
    core.open()
    shared = Shared(guest.memory, Tracker(), SendOptions())
    lane = Lane(cast("Connection", connection), core, shared, 1)
    return asyncio.create_task(lane.run(cast("WorkPool", _Pool(chunks))))


@pytest.mark.parametrize("chunks", [0, 1])
@pytest.mark.parametrize("turns", range(8))
async def test_a_cancellation_in_any_moment_of_a_loss_is_not_swallowed(
    no_leaks: None, turns: int, chunks: int
) -> None:
    with Guest() as guest:
        connection = _Breaking()
        task = running(guest, connection, chunks)
        for _ in range(3):
            await asyncio.sleep(0)
        connection.lost.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        in_time = task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() == in_time
        assert in_time or isinstance(task.exception(), ConnectionLost)


class _Taking(_Breaking):
    """One that takes requests and answers none."""

    def __init__(self, *, tls: bool) -> None:
        super().__init__()
        if tls:
            self.peer_certificate = Certificate(b"", "")
        self.taken = 0

    async def write_vector(self, *_: object) -> None:
        self.taken += 1


@pytest.mark.parametrize(
    ("tls", "extensions", "expected"),
    [(True, Extension.NONE, 1), (True, Extension.ZERO_RUNS, 3), (False, Extension.NONE, 3)],
    ids=["plain peer, TLS", "extensions, TLS", "plain peer"],
)
async def test_one_request_at_a_time_only_towards_a_plain_peer_through_tls(
    no_leaks: None, tls: bool, extensions: Extension, expected: int
) -> None:
    """Its worker polls the descriptor for the next one, which its TLS layer may hold already."""
    with Guest() as guest:
        connection = _Taking(tls=tls)
        task = running(guest, connection, 3, extensions)
        await turns()
        assert connection.taken == expected
        task.cancel()
        await asyncio.wait([task])
