"""Waiting until a descriptor can be read or written: the one place that registers any on a loop.

A descriptor is registered only during a wait and is off the loop when the wait ends, however it
ends: uvloop keeps one poll handle a descriptor, and a descriptor that is closed while it is
registered leaves a stale entry in either loop. The number is registered, not the socket object,
which uvloop would keep alive.
"""

import asyncio

__all__ = ["Readiness"]


class Readiness:
    """Waits for one descriptor in one direction, for one task at a time."""

    __slots__ = ("_add", "_fd", "_loop", "_remove", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, *, write: bool = False) -> None:
        self._loop = loop
        self._fd = fd
        self._add = loop.add_writer if write else loop.add_reader
        self._remove = loop.remove_writer if write else loop.remove_reader
        self._waiter: asyncio.Future[bool] | None = None

    async def wait(self, deadline: float | None = None) -> bool:
        """Wait until the descriptor is ready (True), or loop.time() reaches `deadline` (False)."""
        waiter: asyncio.Future[bool] = self._loop.create_future()
        timer = None
        self._add(self._fd, _finish, waiter, True)
        self._waiter = waiter
        try:
            if deadline is not None:
                timer = self._loop.call_at(deadline, _finish, waiter, False)
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            if self._waiter is waiter:
                self._waiter = None
                self._remove(self._fd)

    def wake(self) -> None:
        """Have a task that waits look again: what it waits for is elsewhere than in the kernel."""
        if self._waiter is not None:
            _finish(self._waiter, True)

    def fail(self, error: BaseException) -> None:
        """Take the descriptor off the loop, now; a task that waits meets `error`."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._remove(self._fd)
            if not waiter.done():
                waiter.set_exception(error)


def _finish(waiter: asyncio.Future[bool], ready: bool) -> None:
    if not waiter.done():
        waiter.set_result(ready)
