"""A guest that checks itself, through the reference's offload daemon: out of our engine, and back
into it or into what takes it while its memory comes.
"""

import asyncio
import json
import os
from pathlib import Path

import pytest

from aiomigrate import SendOptions, VmConfig, receive, send
from aiomigrate.tiny_vmm.guest import Work
from aiomigrate.tiny_vmm.migrate import VmDestination, VmSource
from aiomigrate.tiny_vmm.restoring import restore_on_demand
from aiomigrate.tiny_vmm.userfaultfd import why_unusable
from aiomigrate.tiny_vmm.vmm import Vm, make_config
from aiomigrate.transport import UnixAddress, listen
from tests.support.cloud_hypervisor import listens
from tests.support.tiny import FIRST, KINDS, MIB, PASS, SerialLine, check

DAEMON = os.environ.get("OFFLOAD_DAEMON_BIN", "")

pytestmark = pytest.mark.skipif(not DAEMON, reason="OFFLOAD_DAEMON_BIN names no reference daemon")


def _machine(kind: str, line: SerialLine) -> Vm:
    """One whose Config has all that the daemon looks for, which a tiny VMM does not."""
    document = json.loads(make_config(kind, 8 * MIB, 0.001).raw)
    document["common_cpuid"] = []
    document["memory_manager_data"] |= {
        "memory_ranges": {"data": [{"gpa": 0, "length": 8 * MIB}]},
        "start_of_device_area": 1 << 32,
        "boot_ram": 8 * MIB,
        "current_ram": 8 * MIB,
        "arch_mem_regions": [],
        "hotplug_slots": [],
        "next_memory_slot": 1,
        "selected_slot": 0,
        "next_hotplug_slot": 0,
    }
    vm = Vm(VmConfig.parse(json.dumps(document).encode()), line)
    vm.load(Work(first=FIRST, end=4 * MIB, batch=64))
    vm.resume()
    return vm


async def _daemon(*arguments: str | Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(DAEMON, *arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "on_demand",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(bool(why_unusable()), reason=why_unusable())),
    ],
    ids=["eager", "on-demand"],
)
async def test_stored_and_restored_by_the_reference(
    kind: str, on_demand: bool, tmp_path: Path
) -> None:
    line = SerialLine()
    stored, out, into = tmp_path / "stored", tmp_path / "out", tmp_path / "in"
    taking = await _daemon("snapshot", "--socket", out, "--output-dir", stored)
    async with _machine(kind, line) as vm:
        await line.tick(2 * PASS)
        while not listens(f"unix:{out}"):  # another process' doings can only be polled
            await asyncio.sleep(0.01)
        async with send(VmSource(vm), f"unix:{out}", SendOptions(local=True)) as migration:
            await migration.result()
        assert await taking.wait() == 0
    restore = ("restore", "--socket", into, "--input-dir", stored, "--resume")
    if on_demand:
        listener = await listen(UnixAddress(str(into)))
        giving = await _daemon(*restore, "--ondemand")
        restored = await restore_on_demand(listener, line)
        listener.close()
        async with restored as vm:
            await line.tick(2 * PASS)
            await vm.settled()
            assert await giving.wait() == 0
            await line.tick(PASS)
    else:
        destination = VmDestination(line)
        async with receive(destination, f"unix:{into}") as reception:
            giving = await _daemon(*restore)
            await reception.result()
        assert await giving.wait() == 0
        assert destination.vm is not None
        async with destination.vm:
            await line.tick(2 * PASS)
    check(line.lines)
