"""SIGKILL of who takes a VM by descriptor: the whole snapshot is there, or none, and one owner."""

import asyncio
import multiprocessing
import os
from pathlib import Path

import aiomigrate
from aiomigrate import MigrationFailed, OutcomeUnknown, SendOptions
from aiomigrate.memory.stored import StoredVm
from tests.support.dying_daemon import take_and_die
from tests.support.shared_guest import SharedGuest
from tests.support.vms import STATE_JSON


def test_sigkill_leaves_the_whole_snapshot_or_none(tmp_path: Path) -> None:
    """Before each thing that is written, synced or renamed, until nothing is left to strike."""
    context = multiprocessing.get_context("forkserver")  # forks quickly, and beside no threads
    context.set_forkserver_preload(["tests.support.dying_daemon"])
    outcomes: list[tuple[bool, str]] = []
    status: int | None = None
    for boundary in range(1, 60):
        into, socket = tmp_path / f"{boundary}", tmp_path / f"{boundary}.sock"
        listening = context.Event()
        what = (boundary, str(into), f"unix:{socket}", listening)
        daemon = context.Process(target=take_and_die, args=what, daemon=True)
        daemon.start()
        with SharedGuest() as guest:
            assert listening.wait(60)
            outcome = asyncio.run(_give(guest, socket))
            daemon.join(60)
            status = daemon.exitcode
            daemon.close()
            if into.exists():
                _assert_whole(guest, into)
            # Only a source that was told Ok ends its guest, and that is on the disk then.
            assert guest.ended is (outcome == "done")
            assert guest.running is (outcome == "failed")
            assert into.exists() or not guest.ended
        outcomes.append((into.exists(), outcome))
        if status == 0:
            break
    assert status == 0
    assert outcomes[0] == (False, "failed")
    assert outcomes[-1] == (True, "done")
    assert (False, "unknown") in outcomes
    assert (True, "unknown") in outcomes


def _assert_whole(guest: SharedGuest, into: Path) -> None:
    assert (into / "migration_config.json").read_bytes() == guest.config_bytes
    assert (into / "state.json").read_bytes() == STATE_JSON
    for mapping in guest.mappings:
        memory = (into / f"memory-{mapping.slot}").read_bytes()
        assert memory == os.pread(guest.fds[mapping.slot], mapping.size, mapping.file_offset)
    with StoredVm.open(into) as vm:
        vm.verify()


async def _give(guest: SharedGuest, socket: Path) -> str:
    async with aiomigrate.send(guest, f"unix:{socket}", SendOptions(local=True)) as migration:
        try:
            await migration.result()
        except OutcomeUnknown:
            return "unknown"
        except MigrationFailed:
            return "failed"
    return "done"
