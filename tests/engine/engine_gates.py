"""A source that stops at gates: before each step of its dirty log, in pause and in capture, and
wherever memory moves that a test puts behind `Gates.before`.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import aiomigrate
from aiomigrate import BitmapDirtyLog, CombinedDirtyLog, GuestMemory, VmConfig
from aiomigrate.applying import Applier
from aiomigrate.memory.bitmaps import Bitmap
from aiomigrate.transport import Connection
from tests.support.image import PAGE, Mapping
from tests.support.vms import STATE_JSON, config_of

__all__ = ["MEMORY", "PAGES", "Gates", "SteppedVm"]

PAGES = 72
MEMORY = Mapping(0, 0, PAGES * PAGE, "mem0", virtio_mem=False, file_offset=0)


class Gate:
    """One that waits. `moves`: memory is to be moved there; `peer`: into the destination's, from
    the connection of this name.
    """

    def __init__(self, *, moves: bool, peer: str) -> None:
        self.moves = moves
        self.peer = peer
        self.held = False
        """Whether it lets go only when it is meant itself."""
        self.passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Gates:
    """Where the migration waits until the machine lets it go on."""

    def __init__(self) -> None:
        self.open = False
        self.waiting: list[Gate] = []

    async def stop(self, *, moves: bool = False, peer: str = "") -> None:
        if self.open:
            return
        gate = Gate(moves=moves, peer=peer)
        self.waiting.append(gate)
        try:
            await gate.passed
        finally:
            self.waiting.remove(gate)

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, a coroutine function that moves memory, behind a gate."""

        async def gated(*arguments: Any) -> Any:
            await self.stop(moves=True)
            return await call(*arguments)

        return gated

    def before_apply(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`Applier.read_content` behind a gate."""

        async def gated(applier: Applier, connection: Connection, *arguments: Any) -> Any:
            await self.stop(moves=True, peer=connection.name)
            return await call(applier, connection, *arguments)

        return gated

    def let_go(self, *, moves: bool) -> bool:
        """Let all of a kind go on that are not held; whether there were any. If all that wait are
        held, none is.
        """
        if all(gate.held for gate in self.waiting):
            for gate in self.waiting:
                gate.held = False
        going = [gate for gate in self.waiting if gate.moves is moves and not gate.held]
        for gate in going:
            gate.passed.set_result(None)
        return bool(going)


class SteppedLog:
    """A kernel's log, stopped before each of its steps and after the last one."""

    def __init__(self, log: Any, gates: Gates) -> None:
        self._log = log
        self._gates = gates
        self._marked: list[Bitmap] = []

    async def start(self) -> None:
        self._marked = self._log.bitmaps()
        await self._drive(self._log.start())

    async def collect(self) -> Sequence[Bitmap]:
        await self._drive(self._log.collect(self._marked))
        handed, self._marked = self._marked, self._log.bitmaps()
        return handed

    async def stop(self) -> None:
        for _ in self._log.stop():
            pass

    async def _drive(self, steps: Iterator[None]) -> None:
        await self._gates.stop()
        for _ in steps:
            await self._gates.stop()


class SteppedVm:
    """The source: one vCPU, which writes through `memory`, and a device, through `device`."""

    resumes = True

    def __init__(self, gates: Gates, *, file_backed: bool) -> None:
        self.gates = gates
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, MEMORY.size)
        self.vcpu = mmap.mmap(self.fd, MEMORY.size)
        self.device = mmap.mmap(self.fd, MEMORY.size)
        self.raw = config_of([MEMORY], ["mem0"] if file_backed else [])
        config = VmConfig.parse(self.raw)
        self.memory = GuestMemory.over_files(
            config.memory_map, {0: self.fd}, writable=False, file_zones=config.file_zones
        )
        self.paused = self.captured = False
        self.at_capture = b""
        self.dirty: aiomigrate.DirtyLog
        self._marked: Sequence[Bitmap] = ()

    def log_with(self, vcpus: Any) -> None:
        devices = BitmapDirtyLog(self.memory.map, self._exchange)
        self.dirty = CombinedDirtyLog(SteppedLog(vcpus, self.gates), devices)

    def _exchange(self, fresh: Sequence[Bitmap]) -> Sequence[Bitmap]:
        marked, self._marked = self._marked, fresh
        return marked

    def mark(self, page: int) -> None:
        """As a device does once it has written."""
        for bitmap in self._marked:
            bitmap[page // 64] |= np.uint64(1 << page % 64)

    def close(self) -> None:
        self.memory.close()
        self.vcpu.close()
        self.device.close()
        os.close(self.fd)

    async def config(self) -> bytes:
        return self.raw

    async def pause(self) -> None:
        await self.gates.stop()
        self.paused = True

    async def capture(self) -> bytes:
        await self.gates.stop()
        self.captured = True
        self.at_capture = self.device[:]
        return STATE_JSON

    async def hand_over(self, destination: str) -> None:
        await self.gates.stop()

    async def take_back(self, reason: BaseException) -> None:
        pass

    async def resume(self) -> None:
        pass

    async def release(self) -> None:
        pass

    async def lost(self, reason: BaseException) -> None:
        pass
