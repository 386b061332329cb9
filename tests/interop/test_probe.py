"""The probe on a real Cloud Hypervisor finds what is known of it, and nothing in a good order."""

import asyncio
from pathlib import Path

import pytest

from aiomigrate import StoredDestination, receive
from aiomigrate.probing import ProbeVm, ShellCommand, Verdict, plan, probe
from aiomigrate.transport import parse_address
from tests.support.cloud_hypervisor import (
    COUNTERS,
    Guest,
    Installation,
    Vmm,
    find_installation,
    receiving,
)
from tests.support.sockets import free_port

FOUND = find_installation()
pytestmark = [pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))]


async def test_its_endless_loop_is_found(tmp_path: Path) -> None:
    assert isinstance(FOUND, Installation)
    guest = Guest.build(tmp_path)
    taken, work = tmp_path / "taken", tmp_path / "work"
    work.mkdir()
    with Vmm(FOUND, guest, work, boots=True) as source:
        source.wait_work(more_than=COUNTERS)
        async with (
            StoredDestination(taken) as destination,
            receive(destination, "tcp:127.0.0.1:0") as migration,
        ):
            await asyncio.to_thread(source.send, str(migration.address), 1)
            await migration.result()

    vm = await asyncio.to_thread(ProbeVm.stored, str(taken))
    address = f"tcp:127.0.0.1:{free_port()}"
    where = parse_address(address)
    checks = plan(where, ["legal/", "close/"])
    async with ShellCommand(receiving(FOUND, guest, work, address)) as launch:
        running = probe(where, checks, vm, launch, patience_s=8.0)
        results = {result.check.name: result.seen async for result in running}
    found = [name for name, seen in results.items() if seen.verdict is not Verdict.OK]
    assert found == ["close/in-content"], results
    assert "keeps the connection" in results["close/in-content"].text
    assert "of a core" in results["close/in-content"].text
