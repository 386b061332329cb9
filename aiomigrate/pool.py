"""The work pool: one producer cuts memory into chunks, many lanes take them.

The pool is an `asyncio.Queue` of bounded depth, so that chunks are made as lanes take them and
the engine's memory does not grow with the guest. What touches memory or disk (looking for data,
reading bitmaps, making pages resident) is done in jobs of the executor, a chunk at a time.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

from aiomigrate.executor import JobExecutor
from aiomigrate.memory import ranges
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.ranges import Table

__all__ = ["Chunk", "WorkPool", "chunks_of"]

_JOB_S = 0.002
"""After this a job begins no further chunk: one that waits for a disk leaves alone."""
_DEPTH = 2
"""Chunks ready for each lane: one to take at once, one being made resident."""

_MAX_RANGES = 16384
"""Ranges of a chunk at the most: a 256 KiB table, however short its ranges are."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one Memory request carries."""

    table: Table
    """Contiguous slice of a range table: the bytes that are sent."""
    nbytes: int
    """The content of its ranges."""


def chunks_of(tables: Iterator[Table], chunk_bytes: int) -> Iterator[Chunk]:
    """Cut range tables into chunks of at most `chunk_bytes` of content."""
    for table in tables:
        for part, nbytes in ranges.chunk(table, chunk_bytes, _MAX_RANGES):
            yield Chunk(part, nbytes)


class WorkPool:
    """The chunks of one iteration. One producer, any number of lanes."""

    def __init__(self, memory: GuestMemory, executor: JobExecutor, lanes: int) -> None:
        self._memory = memory
        self._executor = executor
        self._lanes = lanes
        self._queue: asyncio.Queue[Chunk | None] = asyncio.Queue(_DEPTH * lanes)

    async def produce(self, chunks: Iterator[Chunk]) -> int:
        """Fill the pool until `chunks` ends; the bytes of content that went in."""
        total = 0
        while batch := await self._executor.run(self._next_resident, chunks):
            for chunk in batch:
                total += chunk.nbytes
                await self._queue.put(chunk)
        for _ in range(self._lanes):
            await self._queue.put(None)
        return total

    def _next_resident(self, chunks: Iterator[Chunk]) -> list[Chunk]:
        """The next chunks, their pages in memory: the loop's system call must not wait for a disk.

        As many as are quickly there, so that handing over to this thread costs little.
        """
        batch: list[Chunk] = []
        ends = time.monotonic() + _JOB_S
        # One at least: an empty batch is the end.
        while not batch or (len(batch) < self._queue.maxsize and time.monotonic() < ends):
            chunk = next(chunks, None)
            if chunk is None:
                break
            self._memory.populate_read(chunk.table)
            batch.append(chunk)
        return batch

    async def take(self) -> Chunk | None:
        """The next chunk; None, once for each lane, when the iteration has no more."""
        return await self._queue.get()
