"""Seeing that a peer has hung up, while others may read and write.

The loops can only wait for *readable*, which unread bytes would make true. So what is asked and
waited for here is the hang-up alone: by `poll`, and by an epoll set whose own descriptor is
readable once the peer has hung up.
"""

import asyncio
import select

from aiomigrate.transport.errors import BusyError, ConnectionClosed
from aiomigrate.transport.readiness import Readiness

__all__ = ["HangUp"]

_WATCH = "watch"
_EVENTS = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class HangUp:
    """That of one connected socket, by its descriptor; one task at a time may wait for it.

    Consumes nothing, and sees the end behind bytes that are not read yet.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, name: str) -> None:
        self._loop = loop
        self._fd = fd
        self._name = name
        self._closed = False
        self._waiting: Readiness | None = None

    def seen(self) -> bool:
        """Whether the peer has ended its stream or the connection is broken."""
        self.check_open()
        poll = select.poll()
        poll.register(self._fd, _EVENTS)
        return bool(poll.poll(0))

    async def wait(self, within: float) -> bool:
        """Wait until `seen()` (True), or for `within` seconds (False)."""
        self.check_open()
        if self._waiting is not None:
            raise BusyError(self._name, _WATCH)
        with select.epoll(1) as epoll:
            epoll.register(self._fd, _EVENTS)
            self._waiting = Readiness(self._loop, epoll.fileno())
            try:
                return await self._waiting.wait(self._loop.time() + within)
            finally:
                self._waiting = None

    def check_open(self) -> None:
        """Raise `ConnectionClosed` after `close`."""
        if self._closed:
            raise ConnectionClosed(self._name, _WATCH)

    def close(self) -> None:
        """The descriptor is about to be closed: a task that waits meets `ConnectionClosed`."""
        self._closed = True
        if self._waiting is not None:
            self._waiting.fail(ConnectionClosed(self._name, _WATCH))
