"""What a migration has done to the guest at its source, and how that is undone.

Every hook of the Source that changes something goes through here, so that whatever fails, and
wherever, all of it is undone and nothing else: the throttle, the hand-over, the pause, the dirty
log. What was begun counts as done: a hook that failed may have done half of it.
"""

from collections.abc import Sequence

from aiomigrate.embedding import Source, Throttled
from aiomigrate.errors import MigrationError, MigrationFailed
from aiomigrate.hooks import Hooks
from aiomigrate.memory.bitmaps import Bitmap, check_bitmaps

__all__ = ["GuestHold"]


class GuestHold:
    """The guest of `source`, in the hands of one migration."""

    def __init__(self, source: Source, hooks: Hooks) -> None:
        self._source = source
        self._hooks = hooks
        self._logging = False
        self._throttle = source if isinstance(source, Throttled) else None
        self._was_throttled = False
        self._handed_over = False
        self.paused = False
        """Whether `pause` was called."""
        self.throttle_percent: int | None = 0 if self._throttle is not None else None
        """How far the guest is throttled; None if its VMM cannot do that."""

    async def start_log(self) -> None:
        """Begin to log dirt."""
        self._logging = True
        await self._hooks.call("dirty.start", self._source.dirty.start())

    async def collect(self) -> Sequence[Bitmap]:
        """What was written since the last time."""
        bitmaps = await self._hooks.call("dirty.collect", self._source.dirty.collect())
        try:
            check_bitmaps(self._source.memory.map, bitmaps)
        except ValueError as error:
            raise MigrationFailed(f"source: dirty.collect gave no such bitmaps: {error}") from error
        return bitmaps

    async def throttle(self, percent: int) -> None:
        """Slow the guest down; its VMM can do that."""
        if self._throttle is None:
            raise TypeError("the source has no throttle")  # the policy asked for the impossible
        self._was_throttled = True
        await self._hooks.call("throttle", self._throttle.throttle(percent))
        self.throttle_percent = percent

    async def pause(self) -> None:
        """Stop the guest."""
        self.paused = True
        await self._hooks.call("pause", self._source.pause())

    async def capture(self) -> bytes:
        """The state of the paused guest."""
        return await self._hooks.call("capture", self._source.capture())

    async def hand_over(self, destination: str) -> None:
        """Give up what both sides cannot hold."""
        self._handed_over = True
        await self._hooks.call("hand_over", self._source.hand_over(destination))

    async def undo(self, failure: MigrationError) -> list[str]:
        """The guest stays: as it was before, and running if it ran. What went wrong in that."""
        problems = [await self._unthrottle()]
        if self._handed_over:
            problems.append(await self._hooks.attempt("take_back", self._source.take_back(failure)))
        if self.paused:
            problem = await self._hooks.attempt("resume", self._source.resume())
            problems.append(problem and f"{problem}: the guest may be paused still")
        return [*problems, await self._stop_log()]

    async def lose(self, failure: MigrationError) -> list[str]:
        """It is unknown who has the guest: it stays paused, and what was given up, given."""
        await self._hooks.attempt("lost", self._source.lost(failure))
        return [await self._unthrottle(), await self._stop_log()]

    async def release(self) -> None:
        """The destination has the guest."""
        await self._unthrottle()
        await self._stop_log()
        await self._hooks.attempt("release", self._source.release())

    async def _unthrottle(self) -> str:
        if self._throttle is None or not self._was_throttled:
            return ""
        return await self._hooks.attempt("throttle", self._throttle.throttle(0))

    async def _stop_log(self) -> str:
        if not self._logging:
            return ""
        return await self._hooks.attempt("dirty.stop", self._source.dirty.stop())
