"""Snapshots and their restoring, as migrations that give nothing away.

A snapshot is a stored VM (`aiomigrate.StoredDestination`): durable, with checksums, or not there at
all. It is made by a migration of the paused VM over a unix socket of our own, and restored by one
back; `_Copied` keeps the source from giving up, or noting, anything. So whatever can be migrated
can be kept, and a snapshot can be restored more than once, as Cloud Hypervisor's can.
"""

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiomigrate import (
    CleanLog,
    Destination,
    GuestMemory,
    Reception,
    SnapshotKind,
    Source,
    StoredDestination,
    StoredSource,
    receive,
    send,
)
from aiomigrate.api.vms import Refusal, Vm
from aiomigrate.conversion import kind_of
from aiomigrate.executor import JobExecutor

__all__ = ["restore", "snapshot"]


class _Copied:
    """The paused VM of `source`, which stays where it is."""

    def __init__(self, source: Source, *, resumes: bool) -> None:
        self._source = source
        self.resumes = resumes
        self.dirty = CleanLog()

    @property
    def memory(self) -> GuestMemory:
        return self._source.memory

    async def config(self) -> bytes:
        return await self._source.config()

    async def pause(self) -> None:
        """It is paused."""

    async def capture(self) -> bytes:
        return await self._source.capture()

    async def hand_over(self, destination: str) -> None:
        """Nothing is given up."""

    async def take_back(self, reason: BaseException) -> None:
        """Nothing was given up."""

    async def resume(self) -> None:
        """It stays paused."""

    async def release(self) -> None:
        """It stays here."""

    async def lost(self, reason: BaseException) -> None:
        """It stays here."""


async def snapshot(vm: Vm, directory: str) -> None:
    """Keep the paused `vm` in `directory`, which exists, is empty, and becomes a stored VM.

    Refusal for another directory; MigrationError or StoredVmError if it fails: then it is empty
    again.
    """
    with JobExecutor() as jobs:
        await jobs.run(_make_way, directory)
        try:
            async with (
                vm.source() as source,
                StoredDestination(directory) as destination,
            ):
                await _copy(jobs, source, destination, resumes=False)
        except BaseException:
            await jobs.run(_put_back, directory)
            raise


def _make_way(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError as error:
        raise Refusal(
            f"{directory}: a snapshot goes into an empty directory: {error.strerror}"
        ) from error


def _put_back(directory: str) -> None:
    os.makedirs(directory, mode=0o700, exist_ok=True)


async def restore(vm: Vm, directory: str, *, resumes: bool) -> None:
    """Bring the VM that is stored in `directory` into `vm`, and leave it there, too.

    Refusal, UsageError or StoredVmError for a directory that cannot be taken; MigrationError if it
    fails.
    """
    with JobExecutor() as jobs:
        if await jobs.run(kind_of, directory) is SnapshotKind.FILE:
            raise Refusal(
                f"{directory} is a file:// snapshot of Cloud Hypervisor's: make a stored VM of it "
                f"first (aiomigrate convert {directory} DIR)"
            )
        async with (
            StoredSource(directory) as source,
            vm.destination() as destination,
        ):
            await _copy(jobs, source, destination, resumes=resumes)


async def _copy(
    jobs: JobExecutor, source: Source, destination: Destination, *, resumes: bool
) -> None:
    async with _socket(jobs) as path, receive(destination, f"unix:{path}") as reception:
        await _through(reception, _Copied(source, resumes=resumes))


async def _through(reception: Reception, source: Source) -> None:
    async with send(source, str(reception.address)) as migration:
        await migration.result()
    await reception.result()


@asynccontextmanager
async def _socket(jobs: JobExecutor) -> AsyncIterator[str]:
    """A path for a socket that nobody else can reach."""
    directory = await jobs.run(tempfile.mkdtemp)
    try:
        yield os.path.join(directory, "copy.sock")
    finally:
        await jobs.run(os.rmdir, directory)
