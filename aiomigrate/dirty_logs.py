"""Dirty logs for embedders: KVM's, PAGEMAP_SCAN's, bitmaps of their own, and several as one.

Each is an `aiomigrate.DirtyLog`. What invariably holds: a page is reported by a `collect` that
returns after the page was written, or by the next one; it is re-protected before the bitmap is
handed over, and so before the engine reads it; and nobody else writes to a bitmap that was handed
over. A `collect` that fails or is cancelled loses nothing: what it found is in the next one.

The kernel's work is cut into steps of milliseconds, each a job of an executor, so that the event
loop never waits for it and cancelling waits for one step at most.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

import numpy as np

from aiomigrate.embedding import DirtyLog
from aiomigrate.executor import JobExecutor
from aiomigrate.memory.bitmaps import Bitmap, check_bitmaps, union
from aiomigrate.memory.kvm_log import KvmLog, KvmSlot
from aiomigrate.memory.map import PAGE_BYTES, MemoryMap
from aiomigrate.memory.pagemap_log import Memory, PagemapLog

__all__ = ["BitmapDirtyLog", "CombinedDirtyLog", "KvmDirtyLog", "PagemapDirtyLog"]


class _KernelLog(Protocol):
    """What the logs that a kernel keeps have in common: generators of steps, a job each."""

    def bitmaps(self) -> list[Bitmap]: ...

    def start(self) -> Iterator[None]: ...

    def collect(self, into: Sequence[Bitmap]) -> Iterator[None]: ...

    def stop(self) -> Iterator[None]: ...


class _KernelDirtyLog:
    """A log that a kernel keeps, driven in an executor."""

    def __init__(self, log: _KernelLog) -> None:
        self._log = log
        self._marked: list[Bitmap] = []

    async def start(self) -> None:
        """Begin to log. DirtyLogError says what the kernel lacks or refuses."""
        self._marked = self._log.bitmaps()
        await _drive(self._log.start())

    async def collect(self) -> Sequence[Bitmap]:
        """Hand over what was written since the last call, re-protected. DirtyLogError."""
        await _drive(self._log.collect(self._marked))
        handed, self._marked = self._marked, self._log.bitmaps()
        return handed

    async def stop(self) -> None:
        """End logging, as far as it was begun. DirtyLogError."""
        await _drive(self._log.stop())
        self._marked = []


async def _drive(steps: Iterator[None]) -> None:
    """Run steps to their end, each in a job."""

    def all_of_them() -> Generator[None, None, None]:
        yield from steps

    with JobExecutor() as executor:
        await executor.drive(all_of_them())


class KvmDirtyLog(_KernelDirtyLog):
    """What the vCPUs of a VM write (KVM_GET_DIRTY_LOG).

    `vm` is the VM's descriptor, which stays the caller's and open until `stop`; `slots` are the
    KVM slots of the mappings, in the order of the memory map. The VM's dirty logging is this
    object's between `start` and `stop`: KVM_MEM_LOG_DIRTY_PAGES of these slots, and
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 where the kernel has it.

    Writes of the VMM and its devices (virtio, vhost-user, VFIO) are not in it: combine it with a
    log of those (`CombinedDirtyLog`).
    """

    def __init__(self, vm: int, slots: Sequence[KvmSlot]) -> None:
        super().__init__(KvmLog(vm, slots))


class PagemapDirtyLog(_KernelDirtyLog):
    """What this process writes to memory that it has mapped (PAGEMAP_SCAN, Linux 6.7).

    `memory` holds the writable, page-aligned buffer of each mapping, in the order of the memory
    map, through which the guest or its devices write: they are held from `start` to `stop`. An
    ordinary user may do this. What other processes write to the same memory is not seen.
    """

    def __init__(self, memory: Sequence[Memory]) -> None:
        super().__init__(PagemapLog(memory))


class BitmapDirtyLog:
    """Bitmaps that the embedder marks, handed over by exchange, of the guest's `memory_map`.

    `exchange` gets fresh, empty bitmaps, one a mapping in the order of the memory map (shape
    (ceil(pages / 64),), dtype uint64), puts them in the place of those that are being marked, and
    returns these once no writer marks in them any more. It gets none, (), when logging ends, and
    what it returns to the first call, and then, is thrown away. It is called in a thread, and may
    wait some milliseconds for writers.

    A writer marks a page *after* it has written it: else its mark can be handed over, and the page
    sent, before the write.

        def exchange(self, fresh):
            with self.lock:  # which writers hold while they mark
                marked, self.bitmaps = self.bitmaps, fresh
            return marked
    """

    def __init__(
        self,
        memory_map: MemoryMap,
        exchange: Callable[[Sequence[Bitmap]], Sequence[Bitmap]],
    ) -> None:
        self._map = memory_map
        self._exchange = exchange
        self._marked: Sequence[Bitmap] = ()

    async def start(self) -> None:
        """Give the embedder its first bitmaps. ValueError if what it had is of another shape."""
        await self._run(self._take)
        self._marked = ()

    async def collect(self) -> Sequence[Bitmap]:
        """Take the bitmaps that were marked; others are marked from here on. ValueError for what
        is none of this memory map's.
        """
        await self._run(self._take)
        handed, self._marked = self._marked, ()
        return handed

    async def stop(self) -> None:
        """Take the bitmaps away."""
        await self._run(self._end)
        self._marked = ()

    def _take(self) -> None:
        # Joined here, in the job: a cancelled `collect` has taken them all the same.
        fresh = [
            np.zeros(-(-mapping.size // PAGE_BYTES // 64), np.uint64)
            for mapping in self._map.mappings
        ]
        marked = self._exchange(fresh)
        check_bitmaps(self._map, marked)
        self._marked = union(self._marked, marked)

    def _end(self) -> None:
        self._exchange(())

    async def _run(self, job: Callable[[], None]) -> None:
        with JobExecutor() as executor:
            await executor.run(job)


class CombinedDirtyLog:
    """Several logs of the same memory as one: a page is dirty if any of them says so.

    Their bitmaps become this log's: it joins them in place.
    """

    def __init__(self, *logs: DirtyLog) -> None:
        self._logs = logs
        self._marked: Sequence[Bitmap] = ()

    async def start(self) -> None:
        """Start all, in order."""
        self._marked = ()
        for log in self._logs:
            await log.start()

    async def collect(self) -> Sequence[Bitmap]:
        """Collect all, in order."""
        with JobExecutor() as executor:
            for log in self._logs:
                await executor.run(self._join, await log.collect())
        handed, self._marked = self._marked, ()
        return handed

    def _join(self, bitmaps: Sequence[Bitmap]) -> None:
        # Kept here, in the job: a cancelled `collect` has joined them all the same.
        self._marked = union(self._marked, bitmaps)

    async def stop(self) -> None:
        """Stop all, in the reverse order, even if some fail."""
        async with AsyncExitStack() as stack:
            for log in self._logs:
                stack.push_async_callback(log.stop)
