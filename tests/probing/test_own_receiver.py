"""aiomigrate's own receiver, started anew for each check, is found to be good."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from aiomigrate import (
    Deadlines,
    MigrationError,
    Pace,
    ReceiveOptions,
    StoredDestination,
    receive,
)
from aiomigrate.probing import ProbeVm, Verdict, plan, probe
from aiomigrate.transport import parse_address
from tests.support.sockets import free_port

PATIENCE_S = 10.0
# Less than what the probe gives a receiver to notice that a sender has stopped.
PROMPT = ReceiveOptions(deadlines=Deadlines(header_s=0.5, pace=Pace(seconds=0.5)))


class Own:
    """`receive` into a directory, on the running loop."""

    fresh = True

    def __init__(self, address: str, into: Path) -> None:
        self._address = address
        self._into = into
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.stop()
        listening = asyncio.Event()
        self._task = asyncio.create_task(self._receive(listening))
        await listening.wait()

    async def _receive(self, listening: asyncio.Event) -> None:
        async with (
            StoredDestination(self._into) as destination,
            receive(destination, self._address, PROMPT) as migration,
        ):
            listening.set()
            with suppress(MigrationError):
                await migration.result()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def failure(self) -> str:
        return ""

    def processes(self) -> list[int]:
        return []


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_nothing_is_wrong_with_it(kind: str, tmp_path: Path, no_leaks: None) -> None:
    address = f"tcp:127.0.0.1:{free_port()}" if kind == "tcp" else f"unix:{tmp_path}/s"
    own = Own(address, tmp_path / "vm")
    where = parse_address(address)
    try:
        results = [
            result
            async for result in probe(where, plan(where), ProbeVm.built_in(), own, PATIENCE_S)
        ]
    finally:
        await own.stop()
    odd = {
        result.check.name: result.seen.text
        for result in results
        if result.seen.verdict not in (Verdict.OK, Verdict.NOTE)
    }
    assert odd == {}
    assert not (tmp_path / "vm").exists()
