"""A stored VM that is there: opened, locked, checked against its own map, and given away.

Memory files are mapped for sending only. Whoever cuts such a file while it is mapped makes its
pages unreadable, so nothing in Python ever reads the mapping: system calls answer EFAULT, and
checksums use pread.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from aiomigrate.memory import directory
from aiomigrate.memory.blocks import BlockSource, FilePart, allocated_bytes
from aiomigrate.memory.checksum import checksum, checksum_of
from aiomigrate.memory.directory import (
    CONFIG_NAME,
    MANIFEST_NAME,
    MEMORY_PREFIX,
    STATE_NAME,
    memory_name,
)
from aiomigrate.memory.errors import ConfigError, FramesError, ManifestError, StoredVmError
from aiomigrate.memory.frames import FrameSource
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.manifest import Given, Manifest, Outcome, StoredFile
from aiomigrate.memory.map import Mapping, VmConfig

__all__ = ["StoredMemory", "StoredVm"]


@dataclass(frozen=True, slots=True)
class StoredMemory:
    """The memory of one mapping."""

    name: str
    """Of its file."""
    source: BlockSource
    checksum: str | None
    """As the manifest has it; None where there is none."""

    def compare(self, path: str, actual: str) -> None:
        """StoredVmError, of the stored VM at `path`, if this is not its checksum."""
        if self.checksum not in (None, actual):
            raise StoredVmError(
                path, f"{self.name} is damaged: {actual} instead of {self.checksum}"
            )


class StoredVm:
    """A stored VM, held by this process until `close`. Every failure is a StoredVmError."""

    path: str
    """Its directory, absolute."""
    config: VmConfig
    """The Config that it came with."""
    state: bytes
    """The State payload, byte for byte."""
    manifest: Manifest
    """Of a directory without one (Cloud Hypervisor's offload daemon's): paused, no history."""

    def __init__(self, path: str, fd: int) -> None:
        """Used by `open`, which fills in the rest: `fd` is a descriptor of the directory `path`,
        and this object's from here on.
        """
        self.path = path
        self._directory = fd
        self._files: dict[str, int] = {}
        self._sources: dict[str, BlockSource] = {}
        self.compressed = False
        """Whether its memory is in frames, which only this program reads."""
        self._giving = False

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> StoredVm:
        """Lock and read the stored VM at `path`; refuses one in use, whose files do not fit its
        map, or whose Config or State is damaged. Memory is compared by `verify`, or by whoever
        reads it.
        """
        where = os.path.abspath(os.fspath(path))
        with directory.os_errors(where, "opening"):
            fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stored = cls(where, fd)
        try:
            stored._load()
        except BaseException:
            stored.close()
            raise
        return stored

    def _load(self) -> None:
        with directory.os_errors(self.path, "locking"):
            directory.lock(self._directory, self.path)
        try:
            self.config = VmConfig.parse(self._document(CONFIG_NAME))
            self.state = self._document(STATE_NAME)
            self.manifest = self._read_manifest()
        except (ConfigError, ManifestError) as error:
            raise StoredVmError(self.path, str(error)) from error
        for mapping in self.config.memory_map.mappings:
            self._open_memory(mapping)
        with directory.os_errors(self.path, "listing its files"):
            names = sorted(os.listdir(self._directory))
        for name in names:
            if name.startswith(MEMORY_PREFIX) and name not in self._files:
                raise StoredVmError(self.path, f"{name} belongs to no slot of its Config")
        for file in self.manifest.files:
            if file.name not in self._files:
                raise StoredVmError(self.path, f"its manifest names an unknown file {file.name!r}")
            self._expect_size(file.name, self._files[file.name], file.size)
            if file.name in (CONFIG_NAME, STATE_NAME):
                self._compare(file)

    def _open_memory(self, mapping: Mapping) -> None:
        packed = self.manifest.file(memory_name(mapping.slot, compressed=True))
        if packed is None:
            name = memory_name(mapping.slot)
            fd = self._open_file(name)
            self._expect_size(name, fd, mapping.size)
            self._sources[name] = FilePart(fd, 0, mapping.size)
            return
        fd = self._open_file(packed.name)
        self._expect_size(packed.name, fd, packed.size)
        if packed.memory_size != mapping.size:
            why = f"{packed.name} holds {packed.memory_size} bytes of memory, not {mapping.size}"
            raise StoredVmError(self.path, why)
        self.compressed = True
        try:
            with directory.os_errors(self.path, f"reading {packed.name}"):
                self._sources[packed.name] = FrameSource(fd, mapping.size)
        except FramesError as error:
            raise StoredVmError(self.path, f"{packed.name}: {error.why}") from error

    def _read_manifest(self) -> Manifest:
        try:
            os.stat(MANIFEST_NAME, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            names = [memory_name(mapping.slot) for mapping in self.config.memory_map.mappings]
            sizes = [mapping.size for mapping in self.config.memory_map.mappings]
            files = [
                StoredFile(CONFIG_NAME, len(self.config.raw), None),
                StoredFile(STATE_NAME, len(self.state), None),
                *(StoredFile(name, size, None) for name, size in zip(names, sizes, strict=True)),
            ]
            return Manifest(running=False, files=tuple(files))
        return Manifest.decode(self._document(MANIFEST_NAME))

    def _open_file(self, name: str) -> int:
        fd = directory.open_file(self._directory, self.path, name)
        self._files[name] = fd
        return fd

    def _document(self, name: str) -> bytes:
        return directory.read_document(self._open_file(name), self.path, name)

    def _expect_size(self, name: str, fd: int, size: int) -> None:
        actual = os.fstat(fd).st_size
        if actual != size:
            raise StoredVmError(self.path, f"{name} has {actual} bytes instead of {size}")

    def memory(self, mapping: Mapping) -> StoredMemory:
        """A mapping's memory, to be read block by block as long as the VM is open."""
        packed = memory_name(mapping.slot, compressed=True)
        name = packed if packed in self._sources else memory_name(mapping.slot)
        file = self.manifest.file(name)
        return StoredMemory(name, self._sources[name], None if file is None else file.checksum)

    def allocated_bytes(self) -> int:
        """What its memory takes on disk, compressed or not. OSError."""
        return sum(allocated_bytes(self._files[name]) for name in self._sources)

    def map_memory(self) -> GuestMemory:
        """Map the memory files, read-only; the memory is the caller's to close. StoredVmError if
        they are compressed.
        """
        if self.compressed:
            raise StoredVmError(
                self.path, "its memory is compressed: it can be restored or converted, not sent"
            )
        memory_map = self.config.memory_map
        fds = {
            mapping.slot: self._files[memory_name(mapping.slot)] for mapping in memory_map.mappings
        }
        for mapping in memory_map.mappings:
            self._expect_size(memory_name(mapping.slot), fds[mapping.slot], mapping.size)
        with directory.os_errors(self.path, "mapping the memory"):
            return GuestMemory.over_files(
                memory_map, fds, writable=False, file_zones=self.config.file_zones
            )

    def refusal(self) -> str | None:
        """Why the VM must not be sent from here without force, as half a sentence, or None."""
        return self.manifest.refusal()

    def record_given(self, destination: str, outcome: Outcome, running: bool) -> None:
        """Write into the history, durably, that the VM was (or may have been) given to
        `destination`, which was to keep it paused or have it `running`.

        Meant to be called with the `outcome` "unknown" before the commit point and again with what
        came of it, "done" or "failed", which takes the place of this object's own "unknown". No
        other entry is ever replaced.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        kept = self.manifest.history[:-1] if self._giving else self.manifest.history
        entry = Given(now, destination, outcome, running)
        manifest = replace(self.manifest, history=(*kept, entry))
        with directory.os_errors(self.path, "writing the manifest"):
            directory.replace_manifest(self._directory, manifest)
        self.manifest = manifest
        self._giving = outcome == "unknown"

    def verify(self) -> tuple[str, ...]:
        """Compare files with their checksums: the names of those compared, or StoredVmError."""
        return tuple(file.name for file in self.manifest.files if self._compare(file))

    def _compare(self, file: StoredFile) -> bool:
        """Whether there is a checksum, which is that of the file. StoredVmError."""
        if file.checksum is None:
            return False
        source = self._sources.get(file.name)
        try:
            with directory.os_errors(self.path, f"reading {file.name}"):
                if source is None:
                    actual = checksum(self._files[file.name], file.size)
                else:
                    actual = checksum_of(source)
        except FramesError as error:
            raise StoredVmError(self.path, f"{file.name}: {error.why}") from error
        if actual != file.checksum:
            raise StoredVmError(
                self.path, f"{file.name} is damaged: {actual} instead of {file.checksum}"
            )
        return True

    def close(self) -> None:
        """Let go of it; idempotent. Memory that was mapped stays mapped."""
        fds = [*self._files.values(), self._directory]
        self._files.clear()
        self._directory = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        if self._directory >= 0:
            warnings.warn(f"stored VM {self.path} was not closed", ResourceWarning, stacklevel=1)
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
