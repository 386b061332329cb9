"""Whether there is room for a guest: what its memory is behind, and what this machine has left.

A guest's size is not what it needs: one of 1 TiB may hold 64 MiB. So only what is known to come
counts as a need, and a size beyond what is left is told as what it is. Huge pages are not looked
at: the kernel reserves them when they are mapped, or refuses there.

Memory that is left is what the kernel calls available, and what the control groups (v2) of this
process leave of their limits, page cache that could be dropped included.
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
    nothing is certain. OSError.
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
        if need - held > have:
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


def _left(fd: int, *, on_disk: bool) -> int:
    status = os.fstatvfs(fd)
    left = status.f_bavail * status.f_frsize
    if on_disk:
        return left
    # A tmpfs has a limit of its own; memfds are of one that has none, and no blocks.
    memory = available_memory()
    return min(memory, left) if status.f_blocks else memory


def available_memory(proc: Path = _PROC) -> int:
    """Bytes that this process can still allocate before something has to give way; OSError."""
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = _KIB * int(line.split()[1])
            break
    else:
        raise OSError("/proc/meminfo does not say what is available")
    for group in _control_groups(proc):
        with suppress(OSError, ValueError):  # no limit: none of our own, or `max`
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
            available = min(available, max(0, limit - used + _droppable(group)))
    return available


def _droppable(group: Path) -> int:
    for line in (group / "memory.stat").read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


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
