"""One connection through the relay, from its acceptance to its end.

It ends in one of three ways: both directions ended by themselves; cut, where both ends read an end
of stream and the relay reads on until they have closed (closing earlier would reset what they still
write); or reset.
"""

import asyncio
import logging
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, final

from aiomigrate.testing.faults import (
    AtByte,
    Behind,
    Direction,
    Fault,
    HalfClose,
    Refuse,
    Reset,
    Stall,
)
from aiomigrate.testing.pump import Pump, acknowledged, discard
from aiomigrate.testing.strikes import Strikes, Struck
from aiomigrate.transport import Address
from aiomigrate.transport.connecting import connected_socket
from aiomigrate.transport.sockets import describe, resolve, set_options

__all__ = ["Relayed"]

CONNECT_S = 10.0
"""To reach the target; then the connection is reset, as it is if the target refuses it."""

log = logging.getLogger(__name__)


class _Ending(NamedTuple):
    """How the relay ends a connection, and the strike that does, if one does."""

    reset: bool
    strike: Struck | None = None


@final
class Relayed:
    """A connection that the relay has accepted, its number `index`; owns the socket `near`, and
    notes in `strikes` what has struck it.
    """

    def __init__(self, index: int, near: socket.socket, strikes: Strikes) -> None:
        self.index = index
        """By order of acceptance, from 0."""
        self.passed = dict.fromkeys(Direction, 0)
        """Bytes by direction that the relay has handed to the receiving end's socket."""
        self.reached = asyncio.Event()
        """Set when the target has been reached, or never will be."""
        self.ended = asyncio.Event()
        """Set when the relay has closed it."""
        self._ends = [near]
        self._strikes = strikes
        self._ending: asyncio.Future[_Ending] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        state = "ended" if self.ended.is_set() else "open"
        up, down = self.passed.values()
        return f"<Relayed {self.index} {state}, {up} bytes up, {down} down>"

    def cut(self) -> None:
        """Let both ends read an end of stream, unless it ends already."""
        self._end(_Ending(reset=False))

    def close(self) -> None:
        """Close both ends, now. Idempotent."""
        for end in self._ends:
            end.close()
        self.reached.set()
        self.ended.set()

    async def run(
        self,
        target: Address,
        faults: Sequence[Fault],
        seed: int,
        reached: Callable[[int], Awaitable[None]],
    ) -> None:
        """Connect to `target` and move bytes, with `faults`, until the connection has ended. What
        the faults do by chance follows from `seed`.

        `reached(n)` waits until connection n has reached the target, or never will.
        """
        async with asyncio.TaskGroup() as group:
            carrying = group.create_task(self._carry(target, faults, seed, reached))
            either: set[asyncio.Future[Any]] = {carrying, self._ending}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            carrying.cancel()
        self.reached.set()
        how = "ended"
        if self._ending.done():
            ending = self._ending.result()
            how = "reset" if ending.reset else "cut"
            for end in self._ends:
                if ending.reset:
                    _reset(end)
                else:
                    _end_writing(end)
            if ending.strike is not None:
                self._strikes.note(ending.strike)
            if not ending.reset:
                async with asyncio.TaskGroup() as group:
                    for end in self._ends:
                        group.create_task(discard(end))
        self.close()
        up, down = self.passed.values()
        log.info("connection %d: %s after %d bytes up, %d down", self.index, how, up, down)

    async def _carry(
        self,
        target: Address,
        faults: Sequence[Fault],
        seed: int,
        reached: Callable[[int], Awaitable[None]],
    ) -> None:
        near = self._ends[0]
        for fault in faults:
            if isinstance(fault, Refuse):
                self._end(_Ending(fault.reset, Struck(fault, self.index)))
                return
            if isinstance(fault, Behind):
                await reached(fault.other)
                self._strikes.note(Struck(fault, self.index))
        try:
            set_options(near)
            async with asyncio.timeout(CONNECT_S):
                far = await connected_socket((await resolve(target))[0])
        except (OSError, UnicodeError) as error:
            log.warning("connection %d: %s: %s", self.index, target, describe(error))
            self._end(_Ending(reset=True))
            return
        self._ends.append(far)
        self.reached.set()
        ways = ((Direction.UP, near, far), (Direction.DOWN, far, near))
        try:
            async with asyncio.TaskGroup() as group:
                for direction, source, sink in ways:
                    pump = Pump(
                        direction,
                        faults,
                        random.Random(f"{seed} {self.index} {direction}"),  # noqa: S311 - no secret
                        strike=partial(self._strike, direction, sink),
                        passed=partial(self._count, direction),
                    )
                    group.create_task(pump.run(source, sink))
        except* OSError:
            self._end(_Ending(reset=True))

    def _count(self, direction: Direction, nbytes: int) -> None:
        self.passed[direction] += nbytes

    async def _strike(self, direction: Direction, sink: socket.socket, fault: AtByte) -> None:
        strike = Struck(fault, self.index, direction)
        if isinstance(fault, Stall):
            await self._strikes.hold(strike)
        elif isinstance(fault, HalfClose):
            sink.shutdown(socket.SHUT_WR)
            self._strikes.note(strike)
        else:
            if isinstance(fault, Reset):
                await acknowledged(sink)
            self._end(_Ending(isinstance(fault, Reset), strike))
            await self.ended.wait()  # cancelled before that

    def _end(self, how: _Ending) -> None:
        if not self._ending.done():
            self._ending.set_result(how)


def _end_writing(sock: socket.socket) -> None:
    with suppress(OSError):  # the peer has reset it meanwhile
        sock.shutdown(socket.SHUT_WR)


def _reset(sock: socket.socket) -> None:
    """Close so that the peer reads a reset (socket(7), SO_LINGER of 0 s)."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
