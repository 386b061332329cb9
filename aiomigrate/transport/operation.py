"""One direction of a connection: who uses it, how much a call is offered, what its errors become.

`with side:` brackets each operation. It refuses a second task (a bug detector, not a lock), refuses
a closed side, and is the boundary where an `OSError` becomes a `TransportError`. `Side.transfer` is
the loop that all reads and writes share: try the system call, wait only where it would block, hold
the peer to its pace, and let other tasks of the event loop run now and then.
"""

import asyncio
import errno
from collections.abc import Callable
from types import TracebackType

from aiomigrate.transport.errors import (
    BusyError,
    ConnectionClosed,
    ConnectionLost,
    EndOfStream,
    MemoryFault,
    Stalled,
    TransportError,
)
from aiomigrate.transport.pace import Pace, PaceMeter
from aiomigrate.transport.readiness import Readiness

__all__ = ["MAX_CALL_BYTES", "Side"]

MAX_CALL_BYTES = 1 << 20
"""The most that one system call moves: 0.2 to 0.5 ms of copying, for which the event loop stands
still.
"""

MIN_OFFER_BYTES = 1 << 16
"""The least that is offered after a call that moved little: one small segment must not make the
next call small.
"""

TURN_BYTES = 1 << 18
"""What one direction moves before it lets other tasks run."""

CALL_BYTES = 1 << 12
"""What a system call counts for besides its bytes, so that a stream of tiny messages yields too
(each 64 calls).
"""


class Side:
    """The read or the write side of a connection, or the accept side of a listener."""

    __slots__ = (
        "_busy",
        "_debt",
        "_loop",
        "_name",
        "_offer",
        "_waited_s",
        "_waits_since",
        "closed",
        "ready",
        "what",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, name: str, what: str, *, write: bool = False
    ) -> None:
        self._loop = loop
        self._name = name
        self._busy = False
        self._debt = 0
        self._offer = MAX_CALL_BYTES
        self.what = what
        self.closed = False
        self._waited_s = 0.0
        self._waits_since: float | None = None
        self.ready = Readiness(loop, fd, write=write)

    def __enter__(self) -> None:
        if self._busy:
            raise BusyError(self._name, self.what)
        if self.closed:
            raise ConnectionClosed(self._name, self.what)
        self._busy = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._busy = False
        if isinstance(error, OSError):
            raise self._convert(error) from error

    def _convert(self, error: OSError) -> TransportError:
        if self.closed:  # closed by another task: the descriptor was gone (EBADF)
            return ConnectionClosed(self._name, self.what)
        if error.errno == errno.EFAULT:
            return MemoryFault(self._name, self.what)
        return ConnectionLost(
            self._name, self.what, errno=error.errno or 0, got=error.strerror or str(error)
        )

    def close(self) -> None:
        """Refuse further operations, and take the descriptor off the loop: who waits meets this."""
        self.closed = True
        self.ready.fail(ConnectionClosed(self._name, self.what))

    async def pause(self) -> None:
        """Let other tasks run if this side has had its turn.

        Awaited before a system call, so that a cancellation here loses nothing.
        """
        if self._debt >= TURN_BYTES:
            self._debt = 0
            await asyncio.sleep(0)

    def charge(self, moved: int) -> None:
        """Count a system call that moved `moved` bytes against this side's turn."""
        self._debt += moved + CALL_BYTES

    @property
    def waited_s(self) -> float:
        """How long `transfer` has waited for the descriptor, in seconds, up to now."""
        if self._waits_since is None:
            return self._waited_s
        return self._waited_s + self._loop.time() - self._waits_since

    async def _wait(self, deadline: float | None) -> None:
        self._waits_since = self._loop.time()
        try:
            await self.ready.wait(deadline)
        finally:
            self._waited_s, self._waits_since = self.waited_s, None

    async def transfer(
        self,
        step: Callable[[int], int],
        total: int,
        pace: Pace | None,
        *,
        done: int = 0,
    ) -> None:
        """Call `step(most bytes)` until it has moved `total` bytes.

        `step` makes one system call and gives the bytes it moved, 0 at the end of the stream, or
        raises `BlockingIOError`. `done` bytes of the same thing were moved before; only errors name
        them. Raises `EndOfStream` and `Stalled`.
        """
        meter = None if pace is None else PaceMeter(pace, total, self._loop.time())
        rest = total
        while rest > 0:
            if self._debt >= TURN_BYTES:
                await self.pause()
            try:
                moved = step(self._offer)
            except BlockingIOError:
                if meter is None:
                    await self._wait(None)
                    continue
                # Judged only here, where there really is nothing to move: a loop that was held up
                # itself finds the time over and the bytes waiting.
                if self._loop.time() >= meter.deadline:
                    raise Stalled(
                        self._name,
                        self.what,
                        seconds=meter.seconds,
                        expected=meter.goal,
                        moved=meter.moved,
                    ) from None
                await self._wait(meter.deadline)
                continue
            if not moved:
                raise EndOfStream(
                    self._name, self.what, expected=done + total, received=done + total - rest
                )
            rest -= moved
            self._debt += moved + CALL_BYTES
            # The kernel walks the whole offered vector again after a partial call, so do not offer
            # far more than it takes.
            self._offer = min(MAX_CALL_BYTES, max(MIN_OFFER_BYTES, 2 * moved))
            if meter is not None:
                meter.advance(moved, self._loop.time())
