"""A running guest's memory goes by descriptor: to another machine, into a snapshot and out of it
again, at once or while it runs. It says itself whether its memory is as it should be.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import aiomigrate
from aiomigrate import (
    LoadedSource,
    MigrationFailed,
    OnDemandSource,
    Owner,
    Report,
    SendOptions,
    StoredDestination,
)
from aiomigrate.requests import Refused
from aiomigrate.serving import PageServer
from aiomigrate.tiny_vmm.migrate import VmDestination, VmSource
from aiomigrate.tiny_vmm.pager import Pager
from aiomigrate.tiny_vmm.restoring import _Restoring, restore_on_demand
from aiomigrate.tiny_vmm.userfaultfd import why_unusable
from aiomigrate.tiny_vmm.vmm import Power, Vm
from aiomigrate.transport import Connection, ConnectionClosed, UnixAddress, listen
from tests.support.tiny import KINDS, PASS, SerialLine, booted, check, move

pytestmark = pytest.mark.usefixtures("no_leaks")
kinds = pytest.mark.parametrize("kind", KINDS)
needs_faults = pytest.mark.skipif(bool(why_unusable()), reason=why_unusable())

_LOCAL = SendOptions(local=True)


class RefusesState(VmDestination):
    async def restore(self, state: bytes) -> None:
        raise ValueError("this CPU cannot take it")


async def give(
    source: Any, destination: Any, socket: Path
) -> tuple[Report | BaseException, Report | BaseException]:
    async with (
        aiomigrate.receive(destination, f"unix:{socket}") as reception,
        aiomigrate.send(source, f"unix:{socket}", _LOCAL) as migration,
    ):
        sent, received = await asyncio.gather(
            migration.result(), reception.result(), return_exceptions=True
        )
    return sent, received


async def snapshot(kind: str, line: SerialLine, directory: Path) -> Path:
    """Of a machine that ran, and does not any more."""
    async with booted(kind, line) as vm, StoredDestination(directory / "vm") as destination:
        await line.tick(2 * PASS)
        outcomes = await give(VmSource(vm), destination, directory / "out")
        assert all(isinstance(outcome, Report) for outcome in outcomes), outcomes
    return directory / "vm"


@kinds
async def test_there_and_back(kind: str, tmp_path: Path) -> None:
    line = SerialLine()
    vm = booted(kind, line)
    async with AsyncExitStack() as machines:
        machines.push_async_callback(vm.close)
        for _ in range(4):
            await line.tick(PASS + 1)
            destination = VmDestination(line)
            sent, received = await give(VmSource(vm), destination, tmp_path / "socket")
            assert isinstance(sent, Report), sent
            assert isinstance(received, Report), received
            assert sent.bytes == 0
            assert destination.vm is not None
            machines.push_async_callback(destination.vm.close)
            vm = destination.vm
        await line.tick(PASS + 1)
        assert vm.power is Power.ON
    check(line.lines)


@kinds
async def test_a_refused_one_runs_on_in_its_own_memory(kind: str, tmp_path: Path) -> None:
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(PASS)
        sent, _ = await give(VmSource(vm), RefusesState(line), tmp_path / "socket")
        assert isinstance(sent, MigrationFailed)
        assert sent.owner is Owner.SOURCE
        await line.tick(2 * PASS)
    check(line.lines)


@kinds
async def test_a_snapshot_is_gone_on_from(kind: str, tmp_path: Path) -> None:
    line = SerialLine()
    stored = await snapshot(kind, line, tmp_path)
    destination = VmDestination(line)
    async with LoadedSource(stored, resume=True) as source:
        outcomes = await give(source, destination, tmp_path / "in")
    assert all(isinstance(outcome, Report) for outcome in outcomes), outcomes
    assert destination.vm is not None
    async with destination.vm:
        await line.tick(2 * PASS)
    check(line.lines)


@asynccontextmanager
async def restored(stored: Path, line: SerialLine, socket: Path) -> AsyncIterator[
    tuple[Vm, aiomigrate.Departure]
]:  # fmt: skip
    """A machine that runs, and what serves its memory meanwhile."""
    listener = await listen(UnixAddress(str(socket)))
    try:
        async with OnDemandSource(stored, resume=True) as source:
            migration = aiomigrate.send(source, f"unix:{socket}", _LOCAL)
            async with migration, await restore_on_demand(listener, line) as vm:
                yield vm, migration
    finally:
        listener.close()


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set to have memory fetched that the guest has not touched."""
    fetch_all, going_on = Pager._fetch_all, asyncio.Event()

    async def fetch_late(self: Pager) -> None:
        await going_on.wait()
        await fetch_all(self)

    monkeypatch.setattr(Pager, "_fetch_all", fetch_late)
    return going_on


@pytest.fixture
def nothing_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source writes no page before it is asked for it."""

    async def fill_nothing(self: PageServer) -> None:
        pass

    monkeypatch.setattr(PageServer, "fill", fill_nothing)


@needs_faults
@kinds
@pytest.mark.usefixtures("nothing_unasked")
async def test_it_runs_while_its_memory_comes(
    kind: str, tmp_path: Path, go_on: asyncio.Event
) -> None:
    """At first only what it touches does; then all, and it can be moved on."""
    line = SerialLine()
    stored = await snapshot(kind, line, tmp_path)
    async with restored(stored, line, tmp_path / "in") as (vm, migration):
        await line.tick(2 * PASS)
        assert vm._pager is not None
        # It works on 3 MiB of its 8, and has its program besides.
        assert 768 < 2048 - vm._pager.missing < 800
        go_on.set()
        await vm.settled()
        assert (await migration.result()).running
        outcome, there = await move(vm, line)
        assert isinstance(outcome, Report), outcome
        assert there is not None
        async with there:
            await line.tick(2 * PASS)
    check(line.lines)


@needs_faults
@kinds
async def test_what_the_source_wrote_unasked_is_only_to_be_mapped(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, go_on: asyncio.Event
) -> None:
    """All of it is in the file before the guest runs: its faults are minor ones."""
    line = SerialLine()
    stored = await snapshot(kind, line, tmp_path)
    fill, connected, filled = PageServer.fill, _Restoring._fault_connection, asyncio.Event()

    async def fill_and_tell(self: PageServer) -> None:
        await fill(self)
        filled.set()

    async def connected_late(self: _Restoring) -> Connection:
        await filled.wait()
        return await connected(self)

    monkeypatch.setattr(PageServer, "fill", fill_and_tell)
    monkeypatch.setattr(_Restoring, "_fault_connection", connected_late)
    async with restored(stored, line, tmp_path / "in") as (vm, _):
        await line.tick(2 * PASS)
        go_on.set()
        await vm.settled()
    check(line.lines)


@needs_faults
@kinds
@pytest.mark.usefixtures("nothing_unasked")
async def test_without_its_source_it_stands_still_and_can_be_ended(
    kind: str, tmp_path: Path, go_on: asyncio.Event
) -> None:
    line = SerialLine()
    stored = await snapshot(kind, line, tmp_path)
    async with restored(stored, line, tmp_path / "in") as (vm, _):
        await line.tick(1)
        assert vm._pager is not None
        vm._pager._connection.abort()
        go_on.set()
        with pytest.raises(ConnectionClosed):
            await vm.settled()
        with pytest.raises(ConnectionClosed):  # nor is it to be migrated
            await VmSource(vm).config()
    check(line.lines)


@needs_faults
async def test_a_source_that_passes_none_of_its_memory_is_refused(tmp_path: Path) -> None:
    line = SerialLine()
    listener = await listen(UnixAddress(str(tmp_path / "in")))
    async with booted("thread", line) as vm:
        taking = asyncio.create_task(restore_on_demand(listener, line))
        with pytest.raises(MigrationFailed) as caught:
            async with aiomigrate.send(VmSource(vm), f"unix:{tmp_path}/in") as migration:
                await migration.result()
        with pytest.raises(Refused, match="slot 0 is missing"):
            await taking
        assert caught.value.owner is Owner.SOURCE
        await line.tick(PASS)
    listener.close()
    check(line.lines)


@needs_faults
async def test_a_machine_that_does_not_fit_is_refused_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: Vm, captured: bytes) -> None:
        raise ValueError("this CPU cannot take it")

    line = SerialLine()
    stored = await snapshot("thread", line, tmp_path)
    lines = list(line.lines)
    monkeypatch.setattr(Vm, "restore", refuses)
    with pytest.raises(ValueError, match="cannot take it") as caught:
        async with restored(stored, line, tmp_path / "in"):
            pytest.fail("it was restored")
    assert "the VM is with the source" in str(caught.value.__notes__)
    assert line.lines == lines
