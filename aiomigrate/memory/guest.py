"""Guest memory as this process has it mapped, and what can be done with it.

A range table names guest addresses; here it meets the host's: memory is handed to system calls and
kernels, looked through for data and zeros, made present, allocated, given back. Each of these takes
a lease on the mappings (`leases`).
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Collection, Iterator, Sequence
from collections.abc import Mapping as ByKey

import numpy as np
import numpy.typing as npt

from aiomigrate.memory import kernels, ranges, room, system_kernels, zero_kernels
from aiomigrate.memory.errors import RangeError
from aiomigrate.memory.iovec import PIECE, Buffer, IoVector, pieces_of
from aiomigrate.memory.leases import Leased
from aiomigrate.memory.map import PAGE_BYTES, MemoryMap
from aiomigrate.memory.ranges import RANGE, Table, total_bytes, words
from aiomigrate.memory.regions import Region, hold_buffer, map_file, release, require_slots

__all__ = ["GuestMemory"]

_RESIDENT_RANGES = 64
_RESIDENT_PAGES = 1024
"""What is asked of the kernel at once on an event loop: some microseconds (4 MiB in one range)."""
_HUGE_BYTES = 2 << 20
"""A transparent huge page with pages of 4 KiB on x86-64 and arm64."""
# Linux 5.14, include/uapi/asm-generic/mman-common.h; Python's mmap module does not name them.
_MADV_POPULATE_READ = 22
_MADV_POPULATE_WRITE = 23


class GuestMemory(Leased):
    """The mapped memory of a VM: a region of this process for each mapping of `memory_map`.

    Made by `over_files` or `over_buffers`, which make the `regions` and say whether it is
    `writable` and `staged`; closed by `close` or `aclose`.
    """

    def __init__(
        self,
        memory_map: MemoryMap,
        regions: Sequence[Region],
        *,
        writable: bool = True,
        staged: bool = False,
    ) -> None:
        self.map = memory_map
        """Where in the guest its mappings are."""
        self.staged = staged
        """Whether content is to come by `store` rather than through `iovec`."""
        self._writable = writable
        self._bases = np.array([region.address for region in regions], np.uint64)
        self._fds = np.array([region.fd for region in regions], np.int64)
        self._offsets = np.array([region.offset for region in regions], np.int64)
        self._steady = np.array([region.steady for region in regions])
        self._all_steady = bool(self._steady.all())
        self._in_buffers = self._fds < 0
        self._punched_fds = np.where([region.punches for region in regions], self._fds, -1)
        self._on_disk = any(region.on_disk for region in regions)
        self._advised_fds = np.where([region.advised for region in regions], self._fds, -1)
        self._scratch = np.empty(_RESIDENT_PAGES, np.uint8)
        super().__init__(regions)  # last: what is not whole unmaps nothing when it goes away

    @classmethod
    def over_files(
        cls,
        memory_map: MemoryMap,
        fds: ByKey[int, int],
        *,
        writable: bool,
        offsets: ByKey[int, int] | None = None,
        file_zones: Collection[str] = (),
        staged: bool = False,
    ) -> GuestMemory:
        """Map the file (or memfd) of each slot of `memory_map`, shared; the descriptors (`fds`, by
        slot) stay the caller's.

        Memory that is not `writable` can only be sent.
        `offsets` says where in its file a slot's mapping begins (bytes, multiples of the page size;
        0 if not named). Memory of `file_zones` counts as data throughout. `staged` is for files
        that nobody else uses yet: what is received into them leaves holes where it is zero.
        OSError if a file cannot be mapped, ValueError if one is missing, is too short, or begins
        between two pages.
        """
        require_slots(memory_map, fds, "file")
        regions: list[Region] = []
        try:
            for mapping in memory_map.mappings:
                offset = (offsets or {}).get(mapping.slot, 0)
                sparse = mapping.zone_id not in file_zones
                regions.append(
                    map_file(mapping, fds[mapping.slot], offset, writable=writable, sparse=sparse)
                )
            return cls(memory_map, regions, writable=writable, staged=staged)
        except BaseException:
            release(regions)
            raise

    @classmethod
    def over_buffers(
        cls, memory_map: MemoryMap, buffers: ByKey[int, mmap.mmap | bytearray | memoryview]
    ) -> GuestMemory:
        """Use a writable buffer of the mapping's size for each slot of `memory_map`; they are held
        until close.

        One that maps a file must not lose it meanwhile: buffers are read here (`split_zeros`), and
        what was cut off would end the process by SIGBUS. `over_files` takes such files.

        ValueError for one that is missing, read-only or of another size.
        """
        require_slots(memory_map, buffers, "buffer")
        return cls(memory_map, [hold_buffer(m, buffers[m.slot]) for m in memory_map.mappings])

    def files(self) -> dict[int, int]:
        """The file of each slot, for whoever is to map the same memory; the descriptors stay ours.

        ValueError for a slot that is held in a buffer, or does not begin at its `file_offset`.
        """
        for region in self._regions:
            mapping = region.mapping
            if region.fd < 0:
                raise ValueError(f"slot {mapping.slot} is held in a buffer, not in a file")
            if region.offset != mapping.file_offset:
                raise ValueError(
                    f"slot {mapping.slot} begins at {region.offset} in its file, not at its "
                    f"file_offset of {mapping.file_offset}"
                )
        return {region.mapping.slot: region.fd for region in self._regions}

    def iovec(self, table: Table, prefix: Buffer | tuple[Buffer, ...] = b"") -> IoVector:
        """The host memory of a table's ranges, after the bytes of `prefix`; RangeError if one does
        not fit.

        Hold a lease for as long as it is used.
        """
        rows = words(table)
        entries = np.empty((pieces_of(rows[:, 1]), 2), np.uint64)
        bad = kernels.fill(
            rows, self.map.firsts, self.map.lasts, self._bases, np.uint64(PIECE), entries
        )
        if bad >= 0:
            self._refuse(rows, bad)
        buffers = prefix if isinstance(prefix, tuple) else (prefix,)
        return IoVector.after_buffers(buffers, entries, steady=self._all_steady)

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

    def _data_of(self, region: Region, at: int, rows: kernels.Words) -> tuple[int, int]:
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
                held = min(held, os.fstat(region.fd).st_blocks * room.BLOCK_BYTES)
            total += held
        return total

    def held_bytes(self) -> int | None:
        """Bytes of storage behind the memory: no more than that is other than zero. None if a
        buffer's cannot be told.
        """
        return room.held_bytes(self._regions)

    def shortages(self, expected: int | None) -> list[room.Shortage]:
        """Where this machine has too little room for this memory, `expected` bytes of which will
        come (None: it is not known). OSError.
        """
        with self.lease():
            return room.shortages(self._regions, expected)

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

        A first touch brings a huge page, if the machine gives them, only where the table covers all
        of it, so that what is sparse stays sparse: elsewhere pages are allocated by fallocate(2)
        first, which advice does not reach (shmem looks for it at the mapping that faults).
        """
        rows = words(table)
        if self._advised_fds.max() >= 0:
            left = ranges.fragments(table, self.map.firsts, self._offsets, _HUGE_BYTES)
            self._fallocate(left, self._advised_fds, "allocating guest memory", hole=False)
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
        self._fallocate(table, self._fds, "allocating guest memory", hole=False)

    def _fallocate(
        self, table: Table, fds: kernels.Numbers, what: str, *, hole: bool
    ) -> kernels.Words:
        """The rows where there is no file or its file system cannot."""
        rows = words(table)
        rest = np.empty_like(rows)
        with self.lease():
            count, index, code = system_kernels.fallocate(
                rows, self.map.firsts, self.map.lasts, fds, self._offsets, hole, rest
            )
        self._settle(rows, index, code, what)
        return rest[:count]

    def split_zeros(
        self, table: Table, mappings: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Table, Table]:
        """Two tables of what a table covers: (data, zeros), in its order, neighbours joined.

        Pages of 4096 bytes (by guest address) that read as zero are zeros; the rest is data, and so
        are parts of pages at a range's ends, and all that is in mappings (in the map's order) whose
        entry in `mappings` is False. So is everything in a file that somebody could cut
        meanwhile, which is every one that has a name (a stored VM's): reading it here could end the
        process by SIGBUS. Its holes are known without reading it (`data_tables`).

        Call `populate_read` before, which fails where a page cannot be had. RangeError. Takes about
        10 ms for 200 MiB of zeros.
        """
        self.map.check(table)
        rows = words(table)
        with self.lease():
            readable = self._steady if mappings is None else self._steady & mappings
            data, zeros = self._split(rows, readable, parts=False)
        return data.reshape(-1).view(RANGE), zeros.reshape(-1).view(RANGE)

    def _split(
        self, rows: kernels.Words, readable: npt.NDArray[np.bool_], *, parts: bool
    ) -> tuple[kernels.Words, kernels.Words]:
        page = np.uint64(PAGE_BYTES)
        # Runs of data and zeros take turns in a range.
        room = int((rows[:, 1] // page // np.uint64(2) + np.uint64(2)).sum())
        data, zeros = np.empty((room, 2), np.uint64), np.empty((room, 2), np.uint64)
        data_rows, zero_rows = zero_kernels.split_zeros(
            rows, self.map.firsts, self.map.lasts, self._bases, readable, parts, data, zeros
        )
        return data[:data_rows], zeros[:zero_rows]

    def zero(self, table: Table) -> None:
        """Make a table read as zeros, and give back the storage behind it where that is possible.

        Files get holes. Elsewhere (buffers; file systems without holes) zeros are written, in
        buffers only to what is not zero already: memory that was never touched stays so. RangeError
        (then nothing or the ranges before it were zeroed), OSError; PermissionError if the memory
        is not writable.
        """
        if not self._writable:
            raise PermissionError(errno.EACCES, "zeroing guest memory: it is mapped read-only")
        what = "zeroing guest memory"
        rest = self._fallocate(table, self._punched_fds, what, hole=True)
        if not len(rest):
            return
        with self.lease(), open("/dev/zero", "rb", buffering=0) as zeros:
            dirty, _ = self._split(rest, self._in_buffers, parts=True)
            index, code = system_kernels.read_into(
                dirty, self.map.firsts, self.map.lasts, self._bases, zeros.fileno()
            )
        self._settle(dirty, index, code, what)

    def store(self, table: Table, content: memoryview) -> None:
        """Write a table's content into its files, with holes for pages that are zero.

        For memory that is `staged`. Each page of 4096 bytes is written or made a hole by system
        calls on the file alone, so calls in several threads may overlap: a page that two of them
        cover is as one of them has it, and a call that begins after another has ended is later.
        ValueError for content of another length, RangeError, OSError (ENOSPC, ...).
        """
        if total_bytes(table) != content.nbytes:
            raise ValueError(f"{content.nbytes} bytes for a table of {total_bytes(table)}")
        rows = words(table)
        with self.lease():
            index, code = system_kernels.store(
                rows,
                self.map.firsts,
                self.map.lasts,
                self._fds,
                self._offsets,
                np.frombuffer(content, np.uint8),
            )
        self._settle(rows, index, code, "storing guest memory")

    def _settle(
        self, rows: kernels.Words, index: int, code: int, what: str, ignored: tuple[int, ...] = ()
    ) -> None:
        """Turn what a kernel that makes system calls answered into nothing or an exception."""
        if index >= 0 and code == 0:
            self._refuse(rows, index)
        if code and code not in ignored:
            raise OSError(code, f"{what}: {os.strerror(code)}")

    def _refuse(self, rows: kernels.Words, index: int) -> None:
        gpa, length = rows[index].tolist()
        raise RangeError(index, gpa, length, "is not inside one mapping of the guest's memory")

    def __repr__(self) -> str:
        state = "open" if self._closing is None else "closed"
        return f"<GuestMemory {state}, {self.map.total_bytes} bytes, {self._leases} leases>"
