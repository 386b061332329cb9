"""How long the event loop was held up: by how much a timer came late.

A callback that runs for long delays all others by as much. A timer every 10 ms sees that, on any
loop; what it sees is at most that timer's period short of the longest callback. The figure is over
the last minute or so, so that more than one reader can ask.
"""

import asyncio
from types import TracebackType
from typing import Self

__all__ = ["Lateness"]

_EVERY_S = 0.01
_WINDOW_S = 60.0


class Lateness:
    """Watches the running loop while it is entered."""

    def __init__(self) -> None:
        self._now = 0.0
        self._before = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def longest_s(self) -> float:
        """Seconds, the most in the last one to two minutes."""
        return max(self._now, self._before)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        turn_at = loop.time() + _WINDOW_S
        while True:
            due = loop.time() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            now = loop.time()
            self._now = max(self._now, now - due)
            if now >= turn_at:
                turn_at = now + _WINDOW_S
                self._before, self._now = self._now, 0.0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
