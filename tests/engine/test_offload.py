"""A stored VM as the end of a migration whose memory is by descriptor."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

import aiomigrate
from aiomigrate import (
    LoadedSource,
    MigrationError,
    MigrationFailed,
    OnDemandSource,
    Owner,
    Phase,
    ReceiveOptions,
    Report,
    SendOptions,
    StoredDestination,
    StoredVmError,
)
from aiomigrate.memory.stored import StoredVm
from aiomigrate.on_demand import PageService
from aiomigrate.serving import PageServer
from tests.support.image import PAGE
from tests.support.peer import STATE, Peer, Script
from tests.support.shared_guest import ZONES, SharedGuest
from tests.support.vms import MIB, STATE_JSON, file_bytes, store_vm

pytestmark = pytest.mark.usefixtures("no_leaks")

_LOCAL = SendOptions(local=True)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return store_vm(tmp_path / "vm", ZONES)


async def _snapshot(
    guest: SharedGuest, destination: StoredDestination, socket: Path
) -> tuple[Report | BaseException, Report | BaseException]:
    async with (
        destination,
        aiomigrate.receive(destination, f"unix:{socket}") as reception,
        aiomigrate.send(guest, str(reception.address), _LOCAL) as migration,
    ):
        sent, received = await asyncio.gather(
            migration.result(), reception.result(), return_exceptions=True
        )
    return sent, received


def _assert_whole(guest: SharedGuest, into: Path) -> None:
    """What was stored is the guest, byte for byte, and so says the manifest."""
    assert (into / "migration_config.json").read_bytes() == guest.config_bytes
    assert (into / "state.json").read_bytes() == STATE_JSON
    for mapping in guest.mappings:
        memory = (into / f"memory-{mapping.slot}").read_bytes()
        assert memory == os.pread(guest.fds[mapping.slot], mapping.size, mapping.file_offset)
    with StoredVm.open(into) as vm:
        assert len(vm.verify()) == 2 + len(guest.mappings)


async def test_the_guest_runs_until_its_state_and_is_stored_as_it_was_then(
    tmp_path: Path,
) -> None:
    into = tmp_path / "into"
    with SharedGuest() as guest:
        guest.script["pause"] = lambda: guest.write(5, MIB + 3, b"late")
        guest.script["capture"] = lambda: guest.write(0, 5 * PAGE, b"by a device")
        destination = StoredDestination(into)
        sent, received = await _snapshot(guest, destination, tmp_path / "socket")
        assert isinstance(sent, Report), sent
        assert isinstance(received, Report), received
        await asyncio.to_thread(_assert_whole, guest, into)
        allocated = sum(os.fstat(fd).st_blocks * 512 for fd in guest.zones.values())
        assert destination.expected_bytes <= allocated
        # A page of data in eight: zeros that the guest wrote are holes, too.
        assert file_bytes(into) <= allocated // 2 + 4 * PAGE


async def test_only_what_is_given_by_descriptor_is_compressed(tmp_path: Path) -> None:
    with SharedGuest() as guest:
        async with (
            StoredDestination(tmp_path / "into", compressed=True) as destination,
            aiomigrate.receive(destination, "tcp:127.0.0.1:0") as reception,
            aiomigrate.send(guest, str(reception.address)) as migration,
        ):
            sent, received = await asyncio.gather(
                migration.result(), reception.result(), return_exceptions=True
            )
        assert isinstance(sent, MigrationFailed)
        assert "compressed only if it is given by descriptor" in str(received)
        assert guest.running
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("hook", ["adopt", "restore"])
async def test_a_cancelled_snapshot_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    with SharedGuest() as guest:
        async with (
            StoredDestination(tmp_path / "into") as destination,
            aiomigrate.receive(
                destination, f"unix:{tmp_path}/socket", ReceiveOptions(linger_s=0.1)
            ) as reception,
        ):
            real = getattr(destination, hook)

            async def cancelled(*arguments: Any) -> None:
                assert reception.cancel()
                await real(*arguments)

            monkeypatch.setattr(destination, hook, cancelled)
            async with aiomigrate.send(guest, str(reception.address), _LOCAL) as migration:
                outcomes = await asyncio.gather(
                    migration.result(), reception.result(), return_exceptions=True
                )
        for outcome in outcomes:
            assert isinstance(outcome, MigrationFailed), outcome
            assert outcome.owner is Owner.SOURCE
        assert guest.running
    assert os.listdir(tmp_path) == []


# Restoring


@pytest.mark.parametrize("kind", [LoadedSource, OnDemandSource])
async def test_a_stored_vm_is_restored(
    stored: Path, tmp_path: Path, kind: type[LoadedSource]
) -> None:
    fault_bytes = PAGE if kind is OnDemandSource else 0
    with Peer(address=f"unix:{tmp_path}/socket", fault_bytes=fault_bytes) as peer:
        async with (
            kind(stored, resume=True) as source,
            aiomigrate.send(source, peer.address, _LOCAL) as migration,
        ):
            report = await migration.result()
        assert await asyncio.to_thread(peer.finished) == "completed", peer
        assert peer.memory is not None
        assert peer.memory.differences_in(stored) == []
        assert peer.config == (stored / "migration_config.json").read_bytes()
    assert report.running


async def test_damage_is_found_before_anybody_is_asked(stored: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    with SharedGuest() as guest:
        await _snapshot(guest, StoredDestination(into), tmp_path / "socket")
    with (into / "memory-5").open("r+b") as memory:
        memory.seek(MIB)
        memory.write(b"damaged")
    with pytest.raises(StoredVmError, match="memory-5 is damaged"):
        async with LoadedSource(into):
            pytest.fail("it was loaded")


async def test_on_demand_a_refused_state_leaves_the_vm_here(stored: Path, tmp_path: Path) -> None:
    script = Script(error_at=STATE)
    with Peer(address=f"unix:{tmp_path}/socket", script=script, fault_bytes=PAGE) as peer:
        async with (
            OnDemandSource(stored) as source,
            aiomigrate.send(source, peer.address, _LOCAL) as migration,
        ):
            with pytest.raises(MigrationFailed) as caught:
                await migration.result()
    assert caught.value.owner is Owner.SOURCE


async def test_on_demand_a_receiver_may_have_all_of_it_before_it_has_the_vm(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the fault connection then, and Complete comes all the same."""
    real, serve = Peer._ask_for_pages, PageService._serve
    ended = threading.Event()

    def ask_for_all(self: Peer, *, first: bool) -> None:
        if first:
            real(self, first=True)
            real(self, first=False)
            assert ended.wait(60)

    async def noticed(self: PageService, *arguments: Any) -> int:
        missing = await serve(self, *arguments)
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, ended.set)
        return missing

    monkeypatch.setattr(Peer, "_ask_for_pages", ask_for_all)
    monkeypatch.setattr(PageService, "_serve", noticed)
    with Peer(address=f"unix:{tmp_path}/socket", fault_bytes=PAGE) as peer:
        async with (
            OnDemandSource(stored) as source,
            aiomigrate.send(source, peer.address, _LOCAL) as migration,
        ):
            await migration.result()
        assert await asyncio.to_thread(peer.finished) == "paused", peer
        assert peer.memory is not None
        assert peer.memory.differences_in(stored) == []


async def test_on_demand_who_stops_serving_is_told_what_that_costs(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedder leaves while the guest runs at the destination: it has it, and not whole."""
    real, go_on = Peer._ask_for_pages, threading.Event()

    def wait(self: Peer, *, first: bool) -> None:
        if first:
            real(self, first=True)
        else:
            assert go_on.wait(60)

    monkeypatch.setattr(Peer, "_ask_for_pages", wait)
    with Peer(address=f"unix:{tmp_path}/socket", fault_bytes=PAGE) as peer:
        async with OnDemandSource(stored) as source:
            migration = aiomigrate.send(source, peer.address, _LOCAL)

            async def leave() -> None:
                async with migration:
                    async for progress in migration:
                        if progress.phase is Phase.SERVING:
                            raise RuntimeError("enough")

            with pytest.raises(RuntimeError, match="enough") as caught:
                await leave()
            with pytest.raises(MigrationError, match="bytes were served") as told:
                await migration.result()
            go_on.set()
    assert told.value.owner is Owner.DESTINATION
    assert "bytes were served" in caught.value.__notes__[0]


async def test_on_demand_a_receiver_that_stops_asking_is_told_of(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the VM, and not all of its memory."""
    real = Peer._ask_for_pages

    def stop_asking(self: Peer, *, first: bool) -> None:
        if first:
            real(self, first=True)
        else:
            next(c for c in self.connections if c.role == 2).wire.close()

    monkeypatch.setattr(Peer, "_ask_for_pages", stop_asking)

    ended = asyncio.Event()
    answer, fill = PageServer.answer, PageServer.fill

    async def answers(self: PageServer, *arguments: Any) -> None:
        await answer(self, *arguments)
        ended.set()

    async def fills_late(self: PageServer) -> None:
        await ended.wait()
        await fill(self)

    monkeypatch.setattr(PageServer, "answer", answers)
    monkeypatch.setattr(PageServer, "fill", fills_late)
    with Peer(address=f"unix:{tmp_path}/socket", fault_bytes=PAGE) as peer:
        async with (
            OnDemandSource(stored) as source,
            aiomigrate.send(source, peer.address, _LOCAL) as migration,
        ):
            with pytest.raises(
                MigrationError, match=r"ended it while .* bytes were missing"
            ) as caught:
                await migration.result()
        history = source.vm.manifest.history
    assert caught.value.owner is Owner.DESTINATION
    assert getattr(history[-1], "outcome", None) == "done"
