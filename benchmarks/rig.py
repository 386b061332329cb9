"""Two ends in memory, each in a process of its own, for benchmarks of the engine alone.

Guest memory is a memfd, random at the source, touched beforehand at both ends: what is measured is
the engine, the kernel's copies and the link, not the first touch of fresh memory.
"""

import asyncio
import contextlib
import json
import mmap
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np
import uvloop

from aiomigrate import (
    CleanLog,
    GuestMemory,
    Report,
    SendOptions,
    VmConfig,
    receive,
    send,
)
from benchmarks.callbacks import CallbackMeter

GPA = 0
CELL_BYTES = 8 << 20
STATE = b'{"snapshots": {}, "snapshot_data": null}'


def config_of(size: int) -> bytes:
    """A Config of one mapping."""
    mapping = {"slot": 0, "gpa": GPA, "size": size, "zone_id": "mem0"}
    mapping |= {"virtio_mem": False, "file_offset": 0}
    return json.dumps(
        {"vm_config": {"memory": {}}, "memory_manager_data": {"guest_ram_mappings": [mapping]}}
    ).encode()


def make_memory(config: VmConfig, *, random: bool) -> GuestMemory:
    """A memfd of the guest's size whose every page is there."""
    size = config.memory_map.total_bytes
    fd = os.memfd_create("bench")
    try:
        os.ftruncate(fd, size)
        with mmap.mmap(fd, size) as view:
            generator = np.random.default_rng(1)
            for begin in range(0, size if random else 0, CELL_BYTES):
                view[begin : begin + CELL_BYTES] = generator.bytes(CELL_BYTES)
        memory = GuestMemory.over_files(config.memory_map, {0: fd}, writable=True)
        memory.populate_write(config.memory_map.whole())
        return memory
    finally:
        os.close(fd)


class MemorySource:
    """A guest that does not run."""

    resumes = False

    def __init__(self, size: int) -> None:
        self._config = config_of(size)
        self.memory = make_memory(VmConfig.parse(self._config), random=True)
        self.dirty = CleanLog()

    async def config(self) -> bytes:
        return self._config

    async def pause(self) -> None: ...

    async def capture(self) -> bytes:
        return STATE

    async def hand_over(self, destination: str) -> None: ...

    async def take_back(self, reason: BaseException) -> None: ...

    async def resume(self) -> None: ...

    async def release(self) -> None: ...

    async def lost(self, reason: BaseException) -> None: ...


class MemoryDestination:
    """Takes the guest into memory that is there already."""

    def __init__(self, size: int) -> None:
        self.memory = make_memory(VmConfig.parse(config_of(size)), random=False)

    async def configure(self, config: VmConfig, source: str) -> GuestMemory:
        return self.memory

    async def restore(self, state: bytes) -> None: ...

    async def resume(self) -> None: ...

    async def keep_paused(self) -> None: ...

    async def confirmed(self) -> None: ...

    async def discard(self, reason: BaseException) -> None: ...


def run(main: Callable[[], Coroutine[Any, Any, Any]], *, meter: bool) -> Any:
    """Run on uvloop, or on asyncio's loop where callbacks are measured: uvloop hides them."""
    if not meter:
        return uvloop.run(main())
    return asyncio.run(main())


def _receive(pipe: Connection, size: int, listen: str, meter: bool) -> None:
    async def main() -> None:
        destination = MemoryDestination(size)
        async with receive(destination, listen) as migration:
            pipe.send(str(migration.address))
            with CallbackMeter() if meter else contextlib.nullcontext() as callbacks:
                await migration.result()
        pipe.send(callbacks.figures() if callbacks is not None else None)
        destination.memory.close()

    run(main, meter=meter)


class Receiver:
    """A receiving process; a context manager."""

    def __init__(self, size: int, *, listen: str = "tcp:127.0.0.1:0", meter: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_receive, args=(theirs, size, listen, meter))
        self._process.start()
        self.address: str = self._pipe.recv()

    def figures(self) -> Any:
        """Callback figures of the receiver, at its end."""
        return self._pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.join(60)
        self._process.close()
        self._pipe.close()


async def timed_send(
    source: MemorySource, address: str, options: SendOptions
) -> tuple[float, Report]:
    """Seconds from connecting to the answer to Complete, and the report."""
    began = time.perf_counter()
    async with send(source, address, options) as migration:
        report = await migration.result()
    return time.perf_counter() - began, report


@contextlib.asynccontextmanager
async def source_of(size: int) -> AsyncIterator[MemorySource]:
    """A source with its memory."""
    source = MemorySource(size)
    try:
        yield source
    finally:
        source.memory.close()
