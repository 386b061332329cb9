"""What has struck, who waits for it, and what is held until it is let go."""

import asyncio
import logging
from dataclasses import dataclass

from aiomigrate.testing.faults import Direction, Fault

__all__ = ["Strikes", "Struck"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Struck:
    """A `fault` that has struck a `connection`, by its number."""

    fault: Fault
    connection: int
    direction: Direction | None = None
    """Of the bytes that were counted; None for a fault of the set-up."""


class Strikes:
    """All strikes of one relay, in order."""

    def __init__(self) -> None:
        self.all: list[Struck] = []
        self._news = asyncio.Event()
        self._gates: list[tuple[int, asyncio.Event]] = []

    def note(self, strike: Struck) -> None:
        """It has struck: tell who waits for it."""
        where = f", {strike.direction}" if strike.direction else ""
        log.info("connection %d%s: struck by %s", strike.connection, where, strike.fault)
        self.all.append(strike)
        self._news.set()
        self._news = asyncio.Event()

    async def wait(self, connection: int, fault: Fault | None) -> Struck:
        """Wait, without limit, until `fault` (None: any) has struck on `connection`."""
        while True:
            for strike in self.all:
                if strike.connection == connection and fault in {None, strike.fault}:
                    return strike
            await self._news.wait()

    async def hold(self, strike: Struck) -> None:
        """It has struck: wait, without limit, until it is released."""
        gate = (strike.connection, asyncio.Event())
        self._gates.append(gate)
        self.note(strike)
        try:
            await gate[1].wait()
        finally:
            self._gates.remove(gate)

    def release(self, connection: int | None) -> None:
        """Let go what is held now on `connection`, or (None) on all."""
        for index, gate in self._gates:
            if connection in {None, index}:
                gate.set()
