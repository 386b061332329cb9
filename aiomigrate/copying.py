"""Guest memory between descriptors and a stored VM, by jobs off the event loop.

Each job takes a few blocks from one side to the other; several run at once, but their results are
taken in order. That is all the order there is: digests go into the checksum, and compressed frames
into their file, as the memory has them, and at most a few MiB are on the way.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing

from aiomigrate.executor import JobExecutor
from aiomigrate.memory.blocks import BLOCK_BYTES, BlockSource, BlockTarget, FilePart, new_buffer
from aiomigrate.memory.checksum import Checksum, block_digest
from aiomigrate.memory.errors import FramesError, StoredVmError
from aiomigrate.memory.map import VmConfig
from aiomigrate.memory.stored import StoredVm
from aiomigrate.memory.storing import StoredVmWriter
from aiomigrate.tasks import settle

__all__ = ["copy_blocks", "load_memory", "save_memory"]

_AHEAD = 2
"""Jobs begun for each worker, so that none waits for the loop."""
_WRITE_OUT_BYTES = 64 << 20
"""The disk is told to begin every so often; arbitrary."""

_Copied = list[tuple[int, bytes, bytes]]


async def save_memory(
    writer: StoredVmWriter,
    config: VmConfig,
    fds: Mapping[int, int],
    executor: JobExecutor,
    moved: Callable[[int], None],
) -> None:
    """Copy each slot's mapping from its descriptor (`file_offset` on) into a prepared writer.

    `moved` is told the bytes of each job, without blocks of zeros. StoredVmError, OSError. Nobody
    may write to the memory meanwhile: the checksum is of what was read. Nothing is synced.
    """
    unwritten = 0

    async def count(copied: int) -> None:
        nonlocal unwritten
        moved(copied)
        unwritten += copied
        if unwritten >= _WRITE_OUT_BYTES:
            unwritten = 0
            await executor.run(writer.start_writing)

    for mapping in config.memory_map.mappings:
        source = FilePart(fds[mapping.slot], mapping.file_offset, mapping.size)
        target = writer.target(mapping)
        text = await copy_blocks(source, target, executor, count)
        await executor.run(writer.finish, mapping, text)


async def load_memory(
    vm: StoredVm,
    fds: Mapping[int, int],
    executor: JobExecutor,
    moved: Callable[[int], None],
) -> None:
    """Copy a stored VM's memory into an empty memfd of each slot, from `file_offset` on.

    `moved` is told the bytes of each job, without blocks of zeros. Where the manifest has checksums
    they are compared on the way: StoredVmError for what is damaged, OSError.
    """

    async def count(copied: int) -> None:
        moved(copied)

    for mapping in vm.config.memory_map.mappings:
        memory = vm.memory(mapping)
        target = FilePart(fds[mapping.slot], mapping.file_offset, mapping.size)
        try:
            text = await copy_blocks(memory.source, target, executor, count)
        except FramesError as error:
            raise StoredVmError(vm.path, f"{memory.name}: {error.why}") from error
        memory.compare(vm.path, text)


async def copy_blocks(
    source: BlockSource,
    target: BlockTarget,
    executor: JobExecutor,
    moved: Callable[[int], Awaitable[None]],
) -> str:
    """Copy all blocks that are not zero; the checksum of the whole. OSError, FramesError."""
    whole = Checksum()
    running: deque[asyncio.Future[_Copied]] = deque()

    async def take() -> None:
        copied = await executor.join(running[0])
        running.popleft()
        for index, digest, _ in copied:
            whole.add(index, digest)
        frames = [(index, made) for index, _, made in copied if made]
        if frames:
            await executor.run(_append, target, frames)
        await moved(
            sum(min(BLOCK_BYTES, source.size - index * BLOCK_BYTES) for index, _, _ in copied)
        )

    try:
        async with aclosing(_groups(source, target.job_blocks, executor)) as groups:
            async for group in groups:
                running.append(executor.start(_copy, source, target, group))
                if len(running) == _AHEAD * executor.workers:
                    await take()
        while running:
            await take()
    finally:
        # Descriptors outlive the jobs that use them.
        cancelled = False
        for job in running:
            cancelled |= await settle(job)
            if not job.cancelled():
                job.exception()  # another one is raised already
        if cancelled:
            raise asyncio.CancelledError
    return whole.text


async def _groups(
    source: BlockSource, size: int, executor: JobExecutor
) -> AsyncGenerator[Sequence[int], None]:
    """The blocks that may be other than zero, in order, up to `size` of them at a time."""
    index, end = 0, -(-source.size // BLOCK_BYTES)
    while index < end:
        found, index = await executor.run(source.find, index)
        for at in range(0, len(found), size):
            yield found[at : at + size]
    await executor.run(source.find, end)  # still whole


def _copy(source: BlockSource, target: BlockTarget, group: Sequence[int]) -> _Copied:
    """(index, digest, what is to be appended) of each block that is not zero."""
    buffer = new_buffer()
    copied = []
    for index in group:
        content = source.read(index, buffer)
        digest = block_digest(content)
        if digest is not None:
            copied.append((index, digest, target.write(index, content)))
    return copied


def _append(target: BlockTarget, frames: Sequence[tuple[int, bytes]]) -> None:
    for index, made in frames:
        target.append(index, made)
