"""What this process wrote to memory of its own, by PAGEMAP_SCAN and userfaultfd. Linux 6.7.

Memory is registered with a userfaultfd for asynchronous write-protection: the first write to a
protected page is let through by the kernel, which takes the protection away; nobody has to serve a
fault. PAGEMAP_SCAN with PM_SCAN_WP_MATCHING finds the pages without protection and protects them
again, in one step. Facts from Documentation/admin-guide/mm/pagemap.rst and userfaultfd.rst.

* Writes through this process' page tables count, system calls into its memory included; writes of
  other processes that share the memory, and of devices that have it pinned, do not. Throwing pages
  away (MADV_DONTNEED, holes punched into a file) is no write.
* A page too many may be reported (a huge page counts whole), never one too few.
* The descriptor is asked for with UFFD_USER_MODE_ONLY, which every user may have, whatever
  vm.unprivileged_userfaultfd says. The faults that it cannot serve, the kernel's own, are resolved
  without it here.

Nothing here runs long: methods are generators that make one bounded system call between two
`yield`s, to be driven in an executor.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
from collections.abc import Iterator, Sequence
from fcntl import ioctl

import numpy as np
import numpy.typing as npt

from aiomigrate.memory import bitmap_kernels
from aiomigrate.memory.bitmaps import Bitmap
from aiomigrate.memory.errors import DirtyLogError
from aiomigrate.memory.map import PAGE_BYTES

__all__ = ["PagemapLog"]

# include/uapi/linux/userfaultfd.h
_UFFD_API = 0xAA
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_WRITEPROTECT = 0xC018AA06
_UFFD_USER_MODE_ONLY = 1
_PAGEFAULT_FLAG_WP = 1 << 0
_WP_HUGETLBFS_SHMEM = 1 << 12
_WP_UNPOPULATED = 1 << 13
_WP_ASYNC = 1 << 15
_FEATURES = _PAGEFAULT_FLAG_WP | _WP_HUGETLBFS_SHMEM | _WP_UNPOPULATED | _WP_ASYNC
_REGISTER_MODE_WP = 2
_WRITEPROTECT_MODE_WP = 1
# include/uapi/linux/fs.h
_PAGEMAP_SCAN = 0xC0606610
_SCAN_BYTES = 96  # struct pm_scan_arg
_WP_MATCHING = 1
_CHECK_WPASYNC = 2
_PAGE_IS_WRITTEN = 2
_WALK_END = 32  # where in struct pm_scan_arg the kernel says how far it came

_SYSCALL = {"x86_64": 323}.get(platform.machine(), 282)  # 282: the generic table's userfaultfd
_SLICE_BYTES = 1 << 30
"""Memory that one call goes over: 256 Ki page table entries, about a millisecond. A multiple of
every size of huge pages.
"""
_REGIONS = 16 * 1024
"""Written regions that one call may find and protect: 384 KiB."""
_PAGE_SHIFT = np.uint64(PAGE_BYTES.bit_length() - 1)
_NAME = "the dirty log by PAGEMAP_SCAN"

_libc = ctypes.CDLL(None, use_errno=True)

Memory = mmap.mmap | bytearray | memoryview | npt.NDArray[np.uint8]


class PagemapLog:
    """The dirty log of writable, page-aligned buffers of this process, held from `start` to `stop`.

    ValueError for other buffers, and on a machine whose pages are not of 4096 bytes. All methods
    raise DirtyLogError, which says what the kernel lacks or refuses.
    """

    def __init__(self, memory: Sequence[Memory]) -> None:
        if mmap.PAGESIZE != PAGE_BYTES:
            raise ValueError(f"pages are of {mmap.PAGESIZE} bytes here, not {PAGE_BYTES}")
        self._memory = tuple(memory)
        self._sizes = []
        for index, view in enumerate(self._views()):
            address, size = _place(view)
            if not view.flags.writeable:
                raise ValueError(f"buffer {index} is read-only")
            if address % PAGE_BYTES or size % PAGE_BYTES:
                raise ValueError(
                    f"buffer {index} is not made of whole pages: {size} bytes at {address:#x}"
                )
            self._sizes.append(size)
        self._held: list[npt.NDArray[np.uint8]] = []
        self._descriptors: list[int] = []

    def _views(self) -> list[npt.NDArray[np.uint8]]:
        return [np.frombuffer(buffer, np.uint8) for buffer in self._memory]

    def bitmaps(self) -> list[Bitmap]:
        """Empty bitmaps, one a buffer, for `collect`."""
        return [np.zeros(-(-size // PAGE_BYTES // 64), np.uint64) for size in self._sizes]

    def start(self) -> Iterator[None]:
        """Protect everything; page tables are made for it (8 bytes a page)."""
        self._held = self._views()
        self._descriptors = [_open_userfaultfd()]
        self._descriptors.append(_open_pagemap())
        uffd = self._descriptors[0]
        _call("UFFDIO_API with UFFD_FEATURE_WP_ASYNC", uffd, _UFFDIO_API, _UFFD_API, _FEATURES, 0)
        for view in self._held:
            address, size = _place(view)
            _call("UFFDIO_REGISTER", uffd, _UFFDIO_REGISTER, address, size, _REGISTER_MODE_WP, 0)
            yield
            for first in range(address, address + size, _SLICE_BYTES):
                length = min(_SLICE_BYTES, address + size - first)
                numbers = first, length, _WRITEPROTECT_MODE_WP
                _call("UFFDIO_WRITEPROTECT", uffd, _UFFDIO_WRITEPROTECT, *numbers)
                yield

    def collect(self, into: Sequence[Bitmap]) -> Iterator[None]:
        """Mark in `into` what was written since the last call, and protect it again."""
        for view, bitmap in zip(self._held, into, strict=True):
            address, size = _place(view)
            at = address
            while at < address + size:
                at = self._scan(address, at, min(address + size, at + _SLICE_BYTES), bitmap)
                yield

    def _scan(self, base: int, start: int, end: int, bitmap: Bitmap) -> int:
        """Find, protect and mark from `start` on; where the kernel stopped."""
        regions = np.empty((_REGIONS, 3), np.uint64)  # struct page_region: start, end, categories
        asked = (
            *(_SCAN_BYTES, _WP_MATCHING | _CHECK_WPASYNC, start, end, 0),
            *(regions.__array_interface__["data"][0], _REGIONS, 0),
            *(0, _PAGE_IS_WRITTEN, 0, _PAGE_IS_WRITTEN),
        )
        try:
            answer, found = _call("PAGEMAP_SCAN", self._descriptors[1], _PAGEMAP_SCAN, *asked)
        except DirtyLogError:
            # What it has protected by then is not known.
            regions[0] = start, end, _PAGE_IS_WRITTEN
            bitmap_kernels.mark(regions[:1], np.uint64(base), _PAGE_SHIFT, bitmap)
            raise
        bitmap_kernels.mark(regions[:found], np.uint64(base), _PAGE_SHIFT, bitmap)
        reached: int = struct.unpack_from("=Q", answer, _WALK_END)[0]
        return reached

    def stop(self) -> Iterator[None]:
        """Take the protection away, where there is any: closing the userfaultfd does that, for all
        memory at once.
        """
        while self._descriptors:
            os.close(self._descriptors.pop())
            yield
        self._held = []


def _place(view: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """(address, bytes)."""
    address: int = view.__array_interface__["data"][0]
    return address, view.size


def _open_userfaultfd() -> int:
    fd: int = _libc.syscall(_SYSCALL, os.O_CLOEXEC | _UFFD_USER_MODE_ONLY)
    if fd < 0:
        raise _error("userfaultfd(UFFD_USER_MODE_ONLY)", ctypes.get_errno())
    return fd


def _open_pagemap() -> int:
    try:
        return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _error("opening /proc/self/pagemap", error.errno or 0) from error


def _call(name: str, fd: int, request: int, *numbers: int) -> tuple[bytes, int]:
    """An ioctl on a structure of u64: (the structure afterwards, its result)."""
    arguments = bytearray(struct.pack(f"={len(numbers)}Q", *numbers))
    try:
        result = ioctl(fd, request, arguments)
    except OSError as error:
        raise _error(name, error.errno or 0) from error
    return bytes(arguments), result


_HINTS = {
    ("userfaultfd(UFFD_USER_MODE_ONLY)", errno.EPERM): "a seccomp filter refuses it, as those of "
    "containers do without CAP_SYS_PTRACE; vm.unprivileged_userfaultfd makes no difference",
    ("userfaultfd(UFFD_USER_MODE_ONLY)", errno.EINVAL): "Linux 6.7 or newer is needed",
    ("userfaultfd(UFFD_USER_MODE_ONLY)", errno.ENOSYS): "the kernel has no CONFIG_USERFAULTFD",
    ("opening /proc/self/pagemap", errno.ENOENT): "/proc is not mounted, or the kernel has no "
    "CONFIG_PROC_PAGE_MONITOR",
    ("opening /proc/self/pagemap", errno.EACCES): "this process changed its user and is not "
    "dumpable (PR_SET_DUMPABLE), and has no CAP_SYS_PTRACE",
    ("UFFDIO_API with UFFD_FEATURE_WP_ASYNC", errno.EINVAL): "Linux 6.7 or newer with "
    "CONFIG_PTE_MARKER_UFFD_WP is needed",
    ("UFFDIO_REGISTER", errno.EBUSY): "another userfaultfd holds this memory",
    ("PAGEMAP_SCAN", errno.ENOTTY): "Linux 6.7 or newer is needed",
    ("PAGEMAP_SCAN", errno.EPERM): "the memory was unmapped or mapped anew since the log started",
}


def _error(call: str, code: int) -> DirtyLogError:
    hint = _HINTS.get((call, code), "")
    why = os.strerror(code)
    return DirtyLogError(_NAME, call, code, f"{why}: {hint}" if hint else why)
