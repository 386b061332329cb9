"""A source's connection that breaks in the middle of Complete, or takes nothing of it."""

import asyncio
import errno
from typing import Any

import pytest

from aiomigrate.transport import Connection, ConnectionLost
from tests.support.turns import until

__all__ = ["complete_breaks_off", "complete_waits"]


def complete_breaks_off(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Have Complete break off after 5 bytes, once there is something to read; set as it begins."""
    write_now, write = Connection.write_now, Connection.write
    begun = asyncio.Event()

    def write_half(connection: Connection, data: bytes) -> int:
        begun.set()
        return write_now(connection, data[:5])

    async def broken(connection: Connection, *arguments: Any) -> None:
        if not begun.is_set():
            await write(connection, *arguments)
            return
        await until(connection.unread)
        raise ConnectionLost(connection.name, "write", errno=errno.EPIPE, got="broken")

    monkeypatch.setattr(Connection, "write_now", write_half)
    monkeypatch.setattr(Connection, "write", broken)
    return begun


def complete_waits(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Have Complete wait for ever behind unsent bytes; set once it does."""
    waiting = asyncio.Event()

    async def writable(connection: Connection, within: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Connection, "write_now", lambda *_: 0)
    monkeypatch.setattr(Connection, "writable", writable)
    return waiting
