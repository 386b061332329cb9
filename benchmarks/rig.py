"""Two ends in memory, each in a process of its own, for benchmarks of the engine alone.

Guest memory is a memfd (or a file in a directory that is named), random at the source unless said
otherwise. At the destination it is touched beforehand, so that what is measured is the engine, the
kernel's copies and the link; or `fresh`, where the first touch is of interest.
"""

import asyncio
import contextlib
import json
import mmap
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import numpy as np
import uvloop
from numpy.typing import NDArray

from aiomigrate import (
    CleanLog,
    GuestMemory,
    ReceiveOptions,
    Report,
    SendOptions,
    VmConfig,
    receive,
    send,
)
from benchmarks.callbacks import CallbackMeter

MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096
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


Fill = Callable[[mmap.mmap], None]


def random_first(nbytes: int) -> Fill:
    """Random data in the first `nbytes`."""

    def fill(view: mmap.mmap) -> None:
        generator = np.random.default_rng(1)
        for begin in range(0, nbytes, CELL_BYTES):
            view[begin : begin + CELL_BYTES] = generator.bytes(min(CELL_BYTES, nbytes - begin))

    return fill


def make_memory(
    config: VmConfig, fill: Fill | None = None, *, fresh: bool = False, place: str = ""
) -> GuestMemory:
    """Memory of the guest's size, every page of it there unless it is `fresh`."""
    size = config.memory_map.total_bytes
    fd = os.open(place, os.O_RDWR | os.O_TMPFILE) if place else os.memfd_create("bench")
    try:
        os.ftruncate(fd, size)
        if fill is not None:
            with mmap.mmap(fd, size) as view:
                fill(view)
        memory = GuestMemory.over_files(config.memory_map, {0: fd}, writable=True)
        if not fresh:
            memory.populate_write(config.memory_map.whole())
        return memory
    finally:
        os.close(fd)


class ScanLog:
    """A dirty log that marks the same bitmap some times, and then nothing."""

    def __init__(self, bitmap: NDArray[np.uint64], rounds: int) -> None:
        self._bitmap = bitmap
        self._rounds = rounds

    async def start(self) -> None: ...

    async def collect(self) -> Sequence[NDArray[np.uint64]]:
        self._rounds -= 1
        return (self._bitmap,) if self._rounds >= 0 else ()

    async def stop(self) -> None: ...


class MemorySource:
    """A guest that does not run: all random and there, unless `fill` says otherwise."""

    resumes = False

    def __init__(self, size: int, fill: Fill | None = None) -> None:
        self._config = config_of(size)
        fresh = fill is not None
        fill = fill or random_first(size)
        self.memory = make_memory(VmConfig.parse(self._config), fill, fresh=fresh)
        self.dirty: CleanLog | ScanLog = CleanLog()

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
    """Takes the guest into memory that is there already, or fresh."""

    def __init__(self, size: int, *, fresh: bool, place: str) -> None:
        self.memory = make_memory(VmConfig.parse(config_of(size)), fresh=fresh, place=place)

    async def configure(self, config: VmConfig, source: str) -> GuestMemory:
        return self.memory

    async def restore(self, state: bytes) -> None: ...

    async def resume(self) -> None: ...

    async def keep_paused(self) -> None: ...

    async def confirmed(self) -> None: ...

    async def discard(self, reason: BaseException) -> None: ...


def run(main: Callable[[], Coroutine[Any, Any, Any]], meter: CallbackMeter | None = None) -> Any:
    """Run on uvloop, or on the meter's loop where callbacks are measured."""
    with asyncio.Runner(loop_factory=meter.new_loop if meter else uvloop.new_event_loop) as runner:
        return runner.run(main())


def _receive(
    pipe: Connection,
    size: int,
    listen: str,
    loop: str,
    fresh: bool,
    ahead: bool,
    place: str,
    tls_dir: Path | None,
) -> None:
    meter = CallbackMeter(loop) if loop else None
    if not ahead:  # so that the loop's own system calls touch fresh memory
        GuestMemory.resident = lambda *_: True  # type: ignore[method-assign]

    async def main() -> None:
        destination = MemoryDestination(size, fresh=fresh, place=place)
        async with receive(destination, listen, ReceiveOptions(tls_dir=tls_dir)) as migration:
            pipe.send(str(migration.address))
            with meter or contextlib.nullcontext():
                await migration.result()
        pipe.send((meter and meter.figures(), destination.memory.held_bytes()))
        destination.memory.close()

    run(main, meter)


class Receiver:
    """A receiving process; a context manager.

    `meter` names the loop whose callbacks it measures. Memory is `fresh` or touched, in the
    directory `place` or a memfd; fresh memory is populated `ahead` of the data, or not.
    """

    def __init__(
        self,
        size: int,
        *,
        listen: str = "tcp:127.0.0.1:0",
        meter: str = "",
        fresh: bool = False,
        ahead: bool = True,
        place: str = "",
        tls_dir: Path | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, size, listen, meter, fresh, ahead, place, tls_dir)
        self._process = context.Process(target=_receive, args=arguments)
        self._process.start()
        self.address: str = self._pipe.recv()
        self._end: tuple[Any, int] | None = None

    def figures(self) -> Any:
        """Callback figures of the receiver, at its end."""
        return self._ended()[0]

    def held_bytes(self) -> int:
        """Bytes of storage behind its memory, at its end."""
        return self._ended()[1]

    def _ended(self) -> tuple[Any, int]:
        if self._end is None:
            self._end = self._pipe.recv()
        return self._end

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
async def source_of(size: int, fill: Fill | None = None) -> AsyncIterator[MemorySource]:
    """A source with its memory."""
    source = MemorySource(size, fill)
    try:
        yield source
    finally:
        source.memory.close()


@contextlib.asynccontextmanager
async def scanned_source(size: int, data: int, rounds: int) -> AsyncIterator[MemorySource]:
    """A source whose bitmap marks every other page of its first `data` bytes, `rounds` times."""
    bitmap = np.zeros(size // PAGE // 64, np.uint64)
    bitmap[: data // PAGE // 64] = 0x5555555555555555
    async with source_of(size, random_first(data)) as source:
        source.dirty = ScanLog(bitmap, rounds)
        yield source
