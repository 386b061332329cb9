"""A stored VM, written as Cloud Hypervisor's own snapshot directory (`file://`).

What the directory has no place for is refused by name before anything is made: memory that the
State's `memory_ranges` leave out, and a Config that says something which the State does not. It
appears whole, by rename, and durably. Every failure is a StoredVmError.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from aiomigrate.memory import directory
from aiomigrate.memory.blocks import BLOCK_BYTES, BlockSource, FilePart, new_buffer
from aiomigrate.memory.directory import STATE_NAME
from aiomigrate.memory.errors import ConfigError, StoredVmError
from aiomigrate.memory.file_snapshot import MEMORY_NAME
from aiomigrate.memory.gathered import GatheredSource, Piece
from aiomigrate.memory.map import Mapping
from aiomigrate.memory.snapshot_text import SNAPSHOT_CONFIG_NAME, read_state, split_config
from aiomigrate.memory.stored import StoredVm

__all__ = ["Exported", "FileSnapshotWriter", "export"]


@dataclass(frozen=True, slots=True)
class Exported:
    """What a `file://` snapshot of a stored VM would hold."""

    config: bytes
    memory: BlockSource
    """All of `memory-ranges`."""


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
        return Exported(vm_config.encode(), GatheredSource(at, pieces))


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
    """The directory in the making; a context manager that removes what was not committed."""

    def __init__(self, path: str | os.PathLike[str], exported: Exported, state: bytes) -> None:
        """Make it beside `path`, of which nothing may exist yet but its parent."""
        self.path = os.path.abspath(os.fspath(path))
        parent, self._name = os.path.split(self.path)
        self._partial = f".{self._name}.partial-{secrets.token_hex(4)}"
        self._files: list[int] = []
        self._committed = False
        self.memory: FilePart | None = None
        """Where `memory-ranges` goes, block by block; None if it has nothing to hold."""
        if os.path.lexists(self.path):
            raise StoredVmError(self.path, "the path exists already")
        with ExitStack() as stack, directory.os_errors(self.path, "making the directory"):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self._parent = os.open(parent, flags)
            stack.callback(os.close, self._parent)
            os.mkdir(self._partial, 0o700, dir_fd=self._parent)
            stack.callback(self._remove)
            self._directory = os.open(self._partial, flags, dir_fd=self._parent)
            stack.callback(os.close, self._directory)
            for name, content in ((SNAPSHOT_CONFIG_NAME, exported.config), (STATE_NAME, state)):
                directory.write_all(self._new_file(name, stack), content)
            if exported.memory.size:
                fd = self._new_file(MEMORY_NAME, stack)
                os.ftruncate(fd, exported.memory.size)
                self.memory = FilePart(fd, 0, exported.memory.size)
            self._open = stack.pop_all()

    def _new_file(self, name: str, stack: ExitStack) -> int:
        fd = directory.new_file(self._directory, name)
        stack.callback(os.close, fd)
        self._files.append(fd)
        return fd

    def commit(self) -> None:
        """Make all of it durable, and let it appear."""
        with directory.os_errors(self.path, "writing to disk"):
            for fd in (*self._files, self._directory):
                os.fsync(fd)
            directory.rename_new(self._parent, self._partial, self._name)
            self._committed = True
            os.fsync(self._parent)

    def _remove(self) -> None:
        if not self._committed:
            shutil.rmtree(self._partial, dir_fd=self._parent)

    def close(self) -> None:
        """Let go of it, and remove it if it was not committed; idempotent."""
        with directory.os_errors(self.path, "discarding"):
            self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
