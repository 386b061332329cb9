"""Guest memory as this process has it mapped, and who may be touching it.

System calls and kernels work on bare host addresses, without the GIL and in other threads, so a
mapping must outlive them all: each of them runs under a *lease*, and memory is unmapped only when
no lease is held. `aclose` refuses new leases at once and unmaps when the last one ends, in a thread
of its own (unmapping much memory takes long), even if the waiting task is cancelled.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from collections.abc import Mapping as ByKey
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aiomigrate.memory import kernels, system_kernels
from aiomigrate.memory.errors import GuestMemoryBusyError, RangeError
from aiomigrate.memory.iovec import PIECE, Buffer, IoVector, pieces_of
from aiomigrate.memory.map import PAGE_BYTES, Mapping, MemoryMap
from aiomigrate.memory.ranges import RANGE, Table, words

__all__ = ["GuestMemory"]

_RESIDENT_RANGES = 64
_RESIDENT_PAGES = 1024
"""What is asked of the kernel at once on an event loop: some microseconds (4 MiB in one range)."""
_BLOCK_BYTES = 512  # st_blocks, stat(2)
# Linux 5.14, include/uapi/asm-generic/mman-common.h; Python's mmap module does not name them.
_MADV_POPULATE_READ = 22
_MADV_POPULATE_WRITE = 23


@dataclass(slots=True)
class _Region:
    """How one mapping is held in this process."""

    mapping: Mapping
    memory: mmap.mmap | npt.NDArray[np.uint8]
    """Our own mapping of a file, or a hold on an embedder's buffer."""
    address: int
    fd: int = -1
    """Our own descriptor of the file, or -1."""
    offset: int = 0
    """Where in the file the mapping begins."""
    on_disk: bool = False
    """Whether touching a page that is in memory may still wait for a file system."""
    sparse: bool = False
    """Whether a hole in the file means zeros that the other side has too."""


class GuestMemory:
    """The mapped memory of a VM.

    Made by `over_files` or `over_buffers`; closed by `close` or `aclose`.
    """

    def __init__(self, memory_map: MemoryMap, regions: Sequence[_Region]) -> None:
        self.map = memory_map
        self._regions = list(regions)
        self._bases = np.array([region.address for region in regions], np.uint64)
        self._fds = np.array([region.fd for region in regions], np.int64)
        self._offsets = np.array([region.offset for region in regions], np.int64)
        self._on_disk = any(region.on_disk for region in regions)
        self._scratch = np.empty(_RESIDENT_PAGES, np.uint8)
        self._changed = threading.Condition()
        self._leases = 0
        self._closing: Future[None] | None = None

    @classmethod
    def over_files(
        cls,
        memory_map: MemoryMap,
        fds: ByKey[int, int],
        *,
        writable: bool,
        offsets: ByKey[int, int] | None = None,
        file_zones: Collection[str] = (),
    ) -> GuestMemory:
        """Map the file (or memfd) of each slot, shared; the descriptors stay the caller's.

        `offsets` says where in its file a slot's mapping begins (bytes, multiples of the page size;
        0 if not named). Memory of `file_zones` counts as data throughout. OSError if a file cannot
        be mapped, ValueError if it is too short.
        """
        regions: list[_Region] = []
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            for mapping in memory_map.mappings:
                offset = (offsets or {}).get(mapping.slot, 0)
                memory = mmap.mmap(
                    fds[mapping.slot], mapping.size, mmap.MAP_SHARED, protection, offset=offset
                )
                region = _Region(mapping, memory, _address_of(memory), offset=offset)
                regions.append(region)
                region.fd = os.dup(fds[mapping.slot])
                region.sparse = mapping.zone_id not in file_zones
                region.on_disk = not _in_memory(region.fd)
            return cls(memory_map, regions)
        except BaseException:
            _release(regions)
            raise

    @classmethod
    def over_buffers(
        cls, memory_map: MemoryMap, buffers: ByKey[int, mmap.mmap | bytearray | memoryview]
    ) -> GuestMemory:
        """Use a writable buffer of the mapping's size for each slot; they are held until close.

        ValueError for one that is read-only or of another size.
        """
        regions = []
        for mapping in memory_map.mappings:
            view = np.frombuffer(buffers[mapping.slot], np.uint8)
            if view.size != mapping.size or not view.flags.writeable:
                raise ValueError(
                    f"the buffer of slot {mapping.slot} is not {mapping.size} writable bytes"
                )
            regions.append(_Region(mapping, view, view.__array_interface__["data"][0]))
        return cls(memory_map, regions)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep the memory mapped for a system call or kernel, in any thread; ValueError once
        closing has begun.
        """
        with self._changed:
            if self._closing is not None:
                raise ValueError("guest memory is closed")
            self._leases += 1
        try:
            yield
        finally:
            with self._changed:
                self._leases -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Unmap; GuestMemoryBusyError if a lease is held. Does nothing when closed or closing."""
        with self._changed:
            if self._closing is not None:
                return
            if self._leases:
                raise GuestMemoryBusyError(self._leases)
            self._closing = Future()
        self._finish(self._closing)
        self._closing.result()

    async def aclose(self) -> None:
        """Refuse new leases, wait for those that are held, unmap.

        Idempotent; all calls wait for the same end.

        Cancelling ends the waiting only: the memory is unmapped all the same when the last lease
        ends.
        """
        with self._changed:
            starts = self._closing is None
            if self._closing is None:
                self._closing = Future()
                # So that a cancelled waiter cannot cancel it.
                self._closing.set_running_or_notify_cancel()
            closing = self._closing
        if starts:
            threading.Thread(target=self._finish, args=(closing,), name="aiomigrate-unmap").start()
        await asyncio.wrap_future(closing)

    def _finish(self, closing: Future[None]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._leases == 0)
        try:
            _release(self._regions)
        except BaseException as error:
            closing.set_exception(error)
        else:
            closing.set_result(None)

    def iovec(self, table: Table, prefix: Buffer | tuple[Buffer, ...] = b"") -> IoVector:
        """The host memory of a table's ranges, after the bytes of `prefix`; RangeError if one does
        not fit.

        Hold a lease for as long as system calls use it.
        """
        rows = words(table)
        entries = np.empty((pieces_of(rows[:, 1]), 2), np.uint64)
        bad = kernels.fill(
            rows, self.map.firsts, self.map.lasts, self._bases, np.uint64(PIECE), entries
        )
        if bad >= 0:
            self._refuse(rows, bad)
        return IoVector.after_buffers(prefix if isinstance(prefix, tuple) else (prefix,), entries)

    def data_tables(self, max_ranges: int = 65536) -> Iterator[Table]:
        """Tables of at most `max_ranges` ranges, in order of address, of all that may be other than
        zero.

        Holes of files are left out; zones of `file_zones` and buffers are given whole. Ranges never
        cross a mapping's end. OSError if a file cannot be searched.
        """
        rows = np.empty((max_ranges, 2), np.uint64)
        count = 0
        for region in self._regions:
            at = 0
            while at < region.mapping.size:
                found, at = self._data_of(region, at, rows[count:])
                count += found
                if count == max_ranges:
                    yield rows.reshape(-1).view(RANGE)
                    rows = np.empty((max_ranges, 2), np.uint64)
                    count = 0
        if count:
            yield rows[:count].reshape(-1).view(RANGE)

    def _data_of(self, region: _Region, at: int, rows: kernels.Words) -> tuple[int, int]:
        """(rows found from `at` bytes into a region on, where to go on)."""
        mapping = region.mapping
        if not region.sparse:
            rows[0] = mapping.gpa, mapping.size
            return 1, mapping.size
        with self.lease():
            found, at, code = system_kernels.extents(
                region.fd, region.offset, mapping.size, at, PAGE_BYTES, np.uint64(mapping.gpa), rows
            )
        if code:
            raise OSError(code, f"finding the data of slot {mapping.slot}: {os.strerror(code)}")
        return found, at

    def expected_bytes(self) -> int:
        """About how much `data_tables` will give, without looking for it: what the files hold."""
        total = 0
        for region in self._regions:
            held = region.mapping.size
            if region.sparse:
                held = min(held, os.fstat(region.fd).st_blocks * _BLOCK_BYTES)
            total += held
        return total

    def resident(self, table: Table) -> bool:
        """Whether a system call can touch a table at once: a quick test for an event loop.

        It says no where it would take long to tell (more than 64 ranges or 4 MiB in one), and for
        files on disks, where even a page in memory may have to wait for the file system.
        """
        if self._on_disk or len(table) > _RESIDENT_RANGES:
            return False
        with self.lease():
            found: bool = system_kernels.resident(
                words(table),
                self.map.firsts,
                self.map.lasts,
                self._bases,
                np.uint64(mmap.PAGESIZE),
                self._scratch,
            )
        return found

    def populate_read(self, table: Table) -> None:
        """Make the pages of a table present for reading; OSError. Nothing on a kernel that cannot
        (before 5.14).
        """
        self._populate(table, _MADV_POPULATE_READ)

    def populate_write(self, table: Table) -> None:
        """Make the pages of a table present for writing; OSError. Nothing on a kernel that cannot
        (before 5.14).
        """
        self._populate(table, _MADV_POPULATE_WRITE)

    def prepare(self, table: Table) -> None:
        """Make sure that a table can be written: its pages present, its files' space reserved.

        A file system reserves the space of a page that is made present for writing, so allocating
        it besides is left to kernels that cannot populate. Where populating fails, allocating says
        why: OSError (ENOSPC, EFBIG, ...).
        """
        rows = words(table)
        index, code = self._advise(rows, _MADV_POPULATE_WRITE)
        if code:
            self.allocate(table)
        self._settle(rows, index, code, "populating guest memory", (errno.EINVAL,))

    def _populate(self, table: Table, advice: int) -> None:
        rows = words(table)
        index, code = self._advise(rows, advice)
        self._settle(rows, index, code, "populating guest memory", (errno.EINVAL,))

    def _advise(self, rows: kernels.Words, advice: int) -> tuple[int, int]:
        with self.lease():
            found: tuple[int, int] = system_kernels.advise(
                rows,
                self.map.firsts,
                self.map.lasts,
                self._bases,
                np.uint64(mmap.PAGESIZE),
                advice,
            )
        return found

    def allocate(self, table: Table) -> None:
        """Reserve space in the files for a table, so that no later write can meet a full disk.

        OSError (ENOSPC, EFBIG, ...). Nothing where there is no file or its file system cannot.
        """
        rows = words(table)
        with self.lease():
            index, code = system_kernels.allocate(
                rows, self.map.firsts, self.map.lasts, self._fds, self._offsets
            )
        ignored = (errno.EOPNOTSUPP, errno.ENOSYS)
        self._settle(rows, index, code, "allocating guest memory", ignored)

    def _settle(
        self, rows: kernels.Words, index: int, code: int, what: str, ignored: tuple[int, ...]
    ) -> None:
        """Turn what a kernel that makes system calls answered into nothing or an exception."""
        if index >= 0 and code == 0:
            self._refuse(rows, index)
        if code and code not in ignored:
            raise OSError(code, f"{what}: {os.strerror(code)}")

    def _refuse(self, rows: kernels.Words, index: int) -> None:
        gpa, length = rows[index].tolist()
        raise RangeError(index, gpa, length, "is not inside one mapping of the guest's memory")

    def __del__(self) -> None:
        if self._closing is None:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=1)
            _release(self._regions)

    def __repr__(self) -> str:
        state = "open" if self._closing is None else "closed"
        return f"<GuestMemory {state}, {self.map.total_bytes} bytes, {self._leases} leases>"


def _address_of(memory: mmap.mmap) -> int:
    # The array goes away at once: while it lived, the mapping could not be closed.
    address: int = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    return address


def _in_memory(fd: int) -> bool:
    """Whether a file lives in memory alone: only those (memfd, tmpfs, hugetlbfs) can have seals."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def _release(regions: list[_Region]) -> None:
    """Unmap and close all, last one first, emptying the list."""
    while regions:
        region = regions.pop()
        if isinstance(region.memory, mmap.mmap):
            region.memory.close()
        if region.fd >= 0:
            os.close(region.fd)
