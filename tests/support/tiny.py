"""Guests of aiomigrate.tiny_vmm for tests: their serial line as events, and migrations in which the
test decides what happens at each call of the engine, and between two looks into the dirty log.
"""

import asyncio
import fcntl
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import aiomigrate
from aiomigrate import DirtyLog, GuestMemory, Report, SendOptions, VmConfig
from aiomigrate.tiny_vmm.guest import Work
from aiomigrate.tiny_vmm.kvm import KvmCpu, why_unusable
from aiomigrate.tiny_vmm.migrate import VmDestination, VmSource
from aiomigrate.tiny_vmm.vmm import Vm, make_config

__all__ = [
    "FIRST",
    "KINDS",
    "NO_KVM",
    "PASS",
    "Action",
    "ScriptedDestination",
    "ScriptedLog",
    "ScriptedSource",
    "SerialLine",
    "booted",
    "check",
    "logs_dirt",
    "machine",
    "move",
]

MIB = 1 << 20
FIRST = MIB
_WORK = Work(first=FIRST, end=4 * MIB, batch=64)
PASS = (_WORK.end - _WORK.first) // 4096 // _WORK.batch
"""Ticks that the guest takes to look at each of its pages once."""
NO_KVM = pytest.mark.skipif(bool(why_unusable()), reason=f"no KVM: {why_unusable()}")
KINDS = [pytest.param("kvm", marks=NO_KVM), "thread"]
Action = Callable[[], Awaitable[object]]
_COLLECTS = 50
_GET_DIRTY_LOG = 0x4010AE42  # include/uapi/linux/kvm.h


class SerialLine:
    """All that guests of this test have written, in order, whoever ran them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def write(self, text: str) -> None:
        """A line, in a CPU's thread."""
        self.lines.append(text.removesuffix("\n"))
        self._loop.call_soon_threadsafe(self._changed.set)

    async def tick(self, count: int) -> None:
        """Wait for as many lines more; AssertionError if the guest complains."""
        end = len(self.lines) + count
        while len(self.lines) < end:
            check(self.lines)
            self._changed.clear()
            await self._changed.wait()
        check(self.lines)

    async def boots(self, count: int) -> None:
        """Wait until guests have booted as often."""
        while self.lines.count("booted") < count:
            self._changed.clear()
            await self._changed.wait()


def check(lines: Sequence[str]) -> None:
    """AssertionError unless they are what a guest writes whose memory is as it should be: after
    each boot a counter without a gap.
    """
    expected = 0
    for line in lines:
        assert line == ("booted" if line == "booted" else f"{expected:08x}"), lines[-20:]
        expected = 1 if line == "booted" else expected + 1


def machine(kind: str, line: SerialLine, work: Work = _WORK, tick_s: float = 0.001) -> Vm:
    """A machine that was not switched on yet."""
    vm = Vm(make_config(kind, 8 * MIB, tick_s), line)
    vm.load(work)
    return vm


def booted(kind: str, line: SerialLine) -> Vm:
    """A machine whose guest runs."""
    vm = machine(kind, line)
    vm.resume()
    return vm


class ScriptedLog:
    """A dirty log; before the collect of that number (from 1) a script's action runs."""

    def __init__(self, log: DirtyLog, script: Mapping[int, Action]) -> None:
        self._log = log
        self._script = script
        self.collects = 0
        self.on = False

    async def start(self) -> None:
        self.on = True
        await self._log.start()

    async def collect(self) -> Sequence[NDArray[np.uint64]]:
        self.collects += 1
        if action := self._script.get(self.collects):
            await action()
        return await self._log.collect()

    async def stop(self) -> None:
        await self._log.stop()
        self.on = False


class ScriptedSource(VmSource):
    """A machine's source, which notes what the engine asks for; before a call a script's action of
    its name runs: config, pause, capture, hand_over, take_back, resume, release, lost, "throttle
    N", "collect N" (from 1).
    """

    def __init__(self, vm: Vm, script: dict[str, Action]) -> None:
        super().__init__(vm)
        self._script = script
        self.calls: list[str] = []
        numbers = range(1, _COLLECTS)
        self.log = ScriptedLog(vm.dirty, {n: partial(self._call, f"collect {n}") for n in numbers})
        self.dirty = self.log

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        if action := self._script.get(name):
            await action()

    async def config(self) -> bytes:
        await self._call("config")
        return await super().config()

    async def pause(self) -> None:
        await self._call("pause")
        await super().pause()

    async def capture(self) -> bytes:
        await self._call("capture")
        return await super().capture()

    async def hand_over(self, destination: str) -> None:
        await self._call("hand_over")
        await super().hand_over(destination)

    async def take_back(self, reason: BaseException) -> None:
        await self._call("take_back")
        await super().take_back(reason)

    async def resume(self) -> None:
        await self._call("resume")
        await super().resume()

    async def release(self) -> None:
        await self._call("release")
        await super().release()

    async def lost(self, reason: BaseException) -> None:
        await self._call("lost")
        await super().lost(reason)

    async def throttle(self, percent: int) -> None:
        await self._call(f"throttle {percent}")
        await super().throttle(percent)


class ScriptedDestination(VmDestination):
    """A machine's place; before a call a script's action of its name runs: configure, restore,
    resume, confirmed.
    """

    def __init__(self, line: SerialLine, script: dict[str, Action]) -> None:
        super().__init__(line)
        self._script = script
        self.discarded = 0

    async def _call(self, name: str) -> None:
        if action := self._script.get(name):
            await action()

    async def configure(self, config: VmConfig, source: str) -> GuestMemory:
        await self._call("configure")
        return await super().configure(config, source)

    async def restore(self, state: bytes) -> None:
        await self._call("restore")
        await super().restore(state)

    async def resume(self) -> None:
        await self._call("resume")
        await super().resume()

    async def confirmed(self) -> None:
        await self._call("confirmed")
        await super().confirmed()

    async def discard(self, reason: BaseException) -> None:
        self.discarded += 1
        await super().discard(reason)


async def move(
    vm: Vm,
    line: SerialLine,
    *,
    log: DirtyLog | None = None,
    source: VmSource | None = None,
    destination: VmDestination | None = None,
    **options: Any,
) -> tuple[Report | BaseException, Vm | None]:
    """Migrate over loopback: the source's outcome, and the machine at the destination."""
    if source is None:
        source = VmSource(vm)
        source.dirty = log or vm.dirty
    destination = destination or VmDestination(line)
    async with (
        aiomigrate.receive(destination, "tcp:127.0.0.1:0") as reception,
        aiomigrate.send(source, str(reception.address), SendOptions(**options)) as migration,
    ):
        sent, _ = await asyncio.gather(
            migration.result(), reception.result(), return_exceptions=True
        )
    return sent, destination.vm


def logs_dirt(vm: Vm) -> bool:
    """Whether what the guest or its devices write is being noted anywhere."""
    devices = vm.ram.exchange(())
    vm.ram.exchange(devices)
    if devices or not isinstance(vm.cpu, KvmCpu):
        return bool(devices)
    pages = np.zeros(len(vm.ram.memory) // 4096 // 64, np.uint64)
    where = struct.pack("=IIQ", 0, 0, pages.ctypes.data)
    try:
        fcntl.ioctl(vm.cpu.machine, _GET_DIRTY_LOG, where)
    except FileNotFoundError:  # ENOENT: the slot has no bitmap
        return False
    return True
