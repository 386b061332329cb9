"""A real Cloud Hypervisor takes a guest whose memory is being written until the guest is paused.

The guest comes from another Cloud Hypervisor, with its State; ours is the VMM that it is sent on
from. While its memory moves a thread writes it, as the guest would: pages that the guest does not
use, and with their own content the pages that it counts in.
"""

import asyncio
import mmap
import os
import threading
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import (
    Departure,
    Dialect,
    DirtyLog,
    GuestMemory,
    PagemapDirtyLog,
    Report,
    SendOptions,
    VmConfig,
)
from tests.interop.test_cloud_hypervisor import take
from tests.support.cloud_hypervisor import (
    COUNTERS,
    COUNTERS_AT,
    Guest,
    Installation,
    Vmm,
    find_installation,
    work_of,
)
from tests.support.sockets import free_port
from tests.support.tiny import ScriptedLog

FOUND = find_installation()
pytestmark = [pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))]

PAGE = 4096
SPARE_AT, SPARE_BYTES = 48 << 20, 8 << 20
"""What the guest does not use."""
ITERATIONS = 4
"""That find new dirt before it is told to switch over."""


class Living:
    """A stored guest as one that runs here: an `aiomigrate.Source`. To be closed."""

    resumes = True

    def __init__(self, stored: Path) -> None:
        config = VmConfig.parse((stored / "migration_config.json").read_bytes())
        (mapping,) = config.memory_map.mappings
        content = (stored / f"memory-{mapping.slot}").read_bytes()
        self._config = config.raw
        self._state = (stored / "state.json").read_bytes()
        self._fd = os.memfd_create("living", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, mapping.size)
        self._view = mmap.mmap(self._fd, mapping.size)
        self._view[:] = content
        self.memory = GuestMemory.over_files(
            config.memory_map, {mapping.slot: self._fd}, writable=False
        )
        self._loop = asyncio.get_running_loop()
        self._round = asyncio.Event()
        self._pausing = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()
        script = dict.fromkeys(range(1, ITERATIONS), self._written_anew)
        script[ITERATIONS] = self._enough
        self.dirty: DirtyLog = ScriptedLog(PagemapDirtyLog([self._view]), script)
        self.migration: Departure

    @property
    def spare(self) -> bytes:
        """What the destination is to have in the pages that the guest does not use."""
        return self._view[SPARE_AT : SPARE_AT + SPARE_BYTES]

    def _write(self) -> None:
        number = 0
        counters = slice(COUNTERS_AT, COUNTERS_AT + COUNTERS * PAGE)
        while not self._pausing.is_set():
            number += 1
            for at in range(SPARE_AT, SPARE_AT + SPARE_BYTES, PAGE):
                self._view[at : at + 8] = number.to_bytes(8, "little")
            self._view[counters] = self._view[counters]
            self._loop.call_soon_threadsafe(self._round.set)

    async def _written_anew(self) -> None:
        """Wait until everything has been written from now on."""
        for _ in range(2):  # the first round had begun before
            self._round.clear()
            await self._round.wait()

    async def _enough(self) -> None:
        await self._written_anew()
        self.migration.switch_over_now()

    async def aclose(self) -> None:
        self._pausing.set()
        await asyncio.to_thread(self._thread.join)
        await self.memory.aclose()
        self._view.close()
        os.close(self._fd)

    async def config(self) -> bytes:
        return self._config

    async def pause(self) -> None:
        await self._written_anew()
        self._pausing.set()
        await asyncio.to_thread(self._thread.join)

    async def capture(self) -> bytes:
        return self._state

    async def hand_over(self, destination: str) -> None:
        pass

    async def take_back(self, reason: BaseException) -> None:
        raise AssertionError(reason)

    async def resume(self) -> None:
        raise AssertionError("it was to be taken")

    async def release(self) -> None:
        pass

    async def lost(self, reason: BaseException) -> None:
        raise AssertionError(reason)


async def _send(source: Living, vmm: Vmm, connections: int, dialect: str) -> Report:
    address = f"tcp:127.0.0.1:{free_port()}"
    await asyncio.to_thread(vmm.receive, address)
    options = SendOptions(
        connections=connections, dialect=Dialect(dialect), chunk_bytes=1 << 20, downtime_ms=1
    )
    async with aiomigrate.send(source, address, options) as migration:
        source.migration = migration
        report = await migration.result()
    await asyncio.to_thread(vmm.wait_received)
    return report


@pytest.mark.parametrize("connections", [1, 4])
async def test_a_guest_that_is_written_until_the_last_pass_runs_on(
    tmp_path: Path, connections: int
) -> None:
    assert isinstance(FOUND, Installation)
    guest = Guest.build(tmp_path)
    first, second, taken = (tmp_path / name for name in ("first", "second", "taken"))
    first.mkdir()
    second.mkdir()
    serial = tmp_path / "serial"

    with Vmm(FOUND, guest, first, boots=True, serial=serial) as vmm:
        vmm.wait_work(more_than=2 * COUNTERS)
        await take(vmm, taken, connections)
    work = work_of(next(taken.glob("memory-*")))
    told = serial.read_bytes()

    source = Living(taken)
    try:
        with Vmm(FOUND, guest, second, boots=False) as vmm:
            report = await _send(source, vmm, connections, FOUND.dialect)
            # Each found all spare pages dirty again, and so did the one with the guest paused.
            assert report.iterations >= ITERATIONS + 2
            assert report.bytes > (ITERATIONS + 1) * SPARE_BYTES
            with vmm.memory.open("rb") as memory:
                assert os.pread(memory.fileno(), SPARE_BYTES, SPARE_AT) == source.spare
            vmm.wait_work(more_than=work + 2 * COUNTERS)
            assert vmm.state == "Running"
            # The file was made anew.
            assert serial.read_bytes()[0] == (told[-1] + 1) % 256
    finally:
        await source.aclose()
