"""One direction of one connection through the relay.

Two tasks and a bounded queue between them, the *line*. One task reads from the source, no faster
than the rate allows and never past the byte at which the next fault strikes, and puts what it read
on the line with the time at which it is due at the other end. The other task takes it from the
line, in order, writes it once it is due, and carries out the fault. The line holds few pieces (one,
if nothing is delayed), so that a sink that does not read stops the source.
"""

import asyncio
import contextlib
import fcntl
import random
import socket
import struct
import termios
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from aiomigrate.testing.faults import AtByte, Delay, Direction, Fault, HalfClose, Rate
from aiomigrate.transport.readiness import Readiness

__all__ = ["Pump", "acknowledged", "discard"]

PIECE_BYTES = 256 << 10
"""The most that is read at once. With the pieces of a line it bounds a direction's memory."""

DELAYED_PIECES = 64
"""On the line if something is delayed: 16 MiB. More than that in one delay is not carried."""

PIECE_S = 0.01
"""A piece is at most what the rate carries in this time, or a slow link would move in bursts."""

LATE_S = 0.02
"""What a busy machine makes the relay late is made up for, as by the queue of a link."""

POLL_S = 0.001
"""Between looks whether a peer has acknowledged everything, of which no event tells."""


class Pump:
    """Moves bytes from `source` to `sink` with those of `faults` that are meant for it.

    `strike(fault)` is called when a fault at a byte has got its bytes through, and returns when the
    stream may go on; `passed(n)` when `n` more bytes are with the sink's kernel.
    """

    def __init__(
        self,
        direction: Direction,
        faults: Iterable[Fault],
        chance: random.Random,
        *,
        strike: Callable[[AtByte], Coroutine[Any, Any, None]],
        passed: Callable[[int], None],
    ) -> None:
        delays = [f for f in faults if isinstance(f, Delay) and f.goes(direction)]
        rates = [f.bytes_per_s for f in faults if isinstance(f, Rate) and f.goes(direction)]
        strikes = [f for f in faults if isinstance(f, AtByte) and f.goes(direction)]
        self._strikes = sorted(strikes, key=lambda fault: fault.after)
        self._delay_s = sum(fault.seconds for fault in delays)
        self._jitter_s = sum(fault.jitter_s for fault in delays)
        self._rate = min(rates, default=None)
        self._piece = PIECE_BYTES
        if self._rate is not None:
            self._piece = max(1, min(PIECE_BYTES, int(self._rate * PIECE_S)))
        self._chance = chance
        self._strike = strike
        self._passed = passed
        self._free_at = 0.0
        self._line: asyncio.Queue[tuple[float, bytes | AtByte]] = asyncio.Queue(
            DELAYED_PIECES if delays else 1
        )

    async def run(self, source: socket.socket, sink: socket.socket) -> None:
        """Move everything, then the end of stream. `OSError` (in a group): an end was lost."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._land(sink))
            group.create_task(self._take_off(source))

    async def _take_off(self, source: socket.socket) -> None:
        taken = 0
        for fault in self._strikes:
            while taken < fault.after:
                data = await _receive(source, min(self._piece, fault.after - taken))
                taken += len(data)
                await self._put(data)
                if not data:
                    return
            await self._put(fault)
            await self._line.join()
            if isinstance(fault, HalfClose):
                await discard(source)
                return
        data = b"-"
        while data:
            data = await _receive(source, self._piece)
            await self._put(data)

    async def _put(self, item: bytes | AtByte) -> None:
        """Wait until the link has carried `item`, and put it on the line."""
        loop = asyncio.get_running_loop()
        if self._rate is not None and isinstance(item, bytes):
            self._free_at = max(loop.time() - LATE_S, self._free_at) + len(item) / self._rate
            await _sleep_until(self._free_at)
        due = loop.time() + self._delay_s
        if self._jitter_s:
            due += self._chance.uniform(0.0, self._jitter_s)
        await self._line.put((due, item))

    async def _land(self, sink: socket.socket) -> None:
        while True:
            due, item = await self._line.get()
            await _sleep_until(due)
            if isinstance(item, AtByte):
                await self._strike(item)
            elif item:
                await _send(sink, item)
                self._passed(len(item))
            else:
                sink.shutdown(socket.SHUT_WR)
            self._line.task_done()
            if not item or isinstance(item, HalfClose):
                return


async def _sleep_until(when: float) -> None:
    now = asyncio.get_running_loop().time()
    if when > now:
        await asyncio.sleep(when - now)


async def _receive(sock: socket.socket, limit: int) -> bytes:
    while True:
        try:
            return sock.recv(limit)
        except BlockingIOError:
            await Readiness(asyncio.get_running_loop(), sock.fileno()).wait()


async def _send(sock: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await Readiness(asyncio.get_running_loop(), sock.fileno(), write=True).wait()


async def discard(sock: socket.socket) -> None:
    """Read and drop what comes until the stream ends, in whatever way."""
    with contextlib.suppress(OSError):
        data = b"-"
        while data:
            await asyncio.sleep(0)  # a writer that never pauses leaves others their turn
            data = await _receive(sock, PIECE_BYTES)


async def acknowledged(sock: socket.socket) -> None:
    """Wait until the peer's kernel has all that was written.

    For TCP that is SIOCOUTQ's 0 (tcp(7)); a unix socket's bytes are there when they are written.
    """
    if sock.family == socket.AF_UNIX:
        return
    while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]:  # noqa: ASYNC110 - no event
        await asyncio.sleep(POLL_S)
