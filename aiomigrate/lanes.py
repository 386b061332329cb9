"""The connections that carry a source's memory, and what happens when one of them is lost.

A plain peer loses the migration with a lane. With RETIRE_LANE a lost lane is first fenced: its
bytes can still lie in the destination's socket or accept queue, or in a job of its executor, and
be applied later over newer content. Only when the destination has answered RetireLane do the lane's
unanswered chunks go back into the pool. A replacement with a number of its own is opened
with backoff; while there is no lane at all the main connection carries memory, and goes on with
that. Every iteration ends with all of its chunks answered, so whatever carries the next one
cannot be overtaken.
"""

import asyncio
import logging
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from aiomigrate.errors import MigrationFailed
from aiomigrate.executor import JobExecutor
from aiomigrate.lane import LOSSES, Lane, Shared
from aiomigrate.main_connection import MainConnection
from aiomigrate.memory.ranges import Table
from aiomigrate.opening import Door, OpenedLane
from aiomigrate.pool import WorkPool, Zeros, chunks_of
from aiomigrate.protocol import Dialect, Extension
from aiomigrate.rate import RateLimit
from aiomigrate.scope import enter_connection
from aiomigrate.transport import MemoryFault

__all__ = ["Lanes"]

log = logging.getLogger("aiomigrate.source")

_BACKOFF_S = 0.1
_BACKOFF_MOST_S = 5.0
"""Between two tries to replace a lane, doubled each time. Arbitrary: soon after a reset, and not
often while the network is away."""


class Lanes:
    """All connections that carry memory in one attempt. Their tasks live in `group`."""

    def __init__(
        self,
        main: MainConnection,
        shared: Shared,
        door: Door,
        executor: JobExecutor,
        group: asyncio.TaskGroup,
        rate: RateLimit,
    ) -> None:
        self._main = main
        self._shared = shared
        self._door = door
        self._group = group
        self._rate = rate
        self._pool = WorkPool(
            shared.memory, executor, shared.options.connections, shared.tracker, rate
        )
        self._chunk_bytes = shared.options.chunk_bytes
        self._numbers = 0
        self._live: list[Lane] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._main_carries = False
        self._fencing = 0
        self._fenced = asyncio.Event()
        self._fenced.set()

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Those that are open, the main connection not among them."""
        return tuple(self._live)

    async def open(self) -> None:
        """Open as many as the options say; with one connection, or where the peer takes no more,
        the main one carries.
        """
        wanted = self._shared.options.connections
        if wanted > 1:
            self._numbers = wanted
            opened, refusals = await self._door.open_all(range(1, wanted + 1))
            self._live = [self._lane(lane) for lane in opened]
            if not opened:
                self._warn(f"{self._door.address} takes no additional connections: one is used")
            elif refusals:
                self._warn(f"{len(refusals)} of {wanted} lanes were refused: {refusals[0]}")
            self._tasks = [self._group.create_task(self._keep(lane)) for lane in self._live]
            if opened:
                self._tasks += [self._group.create_task(self._keep(None)) for _ in refusals]
        if not self._live:
            self._carry_on_main()

    async def move(
        self,
        tables: Iterator[Table],
        *,
        fresh: npt.NDArray[np.bool_] | None = None,
    ) -> int:
        """Move one iteration: the bytes of content sent, once every chunk is answered.

        `fresh`, in iteration 0 alone, says of each mapping whether the destination's memory is
        known to be zero.
        """
        zeros, mappings = Zeros.SENT, None
        if fresh is not None:
            zeros, mappings = Zeros.LEFT_OUT, fresh
        elif Extension.ZERO_RUNS in self._door.extensions:
            zeros = Zeros.NAMED
        chunks = chunks_of(tables, self._rate.chunk_bytes(self._chunk_bytes))
        moved = await self._pool.produce(chunks, zeros, mappings)
        await self._pool.drained()
        return moved

    async def close(self) -> None:
        """Every chunk is answered: end the lanes in good order. From here on the main connection
        carries.
        """
        while self._fencing:  # one more may have been lost when the last fence was there
            await self._fenced.wait()
        await self.stop()
        while self._live:
            self._live.pop().close()
        self._carry_on_main()

    async def stop(self) -> None:
        """Every chunk is answered: nothing carries any more. The main connection is free for other
        requests.
        """
        tasks, self._tasks = self._tasks, []
        self._main_carries = False
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def abort(self) -> None:
        """Drop all lanes."""
        while self._live:
            self._live.pop().connection.abort()

    def _carry_on_main(self) -> None:
        if not self._main_carries:
            self._main_carries = True
            self._tasks.append(self._group.create_task(self._main.carry(self._pool)))

    # Losses

    async def _keep(self, lane: Lane | None) -> None:
        """See one lane through, and each that takes its place; None: its place is empty."""
        pause = _BACKOFF_S
        while True:
            if lane is None:
                lane, pause = await self._replacement(pause)
            enter_connection(lane.name)
            try:
                await lane.run(self._pool)
            except MemoryFault:  # our own memory: no other lane would do better
                raise
            except LOSSES as error:
                if Extension.RETIRE_LANE not in self._door.extensions:
                    raise
                await self._fence(lane, error)
                if lane.answers:
                    pause = _BACKOFF_S
                lane = None

    async def _fence(self, lane: Lane, error: Exception) -> None:
        chunks = lane.unanswered_chunks
        self._warn(f"{lane.name} was lost with {len(chunks)} chunks unanswered: {error}")
        self._shared.tracker.lanes_lost += 1
        self._live.remove(lane)
        lane.connection.abort()
        # New lanes are no progress: it may be the memory that is not taken, on whatever lane.
        limit = self._shared.options.deadlines.answer_s
        if chunks and asyncio.get_running_loop().time() - self._pool.progress_at > limit:
            raise MigrationFailed(
                f"lanes were lost, and no Memory was answered on any connection in {limit:g} s; "
                f"the last one: {error}"
            ) from error
        self._fencing += 1
        self._fenced.clear()
        try:
            await self._main.retire(lane.number)
            self._pool.put_back(chunks)
            self._shared.tracker.chunks_resent += len(chunks)
        finally:
            self._fencing -= 1
            if not self._fencing:
                self._fenced.set()
        if not self._live:
            self._carry_on_main()

    async def _replacement(self, pause: float) -> tuple[Lane, float]:
        """A new lane, and how long to wait before the next one should this be lost at once."""
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _BACKOFF_MOST_S)
            self._numbers += 1
            try:
                lane = self._lane(await self._door.open(self._numbers))
            except LOSSES as error:
                log.info("a lane could not be replaced: %s", error)
                continue
            self._live.append(lane)
            return lane, pause

    def _lane(self, opened: OpenedLane) -> Lane:
        return Lane(opened.connection, opened.core, self._shared, opened.number)

    def _warn(self, warning: str) -> None:
        log.warning(warning)
        self._shared.tracker.warnings.append(warning)

    def hint(self) -> str:
        """What it may mean that lanes were taken and then not answered."""
        lanes = self._live
        silent = [lane for lane in lanes if lane.unanswered and not lane.answers]
        if not silent:
            return ""
        hint = f"{len(silent)} of {len(lanes)} lanes were never answered"
        if any(lane.answers for lane in lanes):
            return hint
        dialect = self._shared.options.dialect
        other = Dialect.V52 if dialect is Dialect.V53 else Dialect.V53
        return (
            f"{hint}: the peer may speak the other dialect, try --dialect {other}, "
            "or take one connection only"
        )
