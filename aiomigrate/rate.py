"""A limit to how fast memory leaves, over all connections together.

A token bucket that may be overdrawn: whoever finds no debt may take a chunk of any size, and then
everybody waits until that is paid off. No credit is saved up, so a pause is not followed by
a burst. Waiting ends at once when the limit changes.
"""

import asyncio
from contextlib import suppress

from aiomigrate.memory.map import PAGE_BYTES

__all__ = ["RateLimit"]

_CLOCK_S = 1e-3
"""What an event loop's clock can tell apart: less than that is not waited for, and stays owed."""
_SLICES = 10
"""Chunks a second at the least, so that a limited sender leaves the network to others in between:
QEMU shares out its limit every 100 ms, too."""


class RateLimit:
    """`limit` bytes a second, 0: none. Kept on the running loop's clock."""

    def __init__(self, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._debt = 0.0
        self._at = self._loop.time()
        self._lifted = False
        self._changed = asyncio.Event()

    def chunk_bytes(self, most: int) -> int:
        """Content of a chunk, `most` where nothing is limited; a multiple of a page."""
        if not self._limit:
            return most
        return min(most, max(self._limit // _SLICES // PAGE_BYTES, 1) * PAGE_BYTES)

    async def paid(self) -> None:
        """Wait until something may leave."""
        while self._limit and (wait := self._owed() / self._limit) >= _CLOCK_S:
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def spend(self, nbytes: int) -> None:
        """So many bytes leave."""
        self._debt = self._owed() + nbytes if self._limit else 0.0

    def change(self, limit: int) -> None:
        """From now on `limit` bytes a second; without effect once it is lifted."""
        if self._lifted:
            return
        self._debt = self._owed() if limit else 0.0
        self._limit = limit
        self._changed.set()

    def lift(self) -> None:
        """For good: the guest is paused."""
        self.change(0)
        self._lifted = True

    def _owed(self) -> float:
        now = self._loop.time()
        self._debt = max(0.0, self._debt - self._limit * (now - self._at))
        self._at = now
        return self._debt
