"""The work pool: one producer cuts memory into chunks, many lanes take them.

The pool is an `asyncio.Queue` that the producer fills only so far ahead of the lanes, so that
chunks are made as they are taken and the engine's memory does not grow with the guest. A chunk is
in the pool until it is answered: what a lost lane left unanswered is put back, and `drained`
is the gate between two iterations. What touches memory or disk (looking for data, reading
bitmaps, making pages resident, telling zeros apart) is done in jobs of the executor, a few chunks
at a time.

A chunk keeps the table that it was made with: whether a page is zero is looked at once, and what
is written to it afterwards is in the dirty log.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from aiomigrate.executor import JobExecutor
from aiomigrate.limiting import PoolState
from aiomigrate.memory import ranges
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.ranges import Table
from aiomigrate.progress import Tracker
from aiomigrate.rate import RateLimit

__all__ = ["Chunk", "WorkPool", "Zeros", "chunks_of"]

_JOB_S = 0.002
"""After this a job begins no further chunk: one that waits for a disk leaves alone."""
_DEPTH = 2
"""Chunks ready for each lane: one to take at once, one being made resident."""

_MAX_RANGES = 16384
"""Ranges of a chunk at the most: a 256 KiB table, however short its ranges are."""


class Zeros(Enum):
    """What becomes of pages that are zero."""

    SENT = "sent as content"
    NAMED = "named by Zeros requests"
    LEFT_OUT = "left out: the destination's are zero already"


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one Memory or Zeros request carries."""

    table: Table
    """Range table: the bytes that are sent."""
    nbytes: int
    """The sum of its ranges."""
    zeros: bool = False
    """Whether the ranges are named only, and no content follows."""

    @property
    def wire_bytes(self) -> int:
        """What a lane's window counts: bytes of content, or else of the table itself."""
        return self.table.nbytes if self.zeros else self.nbytes


def chunks_of(tables: Iterator[Table], chunk_bytes: int) -> Iterator[Chunk]:
    """Cut range tables into chunks of at most `chunk_bytes` of content."""
    for table in tables:
        for part, nbytes in ranges.chunk(table, chunk_bytes, _MAX_RANGES):
            yield Chunk(part, nbytes)


class WorkPool:
    """The chunks of a migration, one iteration after the other. One producer, any number of lanes.

    `lanes` says for how many of them chunks are kept ready. Bytes that are left out count in
    `tracker`; `rate` holds for all lanes together.
    """

    def __init__(
        self,
        memory: GuestMemory,
        executor: JobExecutor,
        lanes: int,
        tracker: Tracker,
        rate: RateLimit,
    ) -> None:
        self._memory = memory
        self._tracker = tracker
        self._waits = tracker.waits
        self._executor = executor
        self._depth = _DEPTH * lanes
        # The bound is the producer's, not the queue's: what is put back must find room at once.
        self._queue: asyncio.Queue[tuple[Chunk, bool]] = asyncio.Queue()
        """Chunks, and whether they are the producer's."""
        self._room = asyncio.Semaphore(self._depth)
        self.progress_at = 0.0
        """When, on the loop's clock, a chunk was answered last, or the iteration began."""
        self._rate = rate
        self._turn = asyncio.Lock()

    async def produce(
        self,
        chunks: Iterator[Chunk],
        zeros: Zeros = Zeros.SENT,
        mappings: npt.NDArray[np.bool_] | None = None,
    ) -> int:
        """Fill the pool until `chunks` ends; the bytes of content that went in.

        `mappings` says of each mapping whether `zeros` holds for it (None: for all); elsewhere
        zeros are sent.
        """
        total = 0
        self.progress_at = asyncio.get_running_loop().time()
        self._waits.pool(PoolState.PRODUCING)
        while batch := await self._executor.run(self._next_batch, chunks, zeros, mappings):
            for chunk in batch:
                if chunk.zeros and zeros is Zeros.LEFT_OUT:
                    self._tracker.zeroed(chunk.nbytes)
                    continue
                await self._room.acquire()
                total += 0 if chunk.zeros else chunk.nbytes
                self._queue.put_nowait((chunk, True))
        self._waits.pool(PoolState.DRAINING)
        return total

    def _next_batch(
        self, chunks: Iterator[Chunk], zeros: Zeros, mappings: npt.NDArray[np.bool_] | None
    ) -> list[Chunk]:
        """The next chunks, their pages in memory: the loop's system call must not wait for a disk.

        As many as are quickly there, so that handing over to this thread costs little.
        """
        batch: list[Chunk] = []
        ends = time.monotonic() + _JOB_S
        # One at least: an empty batch is the end.
        while not batch or (len(batch) < self._depth and time.monotonic() < ends):
            began = time.monotonic()
            chunk = next(chunks, None)
            found = time.monotonic()
            self._waits.looking_s += found - began
            if chunk is None:
                break
            self._memory.populate_read(chunk.table)
            read = time.monotonic()
            self._waits.reading_s += read - found
            if zeros is Zeros.SENT:
                batch.append(chunk)
            else:
                batch += self._split(chunk, mappings)
                self._waits.zero_test_s += time.monotonic() - read
        return batch

    def _split(self, chunk: Chunk, mappings: npt.NDArray[np.bool_] | None) -> Iterator[Chunk]:
        data, zeros = self._memory.split_zeros(chunk.table, mappings)
        nbytes = ranges.total_bytes(data)
        if nbytes:
            yield Chunk(data, nbytes)
        if nbytes < chunk.nbytes:
            yield Chunk(zeros, chunk.nbytes - nbytes, zeros=True)

    async def take(self) -> Chunk:
        """The next chunk. Whoever takes it calls `done` for it, or `put_back`."""
        # Without turns all lanes that wait for the limit would go ahead at once.
        with self._waits.chunk:
            async with self._turn:
                with self._waits.payment:
                    await self._rate.paid()
                chunk, produced = await self._queue.get()
                self._rate.spend(chunk.wire_bytes)
        if produced:
            self._room.release()
        return chunk

    def done(self) -> None:
        """A chunk was answered."""
        self.progress_at = asyncio.get_running_loop().time()
        self._queue.task_done()

    def put_back(self, chunks: Iterable[Chunk]) -> None:
        """Chunks that a lost lane left unanswered; the lane must be fenced already."""
        for chunk in chunks:
            self._queue.put_nowait((chunk, False))
            self._queue.task_done()  # it was counted when it was first put in

    async def drained(self) -> None:
        """Wait until every chunk is answered: the gate to the next iteration."""
        await self._queue.join()
        self._waits.pool(PoolState.IDLE)
