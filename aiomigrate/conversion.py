"""Conversion between Cloud Hypervisor's own snapshot directory (`file://`) and a stored VM.

What SRC is, is told by what it holds. DST becomes the other, whole and durable or not at all.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from functools import partial
from typing import Protocol, TypeVar

from aiomigrate.copying import copy_blocks
from aiomigrate.errors import UsageError
from aiomigrate.executor import JobExecutor
from aiomigrate.memory.blocks import Block
from aiomigrate.memory.directory import CONFIG_NAME, os_errors
from aiomigrate.memory.errors import FramesError, StoredVmError
from aiomigrate.memory.file_export import FileSnapshotWriter, export
from aiomigrate.memory.file_snapshot import FileSnapshot
from aiomigrate.memory.snapshot_text import SNAPSHOT_CONFIG_NAME
from aiomigrate.memory.stored import StoredVm
from aiomigrate.memory.storing import StoredVmWriter
from aiomigrate.tasks import outlive

__all__ = ["SnapshotKind", "convert", "kind_of"]


class _Held(Protocol):
    def close(self) -> None: ...


H = TypeVar("H", bound=_Held)


class SnapshotKind(StrEnum):
    """What a directory holds a VM as."""

    STORED = "stored VM"
    """As Cloud Hypervisor's offload daemon stores it, with a manifest of ours."""
    FILE = "file:// snapshot"
    """As Cloud Hypervisor's own `vm.snapshot` writes it."""


async def convert(
    source: str | os.PathLike[str], destination: str | os.PathLike[str]
) -> SnapshotKind:
    """Make `destination` of `source`: what it is then.

    UsageError if `source` is neither kind, or a stored VM that was given away; StoredVmError for
    one that cannot be read or written, is damaged, or would lose something. Nothing is left of
    `destination` then, nor after a cancellation.
    """
    with JobExecutor() as executor:
        kind = await executor.run(kind_of, os.fspath(source))
        if kind is SnapshotKind.FILE:
            await _store(executor, source, destination)
            return SnapshotKind.STORED
        await _export(executor, source, destination)
        return SnapshotKind.FILE


def kind_of(path: str) -> SnapshotKind:
    """What a directory holds, by its files' names; waits for the disk.

    UsageError if it is neither kind, or both; StoredVmError if it cannot be read.
    """
    with os_errors(path, "listing its files"):
        names = set(os.listdir(path))
    found = {
        SnapshotKind.STORED: CONFIG_NAME in names,
        SnapshotKind.FILE: SNAPSHOT_CONFIG_NAME in names,
    }
    kinds = [kind for kind, there in found.items() if there]
    if len(kinds) != 1:
        what = "both" if kinds else "neither"
        raise UsageError(f"{path} has {what} of {CONFIG_NAME} and {SNAPSHOT_CONFIG_NAME}")
    return kinds[0]


async def _store(
    executor: JobExecutor, source: str | os.PathLike[str], destination: str | os.PathLike[str]
) -> None:
    async with (
        _held(executor, partial(FileSnapshot, source)) as snapshot,
        _held(executor, partial(StoredVmWriter, destination)) as writer,
    ):
        await executor.run(writer.require_space, snapshot.allocated_bytes)
        await executor.run(writer.prepare, snapshot.config)
        for mapping in snapshot.config.memory_map.mappings:
            with os_errors(writer.path, f"copying memory of slot {mapping.slot}"):
                memory = await executor.run(snapshot.memory, mapping)
                text = await copy_blocks(memory, writer.target(mapping), executor, _uncounted)
            await executor.run(writer.finish, mapping, text)
        await executor.run(writer.write_state, snapshot.state)
        await executor.run(writer.sync)
        # A snapshot runs nowhere: there is no source to wait for.
        commit = partial(writer.commit, False, f"file://{snapshot.path}", confirmed=True)
        await _appear(executor, commit, writer.discard)


async def _export(
    executor: JobExecutor, source: str | os.PathLike[str], destination: str | os.PathLike[str]
) -> None:
    async with _held(executor, partial(StoredVm.open, source)) as vm:
        refusal = vm.refusal()
        if refusal is not None:
            raise UsageError(f"{vm.path}: {refusal}")
        await _verify(executor, vm)
        try:
            await _write(executor, vm, destination)
        except (
            FramesError
        ) as error:  # of memory without a checksum, which nothing was compared with
            raise StoredVmError(vm.path, error.why) from error


async def _write(executor: JobExecutor, vm: StoredVm, destination: str | os.PathLike[str]) -> None:
    exported = await executor.run(export, vm)
    make = partial(FileSnapshotWriter, destination, exported, vm.state)
    async with _held(executor, make) as writer:
        if writer.memory is not None:
            with os_errors(writer.path, "copying memory"):
                await copy_blocks(exported.memory, writer.memory, executor, _uncounted)
        await _appear(executor, writer.commit, writer.discard)


async def _appear(
    executor: JobExecutor, commit: Callable[[], None], discard: Callable[[], None]
) -> None:
    """Let it appear for good, or, after an error or a cancellation, not at all."""
    try:
        await executor.run(commit)
    except BaseException:
        await outlive(executor.run(discard))
        raise


class _Nowhere:
    """Takes blocks that only their checksum is wanted of."""

    job_blocks = 4

    def write(self, index: int, content: Block) -> bytes:  # noqa: ARG002 (a target's form)
        """Nothing."""
        return b""

    def append(self, index: int, made: bytes) -> None:
        """Never called."""
        raise NotImplementedError


async def _verify(executor: JobExecutor, vm: StoredVm) -> None:
    """Compare memory with its checksums, as far as there are any."""
    for mapping in vm.config.memory_map.mappings:
        memory = vm.memory(mapping)
        if memory.checksum is None:
            continue
        try:
            with os_errors(vm.path, f"reading {memory.name}"):
                text = await copy_blocks(memory.source, _Nowhere(), executor, _uncounted)
        except FramesError as error:
            raise StoredVmError(vm.path, f"{memory.name}: {error.why}") from error
        memory.compare(vm.path, text)


async def _uncounted(_: int) -> None:
    """Nobody watches."""


@asynccontextmanager
async def _held(executor: JobExecutor, make: Callable[[], H]) -> AsyncIterator[H]:
    """What `make` opens, closed however this ends."""
    making = executor.start(make)
    try:
        held = await executor.join(making)
    except BaseException:
        if not making.cancelled() and making.exception() is None:  # opened, and cancelled meanwhile
            await outlive(executor.run(making.result().close))
        raise
    try:
        yield held
    finally:
        await outlive(executor.run(held.close))
