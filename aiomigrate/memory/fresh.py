"""Fresh guest memory for a VMM: a memfd a slot, in huge pages where the Config wants that.

Memory of a zone with `hugepages` is hugetlb, which the machine sets aside beforehand: that there is
enough is looked at first, so that a lack is told as what it is, and the kernel reserves it when it
is mapped. All other memory can get transparent huge pages (`regions`).
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path

from aiomigrate.memory.map import VmConfig

__all__ = ["make_memfds"]

_KIB = 1024
_POOLS = Path("/sys/kernel/mm/hugepages")  # Documentation/admin-guide/mm/hugetlbpage.rst
_MEMINFO = Path("/proc/meminfo")


def make_memfds(config: VmConfig) -> dict[int, int]:
    """An empty memfd of the mapping's size for each slot of `config`, for `GuestMemory.over_files`;
    the descriptors are the caller's to close.

    OSError: ENOMEM if there are too few huge pages, with how many are needed and free; EINVAL for a
    mapping that is not made of whole ones.
    """
    pages: Counter[int] = Counter()
    sizes: dict[int, int] = {}
    for mapping in config.memory_map.mappings:
        size = config.huge_pages.get(mapping.zone_id)
        if size is None:
            continue
        sizes[mapping.slot] = size = size or _default_size()
        if mapping.size % size:
            raise OSError(
                errno.EINVAL,
                f"slot {mapping.slot} has {mapping.size} bytes, not whole huge pages of {size}",
            )
        pages[size] += mapping.size // size
    for size, needed in pages.items():
        free = _free(size)
        if needed > free:
            raise OSError(
                errno.ENOMEM,
                f"the guest's memory needs {needed} huge pages of {size // _KIB} KiB, and {free} "
                "are free",
            )
    made: dict[int, int] = {}
    try:
        for mapping in config.memory_map.mappings:
            flags = os.MFD_CLOEXEC
            if size := sizes.get(mapping.slot, 0):
                flags |= os.MFD_HUGETLB | (size.bit_length() - 1) << os.MFD_HUGE_SHIFT
            made[mapping.slot] = os.memfd_create(f"slot-{mapping.slot}", flags)
            os.ftruncate(made[mapping.slot], mapping.size)
    except BaseException:
        for fd in made.values():
            os.close(fd)
        raise
    return made


def _default_size() -> int:
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("Hugepagesize:"):
            return _KIB * int(line.split()[1])
    raise OSError(errno.EOPNOTSUPP, "this kernel has no huge pages")


def _free(size: int) -> int:
    """Huge pages that can still be reserved; none of a size that the machine does not have."""
    pool = _POOLS / f"hugepages-{size // _KIB}kB"
    if not pool.is_dir():
        return 0
    names = ("free", "resv", "nr_overcommit", "surplus")
    free, reserved, more, surplus = (
        int((pool / f"{name}_hugepages").read_text()) for name in names
    )
    return free - reserved + max(0, more - surplus)
