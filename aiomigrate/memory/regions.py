"""How each mapping of a guest is held in this process: a file's, mapped here, or a buffer's.

What may be done with memory depends on what is behind it, and is found out once, when it is mapped.
Memory behind a file that somebody can cut must be touched by system calls only: they answer EFAULT
where this process would be ended by a signal.

Files that live in memory are mapped with the advice to use huge pages: whether they come is the
machine's to say (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`, or the `huge=` of a tmpfs).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aiomigrate.memory.iovec import Buffer
from aiomigrate.memory.map import Mapping, MemoryMap

__all__ = ["Region", "hold_buffer", "map_file", "release", "require_slots"]


_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h, Linux 5.1; Python's fcntl does not name it


@dataclass(slots=True)
class Region:
    """One mapping as it is held."""

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
    advised: bool = False
    """Whether a first touch may bring a huge page."""
    steady: bool = True
    """Whether memory that is there stays there, so that it may be touched outside system calls."""
    punches: bool = False
    """Whether zeros are made by a hole in the file. Not in huge pages: a hole gives back a page's
    reservation, too, and if the pool is used up by then the guest's next touch of it is a SIGBUS.
    """


def require_slots(memory_map: MemoryMap, given: Container[int], what: str) -> None:
    """ValueError unless there is a `what` for the slot of each mapping."""
    for mapping in memory_map.mappings:
        if mapping.slot not in given:
            raise ValueError(f"there is no {what} for the mapping of slot {mapping.slot}")


def map_file(mapping: Mapping, fd: int, offset: int, *, writable: bool, sparse: bool) -> Region:
    """Map a mapping's bytes of a file, shared.

    OSError; ValueError if the file is too short, sealed against writing that is meant, or in huge
    pages that the mapping does not fill, or `offset` is not a multiple of the page size.
    """
    if offset % mmap.PAGESIZE:
        raise ValueError(
            f"the mapping of slot {mapping.slot} begins {offset} bytes into its file, which is no "
            f"multiple of {mmap.PAGESIZE}"
        )
    end, held = offset + mapping.size, os.fstat(fd)
    if stat.S_ISREG(held.st_mode) and held.st_size < end:
        raise ValueError(
            f"the file of slot {mapping.slot} has {held.st_size} bytes, its mapping ends at {end}"
        )
    seals = _seals(fd)
    if writable and (seals or 0) & (fcntl.F_SEAL_WRITE | _F_SEAL_FUTURE_WRITE):
        raise ValueError(f"the file of slot {mapping.slot} is sealed against writing")
    page = os.fstatvfs(fd).f_bsize if seals is not None else mmap.PAGESIZE
    if page > mmap.PAGESIZE and (mapping.size % page or offset % page):
        raise ValueError(
            f"slot {mapping.slot}: {mapping.size} bytes from {offset} on are no whole pages of the "
            f"{page} bytes of its file"
        )
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    # Before Linux 6.7 a file that is sealed against writing cannot be mapped shared, not even for
    # reading; nobody writes it, so that a private mapping shows the same.
    sealed = (seals or 0) & fcntl.F_SEAL_WRITE
    memory = mmap.mmap(
        fd, mapping.size, mmap.MAP_PRIVATE if sealed else mmap.MAP_SHARED, protection, offset=offset
    )
    # The array goes away at once: while it lived, the mapping could not be closed.
    address = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    region = Region(mapping, memory, address, offset=offset, sparse=sparse)
    try:
        region.fd = os.dup(fd)
        region.on_disk = seals is None
        # Only who holds a descriptor could cut a file without a name, and that is the VMM itself.
        region.steady = not region.on_disk and os.fstat(fd).st_nlink == 0
        huge = page > mmap.PAGESIZE
        region.punches = not huge
        if writable and not (huge or region.on_disk):
            region.advised = True
            with suppress(OSError):  # a kernel without huge pages
                memory.madvise(mmap.MADV_HUGEPAGE)
    except BaseException:
        release([region])
        raise
    return region


def hold_buffer(mapping: Mapping, buffer: Buffer | mmap.mmap) -> Region:
    """Use a buffer in place; ValueError for one that is read-only or of another size."""
    view = np.frombuffer(buffer, np.uint8)
    if view.size != mapping.size or not view.flags.writeable:
        access = "writable" if view.flags.writeable else "read-only"
        raise ValueError(
            f"the buffer of slot {mapping.slot} is not {mapping.size} writable bytes, but "
            f"{view.size} {access} ones"
        )
    return Region(mapping, view, view.__array_interface__["data"][0])


def release(regions: list[Region]) -> None:
    """Unmap and close all, last one first, emptying the list."""
    while regions:
        region = regions.pop()
        if isinstance(region.memory, mmap.mmap):
            region.memory.close()
        if region.fd >= 0:
            os.close(region.fd)


def _seals(fd: int) -> int | None:
    """The seals of a file that lives in memory alone (memfd, tmpfs, hugetlbfs: only those can have
    any); None of others.
    """
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return None
