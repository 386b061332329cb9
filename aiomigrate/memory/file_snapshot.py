"""Cloud Hypervisor's own snapshot directory (`file://`), read as a stored VM.

`config.json` is the VmConfig, `state.json` the State, and `memory-ranges` the memory: the ranges of
`memory_ranges` in the State's memory-manager node, one after the other (reference.md, section 3).
Memory that a snapshot leaves in a file of the host is refused by name: it is not here. Every
failure is a StoredVmError.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Self

from aiomigrate.memory import directory
from aiomigrate.memory.blocks import BlockSource, FilePart, allocated_bytes
from aiomigrate.memory.directory import STATE_NAME
from aiomigrate.memory.errors import ConfigError, StoredVmError
from aiomigrate.memory.gathered import GatheredSource, Piece
from aiomigrate.memory.map import Mapping, VmConfig
from aiomigrate.memory.snapshot_text import SNAPSHOT_CONFIG_NAME, join_config, read_state

__all__ = ["MEMORY_NAME", "FileSnapshot"]

MEMORY_NAME = "memory-ranges"


class FileSnapshot:
    """A `file://` snapshot, open until `close`; a context manager."""

    config: VmConfig
    """As the migration protocol has it, with `config.json` in it byte for byte."""
    state: bytes
    """Byte for byte."""
    allocated_bytes: int
    """What its memory takes on disk; zeros that were written out count."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and check it."""
        self.path = os.path.abspath(os.fspath(path))
        with ExitStack() as stack:
            with directory.os_errors(self.path, "opening"):
                fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            vm_config = self._document(fd, stack, SNAPSHOT_CONFIG_NAME)
            self.state = self._document(fd, stack, STATE_NAME)
            try:
                found = read_state(self.state)
                self.config = VmConfig.parse(join_config(vm_config, found))
            except ConfigError as error:
                raise StoredVmError(self.path, error.why) from error
            self._pieces = self._lay_out(fd, stack, found.ranges)
            self._open = stack.pop_all()

    def _document(self, fd: int, stack: ExitStack, name: str) -> bytes:
        opened = directory.open_file(fd, self.path, name)
        stack.callback(os.close, opened)
        return directory.read_document(opened, self.path, name)

    def _lay_out(
        self, fd: int, stack: ExitStack, ranges: list[tuple[int, int]]
    ) -> dict[int, list[Piece]]:
        """The pieces of each slot's memory. Cloud Hypervisor makes no file for an empty list."""
        total = sum(length for _, length in ranges)
        self.allocated_bytes = 0
        pieces: dict[int, list[Piece]] = {m.slot: [] for m in self.config.memory_map.mappings}
        if ranges:
            opened = directory.open_file(fd, self.path, MEMORY_NAME)
            stack.callback(os.close, opened)
            size = os.fstat(opened).st_size
            if size != total:
                why = f"{MEMORY_NAME} has {size} bytes instead of {total}"
                raise StoredVmError(self.path, why)
            memory = FilePart(opened, 0, total)
            self.allocated_bytes = allocated_bytes(opened)
            at = 0
            for gpa, length in ranges:
                mapping = self._mapping_of(gpa, length)
                pieces[mapping.slot].append(Piece(gpa - mapping.gpa, length, memory, at))
                at += length
        for mapping in self.config.memory_map.mappings:
            self._require_whole(mapping, pieces[mapping.slot])
        return pieces

    def _mapping_of(self, gpa: int, length: int) -> Mapping:
        for mapping in self.config.memory_map.mappings:
            if mapping.gpa <= gpa and gpa + length - 1 <= mapping.last:
                return mapping
        raise StoredVmError(
            self.path, f"its range at {gpa:#x} of {length} bytes is not in one mapping"
        )

    def _require_whole(self, mapping: Mapping, pieces: list[Piece]) -> None:
        end = 0
        for piece in sorted(pieces, key=lambda piece: piece.start):
            if piece.start < end:
                raise StoredVmError(self.path, f"its ranges in slot {mapping.slot} overlap")
            # Blocks of a virtio-mem region that are not plugged hold nothing.
            if piece.start > end and not mapping.virtio_mem:
                break
            end = piece.start + piece.length
        if end < mapping.size and not mapping.virtio_mem:
            why = (
                f"memory of slot {mapping.slot} (zone {mapping.zone_id}) from "
                f"{mapping.gpa + end:#x} on is not in {MEMORY_NAME}"
            )
            if mapping.zone_id in self.config.file_zones:
                why += ": it is in the zone's own file on the host, which a snapshot leaves there"
            raise StoredVmError(self.path, why)

    def memory(self, mapping: Mapping) -> BlockSource:
        """A mapping's memory, as long as the snapshot is open. Looks for its holes: OSError."""
        return GatheredSource(mapping.size, self._pieces[mapping.slot])

    def close(self) -> None:
        """Let go of it; idempotent."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
