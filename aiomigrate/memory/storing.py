"""Store a VM in a directory: all of it or nothing.

The files are made in a directory beside the final path (`memory.new_directory`). `sync` makes the
data and the names durable; it may be called early and often, so that little is left when it counts.
`commit` then writes the manifest into the file that `sync` has made for it and lets the directory
appear: two fsyncs, in the downtime of a migration. Whatever happens before leaves only a
`.partial-` directory, and `discard` removes that, or the committed directory for as long as it is
not confirmed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

from aiomigrate.memory import directory
from aiomigrate.memory.blocks import BlockTarget, FilePart
from aiomigrate.memory.checksum import checksum
from aiomigrate.memory.directory import (
    CONFIG_NAME,
    MANIFEST_NAME,
    MEMORY_PREFIX,
    STATE_NAME,
    memory_name,
)
from aiomigrate.memory.errors import FramesError, StoredVmError
from aiomigrate.memory.frames import FrameTarget
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.manifest import Manifest, StoredFile, Taken
from aiomigrate.memory.map import Mapping, VmConfig
from aiomigrate.memory.new_directory import NewDirectory

__all__ = ["StoredVmWriter"]

# Arbitrary: enough for a disk to have several writes to choose from.
_SYNC_THREADS = 8


class StoredVmWriter:
    """A stored VM in the making.

    Order: `configure`, `write_state`, `sync`, `commit`, then `confirm` and `add_checksums`, then
    `close`; `discard` at any time before `confirm`. Where memory does not come through a mapping
    `prepare` takes the place of `configure`: its blocks are written to each `target`, by any number
    of threads, and then `finish` names their checksum. All else is synchronous and for one thread
    at a time. Every failure is a StoredVmError; an OSError behind it is its cause.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Make the directory beside `path`, of which nothing may exist yet but its parent."""
        self._place = NewDirectory(path)
        self.path = self._place.path
        self._files = self._place.files
        self._sizes: dict[str, int] = {}
        self._memory_sizes: dict[str, int] = {}
        self._checksums: dict[str, str] = {}
        self._targets: dict[int, FilePart | FrameTarget] = {}
        self._unsynced: set[str] = set()
        self._new_names = False
        self._manifest: Manifest | None = None
        self._confirmed = False
        self._broken = False

    def belong_to(self, migration: str) -> None:
        """Name what is made after the migration with this id, before `commit`."""
        self._place.belong_to(migration)

    def require_space(self, needed: int) -> None:
        """Refuse what may take more (bytes) than is free for this user: StoredVmError with both."""
        self._place.require_space(needed)

    def prepare(self, config: VmConfig, *, compressed: bool = False) -> None:
        """Store Config, and make the memory files: sparse, or, if `compressed`, for frames.

        The files of what comes later are made, too: a `sync` now takes their names out of the
        downtime.
        """
        with directory.os_errors(self.path, "storing the Config"):
            self._write(CONFIG_NAME, config.raw)
            self._new_file(STATE_NAME)
            self._new_file(MANIFEST_NAME)
        for mapping in config.memory_map.mappings:
            with directory.os_errors(
                self.path, f"making {mapping.size} bytes of memory for slot {mapping.slot}"
            ):
                name = memory_name(mapping.slot, compressed=compressed)
                fd = self._new_file(name)
                if compressed:
                    self._targets[mapping.slot] = self._frame_target(fd, mapping.size)
                else:
                    os.ftruncate(fd, mapping.size)
                    self._targets[mapping.slot] = FilePart(fd, 0, mapping.size)
                self._sizes[name] = mapping.size

    def _frame_target(self, fd: int, size: int) -> FrameTarget:
        try:
            return FrameTarget(fd, size)
        except FramesError as error:
            raise StoredVmError(self.path, error.why) from error

    def target(self, mapping: Mapping) -> BlockTarget:
        """Where blocks of a mapping go, after `prepare`; `finish` then ends it."""
        return self._targets[mapping.slot]

    def finish(self, mapping: Mapping, checksum: str) -> None:
        """All of a mapping's blocks are here, and this is their checksum."""
        target = self._targets[mapping.slot]
        name = memory_name(mapping.slot, compressed=isinstance(target, FrameTarget))
        if isinstance(target, FrameTarget):
            with directory.os_errors(self.path, f"ending {name}"):
                self._sizes[name] = target.finish()
            self._memory_sizes[name] = mapping.size
        self._checksums[name] = checksum

    def configure(self, config: VmConfig) -> GuestMemory:
        """`prepare`, and map the memory files, writable; the memory is the caller's to close. It is
        `staged`: what is zero takes no space.
        """
        self.prepare(config)
        memory_map = config.memory_map
        fds = {
            mapping.slot: self._files[memory_name(mapping.slot)] for mapping in memory_map.mappings
        }
        with directory.os_errors(self.path, "mapping the memory"):
            return GuestMemory.over_files(
                memory_map, fds, writable=True, file_zones=config.file_zones, staged=True
            )

    def write_state(self, state: bytes) -> None:
        """Store State."""
        with directory.os_errors(self.path, "storing the State"):
            self._write(STATE_NAME, state)

    def _new_file(self, name: str) -> int:
        self._new_names = True
        return self._place.new_file(name)

    def _write(self, name: str, data: bytes) -> None:
        fd = self._files[name] if name in self._files else self._new_file(name)
        directory.write_all(fd, data)
        self._unsynced.add(name)
        self._sizes[name] = len(data)
        self._checksums[name] = checksum(fd, len(data))

    def sync(self) -> None:
        """Make all that was stored so far durable: each file in parallel, then the names.

        Memory is synced at each call, since it may have been written through its mapping.
        """
        self._writing()
        with directory.os_errors(self.path, "writing to disk"):
            memory = {name for name in self._files if name.startswith(MEMORY_PREFIX)}
            _each(os.fsync, [self._files[name] for name in self._unsynced | memory])
            self._unsynced.clear()
            if self._new_names:
                os.fsync(self._place.fd)
                self._new_names = False
        self._broken = False

    def start_writing(self) -> None:
        """Have the kernel begin to write memory that has come, so that less is left for `sync`.

        Neither waits for the disk nor makes anything durable: a commit of the file system's journal
        while memory comes would hold up every allocation.
        """
        for name, fd in self._files.items():
            if name.startswith(MEMORY_PREFIX):
                directory.start_writing(fd)

    def _writing(self) -> None:
        """A failure to write is told once by the kernel, and the next fsync succeeds: so it is
        final.
        """
        if self._broken:
            raise StoredVmError(self.path, "an earlier write to disk failed")
        self._broken = True

    def commit(
        self, running: bool, source: str, migration: str | None = None, *, confirmed: bool = False
    ) -> None:
        """Make the VM appear at its path, durably, as taken from `source`; `confirmed` where there
        is nobody who would have to read an answer.

        Needs Config and State, and a `sync` after the last write to memory, which leaves no trace
        here (a file that no `sync` has seen is synced first). After an error nothing is certain but
        that `discard` removes it.
        """
        if CONFIG_NAME not in self._sizes or STATE_NAME not in self._sizes:
            raise StoredVmError(self.path, "Config or State never came")
        if self._unsynced or self._new_names:
            self.sync()
        now = datetime.now(UTC).replace(microsecond=0)
        files = tuple(
            StoredFile(name, size, self._checksums.get(name), self._memory_sizes.get(name))
            for name, size in sorted(self._sizes.items())
        )
        manifest = Manifest(running, files, (Taken(now, source, confirmed, migration),))
        self._writing()
        with directory.os_errors(self.path, "writing the manifest"):
            directory.write_all(self._files[MANIFEST_NAME], manifest.encode())
            os.fsync(self._files[MANIFEST_NAME])
        self._broken = False
        self._place.appear()
        self._manifest = manifest

    def confirm(self) -> None:
        """Note that the source has read our answer to Complete: the VM is ours.

        No `discard` after this.
        """
        manifest = self._committed()
        history = tuple(
            replace(entry, confirmed=True) if isinstance(entry, Taken) else entry
            for entry in manifest.history
        )
        self._confirmed = True
        self._replace(replace(manifest, history=history))

    def add_checksums(self) -> None:
        """Read once all files whose checksums are not known, and note them in the manifest."""
        manifest = self._committed()
        with directory.os_errors(self.path, "computing checksums"):
            found = {
                name: checksum(self._files[name], size)
                for name, size in self._sizes.items()
                if name not in self._checksums
            }
        self._replace(manifest.with_checksums(found))

    def _committed(self) -> Manifest:
        if self._manifest is None:
            raise StoredVmError(self.path, "it was not committed")
        return self._manifest

    def _replace(self, manifest: Manifest) -> None:
        with directory.os_errors(self.path, "writing the manifest"):
            directory.replace_manifest(self._place.fd, manifest)
        self._manifest = manifest

    def discard(self) -> None:
        """Remove everything, committed or not; idempotent. StoredVmError once confirmed, or if
        something stays.
        """
        if self._confirmed:
            raise StoredVmError(self.path, "it is confirmed and cannot be discarded")
        self._manifest = None
        self._place.discard()

    def close(self) -> None:
        """Let go of a committed VM, or discard one that is not; idempotent."""
        if self._manifest is None:
            self.discard()
        self._place.close()


def _each(call: Callable[[int], None], fds: Iterable[int]) -> None:
    """Call for each descriptor in threads; the first error is raised after all have ended."""
    with ThreadPoolExecutor(_SYNC_THREADS, "aiomigrate-sync") as pool:
        for _ in pool.map(call, fds):
            pass
