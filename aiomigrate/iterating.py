"""Pre-copy: iteration after iteration, until the guest is paused and the rest is sent.

Between iterations the policy decides (precopy.py). Within one, two things cannot wait for its end:
the time limit, and an operator who asks to switch over now. The guest is then paused in the middle
of the iteration, which goes on: its chunks are as good as before, and what they miss is in the
dirty log and follows once all of them are answered, as ever.

What is dirty once the guest is paused is a pass of its own, over the lanes like the others, unless
it is so little that it costs nothing to send it with what capturing the state will write, over the
main connection: then the round trip is saved that ends a pass.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from aiomigrate.downtime import Stage, Stopwatch
from aiomigrate.errors import MigrationFailed
from aiomigrate.executor import JobExecutor
from aiomigrate.hold import GuestHold
from aiomigrate.lanes import Lanes
from aiomigrate.memory.bitmaps import Bitmap, count_steps, dirty_tables, union_steps
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import PAGE_BYTES
from aiomigrate.memory.ranges import Table, make_table
from aiomigrate.options import TimeoutStrategy
from aiomigrate.phase import Phase
from aiomigrate.precopy import Course, Decision, Verdict, decide, trouble
from aiomigrate.progress import Tracker
from aiomigrate.tasks import settle
from aiomigrate.tuning import Tuning

__all__ = ["Precopy"]

log = logging.getLogger("aiomigrate.source")

SMALL_BYTES = 3 * PAGE_BYTES
"""Last dirt that the main connection carries. With its header and table it fits into 10 segments of
1,460 bytes, which is what a connection sends at once that was quiet (RFC 6928), as the main one has
been since Config. More would wait there, while the windows of the lanes are open."""

_HINT = "Allow more downtime, more connections, or the timeout strategy 'ignore'"


class Precopy:
    """The pre-copy of one attempt. `run` once."""

    def __init__(
        self,
        memory: GuestMemory,
        hold: GuestHold,
        lanes: Lanes,
        executor: JobExecutor,
        tracker: Tracker,
        tuning: Tuning,
        stopwatch: Stopwatch,
    ) -> None:
        self._memory = memory
        self._hold = hold
        self._lanes = lanes
        self._executor = executor
        self._tracker = tracker
        self._tuning = tuning
        self._stopwatch = stopwatch
        self._course = Course()
        self._loop = asyncio.get_running_loop()
        self._began = 0.0
        self._paused_at = 0.0

    async def run(self, fresh: npt.NDArray[np.bool_] | None) -> Sequence[Bitmap]:
        """Move all memory; the guest is paused when this returns. What is still dirty and to be
        moved: at most `SMALL_BYTES`, bitmaps as `DirtyLog.collect` gives them.

        `fresh`: of which mappings the destination's memory is known to be zero; None: of none.
        MigrationFailed if the time is over and that is not to be ignored.
        """
        self._tracker.phase = Phase.PRECOPY
        await self._hold.start_log()
        self._began = mark = self._loop.time()
        moved = await self._move_all(fresh)
        dirty: Sequence[Bitmap] = ()
        while not self._hold.paused:
            dirty = await self._hold.collect()
            nbytes = await self._dirty_bytes(dirty)
            now = self._loop.time()
            settled = self._tracker.iteration_bytes_done
            self._course.add(moved=moved, settled=settled, dirty=nbytes, seconds=now - mark)
            mark = now
            decision = self._judge()
            if decision.verdict is Verdict.SWITCH_OVER:
                await self._pause()
                break
            if decision.verdict is Verdict.THROTTLE:
                await self._hold.throttle(decision.throttle_percent)
                self._tracker.throttle_percent = self._hold.throttle_percent
                self._course.throttled()
            self._tracker.begin_iteration(self._tracker.iteration + 1, nbytes)
            moved = await self._move(dirty_tables(self._memory.map, dirty))
            dirty = ()
        rest = await self._executor.drive(union_steps(await self._hold.collect(), dirty))
        nbytes = await self._dirty_bytes(rest)
        if not nbytes:
            return ()
        self._tracker.begin_iteration(self._tracker.iteration + 1, nbytes)
        if nbytes <= SMALL_BYTES:
            return rest
        await self._move(dirty_tables(self._memory.map, rest))
        return ()

    async def _dirty_bytes(self, dirty: Sequence[Bitmap]) -> int:
        return await self._executor.drive(count_steps(self._memory.map, dirty))

    async def _move_all(self, fresh: npt.NDArray[np.bool_] | None) -> int:
        """Iteration 0."""
        if fresh is None:
            tables, expected = iter([self._memory.map.whole()]), self._memory.map.total_bytes
        else:
            expected = await self._executor.run(self._memory.expected_bytes)
            tables = self._memory.data_tables()
        self._tracker.begin_iteration(0, expected)
        moved = await self._move(tables, fresh=fresh)
        if not moved:
            # All zero: a destination cannot tell that from a source whose memory is still to come.
            # One page says nothing of the bandwidth.
            first = self._memory.map.mappings[0]
            await self._move(iter([make_table([(first.gpa, PAGE_BYTES)])]))
        return moved

    def _judge(self) -> Decision:
        """Decide what comes after an iteration, and tell. MigrationFailed if that is the end."""
        options = self._tuning.options
        figures = self._course.figures(
            elapsed_s=self._loop.time() - self._began,
            throttle_percent=self._hold.throttle_percent,
        )
        decision = decide(options, figures)
        self._tracker.trouble = trouble(options, figures)
        self._tracker.judged(
            bandwidth=figures.bandwidth,
            dirty_rate=figures.dirty_rate,
            downtime_ms=figures.expected_downtime_ms,
        )
        self._note(decision)
        if decision.verdict is Verdict.GIVE_UP:
            raise self._not_converged(decision.reason)
        return decision

    def _note(self, decision: Decision) -> None:
        log.debug("%s", decision)
        self._tracker.decided(str(decision))

    def _not_converged(self, reason: str) -> MigrationFailed:
        why = self._tracker.trouble
        hint = f"{why[0].upper()}{why[1:]}. {_HINT}" if why else _HINT
        return MigrationFailed(f"pre-copy did not converge: {reason}", hint=hint)

    # Within an iteration

    async def _move(
        self, tables: Iterator[Table], *, fresh: npt.NDArray[np.bool_] | None = None
    ) -> int:
        """One iteration, and what happens while it moves: the bytes of content sent."""
        changed = self._tuning.changed
        moving = asyncio.create_task(self._lanes.move(tables, fresh=fresh))
        moving.add_done_callback(lambda _: changed.set())
        late = False
        try:
            while not moving.done():
                changed.clear()
                await self._heed(late=late)
                limit = asyncio.timeout_at(self._time_limit())
                try:
                    async with limit:
                        await changed.wait()
                except TimeoutError:
                    late = True
            moved = moving.result()
            self._tracker.end_iteration()
            return moved
        finally:
            moving.cancel()
            await settle(moving)
            if not moving.cancelled():
                moving.exception()  # raised above, or something else is

    async def _heed(self, *, late: bool) -> None:
        """Do at once what an operator or the time limit asks for."""
        options = self._tuning.options
        if (self._hold.throttle_percent or 0) > options.throttle_cap_percent:
            await self._hold.throttle(options.throttle_cap_percent)
            self._tracker.throttle_percent = self._hold.throttle_percent
        if late and options.timeout_strategy is TimeoutStrategy.CANCEL:
            raise self._not_converged(self._in_the_middle(f"{options.timeout_s} s are over"))
        if self._hold.paused:
            return
        if late:
            why = f"{options.timeout_s} s are over"
        elif self._tuning.switch_over_asked:
            why = "it was asked for"
        else:
            return
        self._note(Decision(Verdict.SWITCH_OVER, self._in_the_middle(why)))
        await self._pause()

    def _in_the_middle(self, why: str) -> str:
        tracker = self._tracker
        left = max(0, tracker.iteration_bytes - tracker.iteration_bytes_done)
        return f"{why}, and {left} bytes of iteration {tracker.iteration} are not moved yet"

    def _time_limit(self) -> float | None:
        """When the time is over, on the loop's clock; None: that would change nothing."""
        options = self._tuning.options
        over = self._began + options.timeout_s
        if not self._hold.paused:
            return over
        if options.timeout_strategy is TimeoutStrategy.IGNORE:
            return None
        return max(over, self._paused_at + options.downtime_ms / 1000)

    async def _pause(self) -> None:
        self._tracker.phase = Phase.SWITCHOVER
        self._stopwatch.enter(Stage.PAUSE)
        await self._hold.pause()
        self._paused_at = self._loop.time()
        self._stopwatch.enter(Stage.LAST_PASS)
        self._tuning.rate.lift()
