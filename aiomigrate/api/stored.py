"""Stored VMs as the VMs of a service: a directory of them.

A stored VM does not run. Its `state` is what its next destination is to make of it: `Running` after
it was received running or was resumed here, `Paused` else. It is named by its directory; the one
that Cloud Hypervisor's own client means, which knows no names, is the one received or restored
last, as long as it is here.
"""

import json
import os
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime

from aiomigrate import SnapshotKind, StoredDestination, StoredSource, convert
from aiomigrate.api.vms import Refusal, VmInfo, VmState
from aiomigrate.conversion import kind_of
from aiomigrate.executor import JobExecutor
from aiomigrate.loaded import LoadedSource

__all__ = ["NAME", "StoredPlace", "names_in"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""A name is one component of a path, and no hidden file."""


def names_in(directory: str) -> list[str]:
    """What may be stored VMs in a directory, by name. OSError if that cannot be read; waits for the
    disk.
    """
    with os.scandir(directory) as entries:
        return sorted(
            entry.name
            for entry in entries
            if NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        )


class StoredPlace:
    """A place for a stored VM in `directory`: the one called `name`, or, without a name, whatever
    is received or restored.
    """

    def __init__(self, directory: str, name: str | None = None) -> None:
        self._directory = directory
        self._named = name is not None
        self._path = None if name is None else os.path.join(self._directory, name)
        self._state: VmState | None = None
        """None: as it was taken."""

    @property
    def path(self) -> str | None:
        """The VM's directory; None if there is none, and it has no name."""
        return self._path

    @property
    def as_found(self) -> bool:
        """Whether its directory says all there is to know of it."""
        return self._named and self._state is None

    async def info(self) -> VmInfo | None:
        """What is there; None as well once it was given away, or if it may run elsewhere.

        StoredVmError if it is damaged, or in use by another process.
        """
        with JobExecutor() as jobs:
            if self._path is None or not await jobs.run(os.path.isdir, self._path):
                return None
        async with StoredSource(self._path, force=True) as source:
            vm = source.vm
            if vm.refusal() is not None:
                return None
            return VmInfo(
                config=json.loads(vm.config.raw).get("vm_config") or {},
                state=self._state_of(running=vm.manifest.running),
                memory_actual_size=vm.config.memory_map.total_bytes,
            )

    def _state_of(self, *, running: bool) -> VmState:
        taken = VmState.RUNNING if running else VmState.PAUSED
        return self._state or taken

    def _new_path(self) -> str:
        """A name that no other VM of the directory has."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        return os.path.join(self._directory, f"vm-{now}-{secrets.token_hex(3)}")

    async def pause(self) -> None:
        """Its destination is to keep it paused."""
        self._state = VmState.PAUSED

    async def resume(self) -> None:
        """Its destination is to run it."""
        self._state = VmState.RUNNING

    async def adopt(self, path: str, state: VmState) -> None:
        """Have the stored VM at `path` here: that one, not a copy. It must not run twice.

        A `file://` snapshot of Cloud Hypervisor stays as it is, and a stored VM is made of it.
        StoredVmError or UsageError for a directory that is neither, or was given away.
        """
        if self._named:
            raise Refusal(f"{self._path} is restored as what it is, by its name")
        with JobExecutor() as jobs:
            kind = await jobs.run(kind_of, path)
        if kind is SnapshotKind.FILE:
            # First, since a cancellation can come when it has been made: it is here then. What was
            # not made is no VM (`info`).
            self._path, self._state = self._new_path(), state
            await convert(path, self._path)
            return
        async with StoredSource(path) as source:
            self._path, self._state = source.vm.path, state

    def source(self) -> AbstractAsyncContextManager[StoredSource]:
        """The VM, to be sent. UsageError if it was given away, or may run elsewhere."""
        return self._source(StoredSource)

    def loaded_source(self) -> AbstractAsyncContextManager[StoredSource]:
        """The same, in memory that can be given by descriptor."""
        return self._source(LoadedSource)

    @asynccontextmanager
    async def _source(self, kind: type[StoredSource]) -> AsyncIterator[StoredSource]:
        if self._path is None:
            raise Refusal("There is no VM")
        async with kind(self._path) as source:
            state = self._state_of(running=source.vm.manifest.running)
            source.resumes = state is VmState.RUNNING
            yield source

    @asynccontextmanager
    async def destination(self) -> AsyncIterator[StoredDestination]:
        """A directory that a VM is received into; without a name, one that nobody has."""
        path = (self._path if self._named else None) or self._new_path()
        destination = StoredDestination(path)
        try:
            async with destination:
                yield destination
        finally:
            if destination.taken:
                self._path, self._state = path, None
