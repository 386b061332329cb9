"""Who holds guest memory: claims, leases, and a close that waits for them."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing

import pytest

from aiomigrate.memory.errors import GuestMemoryBusyError, GuestMemoryClaimedError
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import MemoryMap
from aiomigrate.memory.ranges import make_table
from tests.memory.memory_guests import MIB, MakeMemfd, bytes_of, open_descriptors


def test_memory_is_sent_away_by_one_migration_at_a_time(memory_map: MemoryMap) -> None:
    buffers = {0: bytearray(MIB), 7: bytearray(2 * MIB)}
    with closing(GuestMemory.over_buffers(memory_map, buffers)) as memory:
        for _ in range(2):
            with memory.claim():
                assert memory.claimed
                with pytest.raises(GuestMemoryClaimedError), memory.claim():
                    pass
                assert memory.claimed
                with pytest.raises(GuestMemoryBusyError):
                    memory.close()
            assert not memory.claimed


def test_close_unmaps_and_gives_descriptors_back(memory_map: MemoryMap, memfds: MakeMemfd) -> None:
    fds = {0: memfds(MIB), 7: memfds(2 * MIB)}
    before = open_descriptors()
    memory = GuestMemory.over_files(memory_map, fds, writable=True)
    assert "open" in repr(memory)
    memory.close()
    memory.close()
    assert open_descriptors() == before
    assert "closed" in repr(memory)
    with open("/proc/self/maps") as maps:
        assert "memfd:test" not in maps.read()
    with pytest.raises(ValueError, match="closed"), memory.lease():
        pass


def test_close_refuses_while_a_lease_is_held(memory_map: MemoryMap) -> None:
    memory = GuestMemory.over_buffers(memory_map, {0: bytearray(MIB), 7: bytearray(2 * MIB)})
    with memory.lease(), memory.lease():
        with pytest.raises(GuestMemoryBusyError, match="2 leases"):
            memory.close()
        assert memory.iovec(make_table([(0, 1)])).remaining == 1
    memory.close()


def test_memory_that_is_not_closed_warns(memory_map: MemoryMap) -> None:
    memory = GuestMemory.over_buffers(memory_map, {0: bytearray(MIB), 7: bytearray(2 * MIB)})
    with pytest.warns(ResourceWarning, match="not closed"):
        memory.__del__()
    memory.close()


async def test_aclose_waits_for_leases_of_other_threads(
    memory_map: MemoryMap, memfds: MakeMemfd
) -> None:
    memory = GuestMemory.over_files(memory_map, {0: memfds(MIB), 7: memfds(2 * MIB)}, writable=True)
    held, release = threading.Event(), threading.Event()
    seen: list[bytes] = []

    def work() -> None:
        with memory.lease():
            held.set()
            release.wait()
            seen.append(bytes_of(memory.iovec(make_table([(0, 2)]))))

    thread = threading.Thread(target=work)
    thread.start()
    held.wait()
    closing = asyncio.create_task(memory.aclose())
    also = asyncio.create_task(memory.aclose())
    while "closed" not in repr(memory):
        await asyncio.sleep(0)
    with pytest.raises(ValueError, match="closed"), memory.lease():
        pass
    memory.close()
    assert not closing.done()
    release.set()
    await asyncio.gather(closing, also)
    thread.join()
    assert seen == [b"\0\0"]
    await memory.aclose()


async def test_cancelled_aclose_still_unmaps_at_the_last_lease(
    memory_map: MemoryMap, memfds: MakeMemfd
) -> None:
    fds = {0: memfds(MIB), 7: memfds(2 * MIB)}
    before = open_descriptors()
    memory = GuestMemory.over_files(memory_map, fds, writable=True)
    with memory.lease():
        closing = asyncio.create_task(memory.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert open_descriptors() > before
    await memory.aclose()
    assert open_descriptors() == before
