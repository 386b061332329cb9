"""Whether there is room for a guest: what its memory is behind, and what this machine has left.

A guest's size is not what it needs: one of 1 TiB may hold 64 MiB. So only what is known to come
counts as a need, and a size beyond what is left is told as what it is. Huge pages are not looked
at: the kernel reserves them when they are mapped, or refuses there.

Memory that is left is what the kernel calls available, and what the control groups (v2) of this
process leave of their limits, page cache that could be dropped included. Swap is neither in the one
nor in the other: a guest that fits only because something is swapped out has no room.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aiomigrate.memory.regions import Region

__all__ = ["BLOCK_BYTES", "Shortage", "available_memory", "held_bytes", "shortages"]

BLOCK_BYTES = 512
"""Of st_blocks, stat(2)."""
_PROC = Path("/proc")
_KIB = 1024
_DROPPABLE = ("inactive_file", "active_file", "slab_reclaimable")
"""Of memory.stat (Documentation/admin-guide/cgroup-v2.rst): page cache, memfds and files of a tmpfs
not among it, and what slabs can give back. MemAvailable counts these, too."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """A place with too little room for a guest."""

    place: str
    """`memory` or `disk`."""
    need: int
    """Bytes that will come there, or, if not `certain`, that may."""
    have: int
    """Bytes that are left there."""
    certain: bool

    def __str__(self) -> str:
        need, have = (f"{nbytes / (1 << 20):.1f} MiB" for nbytes in (self.need, self.have))
        needs = "needs" if self.certain else "can grow to"
        return f"the guest's memory {needs} {need} of {self.place}, and {have} are available"


def shortages(regions: Sequence[Region], expected: int | None) -> list[Shortage]:
    """Where there is too little room for `regions`, of which `expected` bytes will hold data.

    What their files hold already needs no more room. None: it is not known how much comes, and
    nothing is certain. What is left of a place may not be known: it is not judged then. OSError.
    """
    places: dict[tuple[int, bool], list[Region]] = {}
    for region in regions:
        if region.on_disk or region.advised:
            places.setdefault((os.fstat(region.fd).st_dev, region.on_disk), []).append(region)
    total = sum(region.mapping.size for region in regions)
    found = []
    for (_, on_disk), there in places.items():
        size = sum(region.mapping.size for region in there)
        held = held_bytes(there) or 0
        have = _left(there[0].fd, on_disk=on_disk)
        # The other places may take as much of it as they are large.
        need = size if expected is None else min(size, max(0, expected - (total - size)))
        if have is not None and need - held > have:
            place = "disk" if on_disk else "memory"
            found.append(Shortage(place, need - held, have, certain=expected is not None))
    return found


def held_bytes(regions: Sequence[Region]) -> int | None:
    """Bytes of storage behind regions: more than that is zero. None if one does not tell."""
    files: dict[tuple[int, int], list[Region]] = {}
    for region in regions:
        if region.fd < 0:
            return None
        status = os.fstat(region.fd)
        files.setdefault((status.st_dev, status.st_ino), []).append(region)
    return sum(
        min(os.fstat(parts[0].fd).st_blocks * BLOCK_BYTES, sum(part.mapping.size for part in parts))
        for parts in files.values()
    )


def _left(fd: int, *, on_disk: bool) -> int | None:
    status = os.fstatvfs(fd)
    left = status.f_bavail * status.f_frsize
    if on_disk:
        return left
    # A tmpfs has a limit of its own; memfds are of one that has none, and no blocks.
    memory = available_memory()
    if not status.f_blocks:
        return memory
    return left if memory is None else min(memory, left)


def available_memory(proc: Path = _PROC) -> int | None:
    """Bytes that this process can still allocate before something has to give way; None where
    nothing says: in a jail without /proc, or with one that has processes only (`subset=pid`).
    """
    known: list[int] = []
    with suppress(OSError):
        lines = (proc / "meminfo").read_text().splitlines()
        known += (_KIB * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    for group in _control_groups(proc):
        with suppress(OSError, ValueError):  # no limit: none of our own, or `max`
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
            known.append(max(0, limit - used + _droppable(group)))
    return min(known, default=None)


def _droppable(group: Path) -> int:
    """What a control group gives back rather than meet its limit, of what counts as used."""
    pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return sum(int(nbytes) for what, nbytes in pairs if what in _DROPPABLE)


def _control_groups(proc: Path) -> Iterator[Path]:
    """The directories of this process' control group (v2) and of those that it is in."""
    with suppress(OSError):
        path = ""
        for line in (proc / "self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):  # cgroups(7)
                path = line.removeprefix("0::/")
        for line in (proc / "self/mountinfo").read_text().splitlines():
            fields, _, kind = line.partition(" - ")
            if kind.startswith("cgroup2 "):  # proc_pid_mountinfo(5): the mount point is the fifth
                top = Path(fields.split()[4])
                yield top
                for depth in range(1, len(Path(path).parts) + 1):
                    yield top.joinpath(*Path(path).parts[:depth])
                return
