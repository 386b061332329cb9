"""A stored VM, written as Cloud Hypervisor's own snapshot directory (`file://`).

What the directory has no place for is refused by name before anything is made: memory that the
State's `memory_ranges` leave out, and a Config that says something which the State does not. It
appears whole, by rename, and durably. Every failure is a StoredVmError.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from aiomigrate.memory import directory
from aiomigrate.memory.blocks import BLOCK_BYTES, BlockSource, FilePart, new_buffer
from aiomigrate.memory.directory import STATE_NAME
from aiomigrate.memory.errors import ConfigError, StoredVmError
from aiomigrate.memory.file_snapshot import MEMORY_NAME
from aiomigrate.memory.gathered import GatheredSource, Piece
from aiomigrate.memory.map import Mapping
from aiomigrate.memory.new_directory import NewDirectory
from aiomigrate.memory.snapshot_text import SNAPSHOT_CONFIG_NAME, read_state, split_config
from aiomigrate.memory.stored import StoredVm

__all__ = ["Exported", "FileSnapshotWriter", "export"]


@dataclass(frozen=True, slots=True)
class Exported:
    """What a `file://` snapshot of a stored VM would hold."""

    config: bytes
    memory: BlockSource
    """All of `memory-ranges`."""
    allocated_bytes: int
    """What that takes where it is now."""


def export(vm: StoredVm) -> Exported:
    """What to write for a stored VM; StoredVmError if something would be lost by it."""
    try:
        state = read_state(vm.state)
        vm_config = split_config(vm.config.raw, state)
    except ConfigError as error:
        raise StoredVmError(vm.path, error.why) from error
    sources = {m.slot: vm.memory(m).source for m in vm.config.memory_map.mappings}
    pieces: list[Piece] = []
    covered: dict[int, list[tuple[int, int]]] = {slot: [] for slot in sources}
    at = 0
    for gpa, length in state.ranges:
        mapping = next(
            (
                m
                for m in vm.config.memory_map.mappings
                if m.gpa <= gpa and gpa + length - 1 <= m.last
            ),
            None,
        )
        if mapping is None:
            raise StoredVmError(
                vm.path, f"its State's range at {gpa:#x} of {length} bytes is not in one mapping"
            )
        start = gpa - mapping.gpa
        pieces.append(Piece(at, length, sources[mapping.slot], start))
        covered[mapping.slot].append((start, start + length))
        at += length
    with directory.os_errors(vm.path, "looking for data"):
        for mapping in vm.config.memory_map.mappings:
            _require_covered(vm.path, mapping, sources[mapping.slot], covered[mapping.slot])
        return Exported(vm_config.encode(), GatheredSource(at, pieces), vm.allocated_bytes())


def _require_covered(
    path: str, mapping: Mapping, source: BlockSource, covered: Iterable[tuple[int, int]]
) -> None:
    """Refuse data between the ranges: only there is something that has no place."""
    gaps: list[Piece] = []
    end = 0
    for start, stop in [*sorted(covered), (mapping.size, mapping.size)]:
        if start > end:
            gaps.append(Piece(end, start - end, source, end))
        end = max(end, stop)
    rest = GatheredSource(mapping.size, gaps)
    buffer = new_buffer()
    found, index = rest.find(0)
    blocks = -(-mapping.size // BLOCK_BYTES)
    while True:
        for block in found:
            if rest.read(block, buffer).any():
                raise StoredVmError(
                    path,
                    f"slot {mapping.slot} (zone {mapping.zone_id}) has memory in the MiB at "
                    f"{mapping.gpa + block * BLOCK_BYTES:#x} that its State's memory_ranges leave "
                    "out: a file:// snapshot has no place for it",
                )
        if index >= blocks:
            return
        found, index = rest.find(index)


class FileSnapshotWriter:
    """The directory in the making; `discard` at any time before `close`."""

    def __init__(self, path: str | os.PathLike[str], exported: Exported, state: bytes) -> None:
        """Make it beside `path`, of which nothing may exist yet but its parent."""
        self._place = NewDirectory(path)
        self._committed = False
        self.path = self._place.path
        self.memory: FilePart | None = None
        """Where `memory-ranges` goes, block by block; None if it has nothing to hold."""
        try:
            self._place.require_space(exported.allocated_bytes)
            with directory.os_errors(self.path, "making its files"):
                for name, content in ((SNAPSHOT_CONFIG_NAME, exported.config), (STATE_NAME, state)):
                    directory.write_all(self._place.new_file(name), content)
                if exported.memory.size:
                    fd = self._place.new_file(MEMORY_NAME)
                    os.ftruncate(fd, exported.memory.size)
                    self.memory = FilePart(fd, 0, exported.memory.size)
        except BaseException:
            self._place.discard()
            raise

    def commit(self) -> None:
        """Make all of it durable, and let it appear. After an error nothing is certain but that
        `discard` removes it.
        """
        with directory.os_errors(self.path, "writing to disk"):
            for fd in (*self._place.files.values(), self._place.fd):
                os.fsync(fd)
        self._place.appear()
        self._committed = True

    def discard(self) -> None:
        """Remove it, committed or not; idempotent."""
        self._committed = False
        self._place.discard()

    def close(self) -> None:
        """Let go of what was committed, and remove what was not; idempotent."""
        if not self._committed:
            self.discard()
        self._place.close()
