"""Stored VMs as ends of a migration: a directory is sent, or a VM is received into one.

Both are context managers: they hold the directory's lock, its files and its mappings.
"""

import asyncio
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from aiomigrate.copying import save_memory
from aiomigrate.embedding import CleanLog
from aiomigrate.errors import GuestNotStarted, UsageError
from aiomigrate.executor import WORKERS, JobExecutor
from aiomigrate.memory.blocks import needed_bytes
from aiomigrate.memory.errors import StoredVmError
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.manifest import Outcome
from aiomigrate.memory.map import VmConfig
from aiomigrate.memory.stored import StoredVm
from aiomigrate.memory.storing import StoredVmWriter
from aiomigrate.tasks import outlive

__all__ = ["StoredDestination", "StoredSource"]

_FIRST_FLUSH_S = 0.005
_FLUSH_S = 0.5
_FLUSH_GROWTH = 1.25
"""Between two hints to the disk to begin writing what came: the rest is left for the downtime. They
begin close together, for a migration that is over in 100 ms (a v52 sender's guest of 64 MiB had
61 ms of downtime with hints 0.5 s apart), and grow apart: a long one keeps the disk busy anyway."""


class StoredSource:
    """The stored VM at `path`, to be sent. `resume`: the destination is to run it; else it keeps it
    paused.

    Entering the context raises StoredVmError for a directory that is no stored VM, damaged or in
    use, and UsageError for one that was given away, or whose taking was not confirmed, without
    `force`: a VM must not run twice.
    """

    memory: GuestMemory
    """Its memory, read-only, once the context has been entered."""

    def __init__(
        self, path: str | os.PathLike[str], *, resume: bool = False, force: bool = False
    ) -> None:
        self.resumes = resume
        """Whether the destination is to run it."""
        self.dirty = CleanLog()
        """Nothing is written to it."""
        self._path = path
        self._force = force
        self._executor = JobExecutor()
        self._vm: StoredVm | None = None
        self._given_to = ""
        """The destination that has, or may have, the VM."""
        self._refusals = 0

    async def __aenter__(self) -> Self:
        try:
            await self._executor.run(self._open)
        except BaseException:
            with self._executor:
                if self._vm is not None:  # opened, and cancelled meanwhile
                    await outlive(self._close(self._vm))
            raise
        return self

    def _open(self) -> None:
        vm = StoredVm.open(self._path)
        try:
            refusal = vm.refusal()
            if refusal is not None and not self._force:
                raise UsageError(f"{vm.path}: {refusal}; --force sends it all the same")
            self.memory = self._map(vm)
        except BaseException:
            vm.close()
            raise
        self._vm = vm

    def _map(self, vm: StoredVm) -> GuestMemory:
        return vm.map_memory()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._executor:
            await outlive(self._close(self.vm))

    async def _close(self, vm: StoredVm) -> None:
        await self.memory.aclose()
        await self._executor.run(vm.close)

    @property
    def vm(self) -> StoredVm:
        """The stored VM itself; RuntimeError outside the context."""
        if self._vm is None:
            raise RuntimeError("a StoredSource is used as a context manager: async with")
        return self._vm

    @property
    def vm_name(self) -> str:
        """Its path, for the journal."""
        return self.vm.path

    @property
    def vm_is_stored(self) -> bool:
        """It is."""
        return True

    def identify(self, migration: str) -> None:
        """Its history names the destination, and that is enough."""

    async def config(self) -> bytes:
        """The Config that was stored, byte for byte. UsageError if it was given away meanwhile."""
        self._require_here()
        return self.vm.config.raw

    async def pause(self) -> None:
        """A stored VM does not run."""

    async def capture(self) -> bytes:
        """The State that was stored, byte for byte."""
        return self.vm.state

    async def hand_over(self, destination: str) -> None:
        """Note on disk, before the commit point, that the VM may be given away."""
        try:
            self._require_here()
        except UsageError:
            self._refusals += 1  # the engine will take back what this attempt never had
            raise
        self._given_to = destination
        await self._record("unknown")

    async def take_back(self, reason: BaseException) -> None:
        """Note that it was not."""
        if self._refusals:
            self._refusals -= 1
            return
        await self._record("failed")
        self._given_to = ""

    async def resume(self) -> None:
        """A stored VM does not run."""

    async def release(self) -> None:
        """Note that the destination has the VM."""
        await self._record("done")

    async def lost(self, reason: BaseException) -> None:
        """The note that the outcome is unknown stands already."""

    def _require_here(self) -> None:
        if self._given_to:
            raise UsageError(f"{self.vm.path}: it was, or is being, given to {self._given_to}")

    async def _record(self, outcome: Outcome) -> None:
        await self._executor.run(self.vm.record_given, self._given_to, outcome, self.resumes)


class StoredDestination:
    """A directory that a VM is received into: all of it, durable before the source is told, or
    nothing.

    Memory that the source gives by descriptor is copied when the State has come, by `workers`
    threads; if `compressed` into zstd frames, which Cloud Hypervisor's offload daemon cannot read.

    Entering the context removes what a process that was killed has left of making `path`, and
    raises StoredVmError if that exists or cannot be made. `when_it_comes` it is made only when a
    source sends its Config: then that is refused if it cannot be made, and nothing is left of one
    who waits and is killed. Leaving the context adds checksums to what was received.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        compressed: bool = False,
        workers: int = WORKERS,
        when_it_comes: bool = False,
    ) -> None:
        self._path = os.fspath(path)
        self._compressed = compressed
        self._at_once = not when_it_comes
        self._executor = JobExecutor(workers)
        self._config: VmConfig | None = None
        self._fds: dict[int, int] = {}
        """The source's memory, by slot, until it is copied."""
        self.expected_bytes = 0
        """What is allocated of memory that the source gave by descriptor, when its Config came."""
        self.copied_bytes = 0
        """How much of such memory has been looked at so far."""
        self._opened: StoredVmWriter | None = None
        self._memory: GuestMemory | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._source = ""
        self._migration: str | None = None
        self.taken = False
        """Whether the VM is in the directory."""

    async def __aenter__(self) -> Self:
        try:
            await self._executor.run(self._enter)
        except BaseException:
            with self._executor:
                await outlive(self._close())  # it may be made, and cancelled meanwhile
            raise
        return self

    def _enter(self) -> None:
        self._path = os.path.abspath(self._path)
        if self._at_once:
            self._opened = StoredVmWriter(self._path)
        elif os.path.lexists(self._path):
            raise StoredVmError(self._path, "the path exists already")

    def _open(self) -> None:
        """A VM has come: what is made of it is named after its migration."""
        if not self._at_once:
            self._opened = StoredVmWriter(self._path)
        if self._migration is not None:
            self._writer.belong_to(self._migration)

    @property
    def _writer(self) -> StoredVmWriter:
        if self._opened is None:
            raise RuntimeError("a StoredDestination is used as a context manager: async with")
        return self._opened

    @property
    def vm_name(self) -> str:
        """Its path, for the journal."""
        return self._path

    @property
    def vm_is_stored(self) -> bool:
        """It is."""
        return True

    def identify(self, migration: str) -> None:
        """Name the migration in the history, and in what a crash leaves: so that there is no doubt
        whose it was.
        """
        self._migration = migration

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._executor:
            try:
                if self.taken:
                    await self._executor.run(self._writer.add_checksums)
            finally:
                await outlive(self._close())

    async def _close(self) -> None:
        await self._let_go()
        if self._opened is not None:
            await self._executor.run(self._opened.close)

    async def configure(self, config: VmConfig, source: str) -> GuestMemory:
        """Make sparse memory files and map them."""
        if self._compressed:
            raise StoredVmError(
                self._path, "memory is compressed only if it is given by descriptor"
            )
        self._source = source
        memory = await self._executor.run(self._map, config)
        self._flushing = asyncio.create_task(self._flush())
        return memory

    def _map(self, config: VmConfig) -> GuestMemory:
        self._open()
        # Kept by the job itself: whoever waits for it may be cancelled, and then `discard` unmaps.
        self._memory = self._writer.configure(config)
        return self._memory

    async def adopt(self, config: VmConfig, source: str, fds: Mapping[int, int]) -> None:
        """Make memory files for what the source's memory holds. StoredVmError without room for it;
        how well it will be compressed is not known, so that only a full disk tells then.
        """
        self._source, self._config = source, config
        await self._executor.run(self._adopt, config, fds)

    def _adopt(self, config: VmConfig, fds: Mapping[int, int]) -> None:
        for slot, fd in fds.items():
            self._fds[slot] = os.dup(fd)
        self._open()
        self.expected_bytes = needed_bytes(config.memory_map, self._fds)
        if not self._compressed:
            self._writer.require_space(self.expected_bytes)
        self._writer.prepare(config, compressed=self._compressed)
        self._writer.sync()  # names, out of the downtime

    def _count(self, copied: int) -> None:
        self.copied_bytes += copied

    async def _flush(self) -> None:
        """Take as much as can be out of the downtime: names now, memory while it comes."""
        await self._executor.run(self._writer.sync)
        pause = _FIRST_FLUSH_S
        while True:
            await asyncio.sleep(pause)
            await self._executor.run(self._writer.start_writing)
            pause = min(pause * _FLUSH_GROWTH, _FLUSH_S)

    async def restore(self, state: bytes) -> None:
        """Store the State, and the memory if it is the source's still; make everything but the
        manifest durable.
        """
        await self._stop_flushing()
        await self._executor.run(self._writer.write_state, state)
        if self._config is not None:
            await save_memory(self._writer, self._config, self._fds, self._executor, self._count)
            await self._executor.run(self._close_descriptors)
        await self._executor.run(self._writer.sync)

    async def resume(self) -> None:
        """Make the directory appear, as of a VM that ran."""
        await self._commit(running=True)

    async def keep_paused(self) -> None:
        """Make the directory appear, as of a VM that was paused."""
        await self._commit(running=False)

    async def _commit(self, *, running: bool) -> None:
        try:
            await self._executor.run(self._writer.commit, running, self._source, self._migration)
        except StoredVmError as error:
            raise GuestNotStarted(str(error)) from error
        self.taken = True

    async def confirmed(self) -> None:
        """Note that the source knows that the VM is here."""
        await self._executor.run(self._writer.confirm)

    async def discard(self, reason: BaseException) -> None:
        """Remove everything."""
        await self._let_go()
        if self._opened is not None:
            await self._executor.run(self._opened.discard)
        self.taken = False

    async def _let_go(self) -> None:
        await self._stop_flushing()
        if self._memory is not None:
            await self._memory.aclose()
        await self._executor.run(self._close_descriptors)

    def _close_descriptors(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    async def _stop_flushing(self) -> None:
        """End the background pass; what it met is met again, and raised, by the next `sync`."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait([self._flushing])
            if not self._flushing.cancelled():
                self._flushing.exception()
            self._flushing = None
