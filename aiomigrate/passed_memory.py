"""Memory that a source gives by descriptor, at the destination: one MemoryFd a slot, before Config.

A slot number means something only beside the Config of the same migration (reference.md, section
5), and descriptors come in any order. So they are kept as they come, and only Config tells which
are missing, surplus or too small: a stock destination would run a VM on fresh zeros for a missing
one.
"""

import fcntl
import os
import stat
from collections.abc import Mapping

from aiomigrate.memory.map import MAX_MAPPINGS, MemoryMap
from aiomigrate.requests import Refused

__all__ = ["PassedMemory"]


class PassedMemory:
    """The descriptors of one migration, by slot, until `close`. False while there is none."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._fds)

    def add(self, slot: int, fd: int) -> None:
        """Take `fd`, which is closed if it is Refused: a second one for a slot, or one too many."""
        if slot not in self._fds and len(self._fds) < MAX_MAPPINGS:
            self._fds[slot] = fd
            return
        os.close(fd)
        if slot in self._fds:
            raise Refused(f"slot {slot}: expected one descriptor, got a second one")
        raise Refused(f"slot {slot}: expected {MAX_MAPPINGS} descriptors at the most, got one more")

    def check(self, memory_map: MemoryMap) -> Mapping[int, int]:
        """The descriptor of each slot of the map; Refused if they do not fit it. They stay ours."""
        wanted = {mapping.slot for mapping in memory_map.mappings}
        for what, slots in (
            ("missing", sorted(wanted - self._fds.keys())),
            ("of no mapping", sorted(self._fds.keys() - wanted)),
        ):
            if slots:
                raise Refused(
                    f"slot {slots[0]} is {what}: expected descriptors of the slots "
                    f"{_listed(wanted)}, got {_listed(self._fds)}"
                )
        for mapping in memory_map.mappings:
            where = f"slot {mapping.slot}"
            fd = self._fds[mapping.slot]
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise Refused(f"{where}: expected a file that holds memory, got {_kind(found)}")
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            if flags & os.O_PATH or flags & os.O_ACCMODE == os.O_WRONLY:
                raise Refused(f"{where}: expected a readable file, got one that is not")
            needed = mapping.file_offset + mapping.size
            if found.st_size < needed:
                raise Refused(
                    f"{where}: expected a file of {needed} bytes or more (its mapping of "
                    f"{mapping.size} begins at {mapping.file_offset}), got {found.st_size}"
                )
        return dict(self._fds)

    def close(self) -> None:
        """Close all of them; the last descriptor of much memory takes its time."""
        while self._fds:
            os.close(self._fds.popitem()[1])


def _listed(slots: "set[int] | dict[int, int]") -> str:
    """A few slot numbers, for people."""
    first = [str(slot) for slot in sorted(slots)[:8]]
    return ", ".join(first) + (f" and {len(slots) - 8} more" if len(slots) > 8 else "")


def _kind(found: os.stat_result) -> str:
    """What a descriptor that is no file is, as ls -l writes it."""
    return f"one of type {stat.filemode(found.st_mode)[0]!r}"
