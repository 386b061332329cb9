"""A Memory request at the destination: its table is checked, its content goes where it says.

The whole table is read and checked against the memory map before the first byte of content is
taken. Memory is allocated and made resident a piece ahead of the data, in the executor: touching
fresh memory costs more than the network, and must not be left to the loop's system call.

Content of memory that is `staged` (a stored VM's) comes into two buffers in turn instead: one is
filled while a job stores the other, leaving holes where it is zero. A request is answered when its
last piece is stored.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np

from aiomigrate.executor import JobExecutor
from aiomigrate.memory import ranges
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.ranges import RANGE, Table
from aiomigrate.memory.spool import IN_MEMORY, TableSpool
from aiomigrate.protocol import RANGE_BYTES
from aiomigrate.tasks import settle
from aiomigrate.transport import Connection, Pace

__all__ = ["Applier"]

_SLICE_RANGES = 65536
"""Ranges of a table that are read and checked at a time (1 MiB)."""
_PIECE_BYTES = 4 << 20
"""Content that is made resident at a time: about 8 ms at the 0.5 GiB/s of first touches. Half of
that made 20 % less throughput where the memory was there already (benchmarks/loopback.py)."""

_STAGED_BYTES = 512 << 10
"""Of one of the two buffers: a connection has a private copy of at most 1 MiB."""
_STAGED_RANGES = 4096
"""Stored in one job, each by a system call or two: about 10 ms."""

_ZEROED_BYTES = 32 << 20
"""Zeroed in one job: its pages are given back one by one, or looked at."""

_Piece = tuple[Table, int]


class Applier:
    """Reads the Memory requests of all connections of a migration into guest memory."""

    def __init__(self, memory: GuestMemory, executor: JobExecutor, pace: Pace) -> None:
        self._memory = memory
        self._executor = executor
        self._pace = pace

    async def read_table(self, connection: Connection, left: int, spool: TableSpool) -> int:
        """Read and check a table of `left` bytes; the bytes of content that follow it.

        RangeError for a range that does not belong to guest memory, OSError if a long table
        cannot be spilled, TransportError from the connection.
        """
        spills = left > IN_MEMORY
        nbytes = 0
        while left:
            part = np.empty(min(left // RANGE_BYTES, _SLICE_RANGES), RANGE)
            await connection.read_into(part.view(np.uint8).data, self._pace)
            nbytes += self._memory.map.check(part)
            if spills:
                await self._executor.run(spool.append, part)
            else:
                spool.append(part)
            left -= part.nbytes
        return nbytes

    async def read_content(self, connection: Connection, spool: TableSpool, left: int) -> None:
        """Read the `left` bytes that belong to a checked table.

        OSError where the memory's files have no room, TransportError from the connection.
        """
        if not left:
            return
        if self._memory.staged:
            await self._store_content(connection, spool, left)
        else:
            await self._fill_memory(connection, spool, left)

    async def zero(self, spool: TableSpool) -> None:
        """Make a checked table read as zeros. OSError."""
        pieces = _pieces(spool, _ZEROED_BYTES, _STAGED_RANGES)
        while await self._executor.run(self._zero_next, pieces):
            pass

    def _zero_next(self, pieces: Iterator[_Piece]) -> bool:
        piece = next(pieces, None)  # read back in the job, too: a long table is in a file
        if piece is not None:
            self._memory.zero(piece[0])
        return piece is not None

    async def _fill_memory(self, connection: Connection, spool: TableSpool, left: int) -> None:
        pieces = _pieces(spool, _PIECE_BYTES, _SLICE_RANGES)
        ahead = self._start(pieces, spool)
        try:
            while True:
                table, nbytes = await self._executor.join(ahead)
                left -= nbytes
                if left:
                    ahead = self._start(pieces, spool)
                await connection.read_vector(self._memory.iovec(table), self._pace)
                if not left:
                    return
        finally:
            await self._end(ahead)

    async def _store_content(self, connection: Connection, spool: TableSpool, left: int) -> None:
        pieces = _pieces(spool, _STAGED_BYTES, _STAGED_RANGES)
        filled, stored = (np.empty(min(left, _STAGED_BYTES), np.uint8).data for _ in range(2))
        storing: asyncio.Future[None] | None = None
        try:
            while left:
                table, nbytes = await self._next(pieces, spool)
                left -= nbytes
                await connection.read_into(filled[:nbytes], self._pace)
                if storing is not None:
                    await self._executor.join(storing)
                storing = self._executor.start(self._memory.store, table, filled[:nbytes])
                filled, stored = stored, filled
            if storing is not None:
                await self._executor.join(storing)
        finally:
            if storing is not None:
                await self._end(storing)

    async def _next(self, pieces: Iterator[_Piece], spool: TableSpool) -> _Piece:
        return await self._executor.run(next, pieces) if spool.spilled else next(pieces)

    async def _end(self, job: asyncio.Future[Any]) -> None:
        """Join a job whatever happened: none may touch guest memory after the lane is gone."""
        await settle(job)
        if not job.cancelled():
            job.exception()

    def _start(self, pieces: Iterator[_Piece], spool: TableSpool) -> asyncio.Future[_Piece]:
        """Begin to make the next piece resident; where it is already, a job would cost more."""
        if spool.spilled:
            return self._executor.start(self._prepare, pieces)
        piece = next(pieces)
        if not self._memory.resident(piece[0]):
            return self._executor.start(self._prepare, iter([piece]))
        ready: asyncio.Future[_Piece] = asyncio.get_running_loop().create_future()
        ready.set_result(piece)
        return ready

    def _prepare(self, pieces: Iterator[_Piece]) -> _Piece:
        table, nbytes = next(pieces)
        self._memory.prepare(table)
        return table, nbytes


def _pieces(spool: TableSpool, max_bytes: int, max_ranges: int) -> Iterator[_Piece]:
    for table in spool.slices(_SLICE_RANGES):
        yield from ranges.chunk(table, max_bytes, max_ranges)
