"""The same guest without KVM: its program as a compiled kernel that runs in the CPU's thread.

It writes guest memory without the GIL, while the migration reads it, just as KVM's guest does. CPU
and devices write through the same mapping of this process, so that PAGEMAP_SCAN finds what either
wrote. Where the kernel has none, what the CPU wrote is marked in the devices' bitmap.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from aiomigrate import DirtyLog, DirtyLogError, PagemapDirtyLog
from aiomigrate.memory.numba_cache import compiled
from aiomigrate.tiny_vmm.cpu import Exit
from aiomigrate.tiny_vmm.guest import (
    DMA_PORT,
    PAGE,
    PANIC,
    POWER_PORT,
    SERIAL_PORT,
    STAMP_PORT,
    Work,
)
from aiomigrate.tiny_vmm.ram import Ram

__all__ = ["ThreadCpu", "ThreadDirtyLog"]

_types = import_module("numba").types

_OWN, _DEVICES, _LOST, _OLD = range(4)


@compiled(
    _types.UniTuple(_types.int64, 2)(
        _types.Array(_types.uint32, 1, "C"), _types.int64, _types.int64, _types.int64
    )
)
def _sweep(words: NDArray[np.uint32], number: int, page: int, end: int) -> tuple[int, int]:
    """Check and stamp pages from address `page` on: where it stopped, and why.

    It stops at `end`, at a page that the device is to stamp, or at one that is not as it should be.
    """
    while page < end:
        at = page // 4
        if number > 1:
            begun, ended = words[at], words[at + 1023] ^ np.uint32(page)
            if begun != ended:
                return page, _LOST
            if begun + 1 != number:
                return page, _OLD
        if page & 0xF000 == 0:
            return page, _DEVICES
        words[at] = number
        words[at + 1023] = number ^ page
        page += PAGE
    return page, _OWN


class ThreadCpu:
    """Takes the place of `KvmCpu`: the same guest, ports and interruptions."""

    def __init__(self, ram: Ram) -> None:
        self._ram = ram
        self._words = np.frombuffer(ram.memory, np.uint32)
        self._interrupted = False
        self._answer = 0
        self.reset()

    def close(self) -> None:
        """Let go of guest memory."""
        del self._words
        self._program.close()

    def run(self) -> Exit | None:
        """Run the guest until it needs something, or None if it was interrupted."""
        return next(self._program)

    def answer(self, value: int) -> None:
        """What the guest reads from the port that it stopped for."""
        self._answer = value

    def interrupt(self) -> None:
        """Make `run` return None soon, and every further time until `rearm`. For any thread."""
        self._interrupted = True

    def rearm(self) -> None:
        """Let the guest run again."""
        self._interrupted = False

    def reset(self) -> None:
        """As it is when the machine begins."""
        self.restore({"counter": 0, "number": 0, "page": 0})

    def capture(self) -> dict[str, int]:
        """Its registers. Only after `run` has returned None."""
        return dict(self._registers)

    def restore(self, state: dict[str, int]) -> None:
        """Go on from captured registers."""
        self._registers = dict(state)
        self._program = self._guest()

    def _guest(self) -> Generator[Exit | None, None, None]:
        """guest.s. It can be interrupted, and gone on with, before each batch."""
        registers = self._registers
        yield from self._interruptions()
        work = Work.read(self._ram.read)
        if not registers["number"]:
            yield Exit(SERIAL_PORT, b"booted\n")
            registers["page"] = work.end
        while True:
            left = work.batch
            while left:
                if registers["page"] >= work.end:
                    registers["number"] += 1
                    registers["page"] = work.first
                    yield Exit(STAMP_PORT, registers["number"].to_bytes(4, "little"))
                page = registers["page"]
                end = min(page + left * PAGE, work.end)
                stop, why = _sweep(self._words, registers["number"], page, end)
                self._ram.mark(page // PAGE, stop // PAGE)
                if why == _DEVICES:
                    yield Exit(DMA_PORT, stop.to_bytes(4, "little"))
                    stop += PAGE
                elif why != _OWN:
                    text = "lost" if why == _LOST else "old"
                    yield Exit(SERIAL_PORT, f"{text} {stop:08x}\n".encode())
                    yield Exit(POWER_PORT, bytes([PANIC]))
                    while True:
                        yield None
                left -= (stop - page) // PAGE
                registers["page"] = stop
            registers["counter"] += 1
            yield Exit(SERIAL_PORT, f"{registers['counter']:08x}\n".encode())
            yield Exit(None)
            yield Exit(POWER_PORT)
            if self._answer:
                yield Exit(POWER_PORT, bytes([self._answer]))
            yield from self._interruptions()
            work = Work.read(self._ram.read)

    def _interruptions(self) -> Generator[None, None, None]:
        while self._interrupted:
            yield None


class ThreadDirtyLog:
    """What CPU and devices write to `ram`: by PAGEMAP_SCAN, or by `marked` where the kernel refuses
    that.
    """

    def __init__(self, ram: Ram, marked: DirtyLog) -> None:
        self._scanned = PagemapDirtyLog([ram.memory])
        self._marked = marked
        self._log: DirtyLog = self._scanned

    async def start(self) -> None:
        """Begin to log."""
        self._log = self._scanned
        try:
            await self._scanned.start()
        except DirtyLogError:
            await self._scanned.stop()
            self._log = self._marked
            await self._marked.start()

    async def collect(self) -> Sequence[NDArray[np.uint64]]:
        """Hand over what was written since the last call."""
        return await self._log.collect()

    async def stop(self) -> None:
        """End logging."""
        await self._log.stop()
