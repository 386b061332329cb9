"""Connections that have not shown what they are, and how many of them are held.

Whoever means something says it at once. So where there are too many the one that has been silent
longest goes: it is closed, and nobody else is taken before its task has ended. That may still wait
for a thread, with a step of a TLS handshake; a flood is taken as fast as those work.
"""

import asyncio
from collections.abc import Iterator

from aiomigrate.transport.connection import Connection

__all__ = ["Strangers"]


class Strangers:
    """Those that one listener has accepted, the one that has been silent longest first."""

    def __init__(self) -> None:
        self._tasks: dict[Connection, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._tasks)

    def add(self, connection: Connection, task: asyncio.Task[None]) -> None:
        """Hold `connection` until `task`, which finds out what it is, has ended or says so; the
        task ends soon once the connection is closed.
        """
        self._tasks[connection] = task
        task.add_done_callback(lambda _: self.discard(connection))

    def discard(self, connection: Connection) -> None:
        """It is a stranger no more; also if it was none."""
        self._tasks.pop(connection, None)

    async def limit(self, most: int) -> None:
        """Awaited after each `add`: there are at most so many afterwards."""
        if len(self) > most:
            oldest, task = next(iter(self._tasks.items()))
            oldest.close()
            await asyncio.wait([task])
