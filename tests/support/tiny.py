"""Guests of aiomigrate.tiny_vmm for tests: their serial line as events, and migrations in which the
test decides what happens between two looks into the dirty log.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import aiomigrate
from aiomigrate import DirtyLog, Report, SendOptions
from aiomigrate.tiny_vmm.guest import Work
from aiomigrate.tiny_vmm.kvm import why_unusable
from aiomigrate.tiny_vmm.migrate import VmDestination, VmSource
from aiomigrate.tiny_vmm.vmm import Vm, make_config

__all__ = ["FIRST", "KINDS", "PASS", "ScriptedLog", "SerialLine", "booted", "check", "move"]

MIB = 1 << 20
FIRST = MIB
_WORK = Work(first=FIRST, end=4 * MIB, batch=64)
PASS = (_WORK.end - _WORK.first) // 4096 // _WORK.batch
"""Ticks that the guest takes to look at each of its pages once."""
KINDS = [
    pytest.param(
        "kvm", marks=pytest.mark.skipif(bool(why_unusable()), reason=f"no KVM: {why_unusable()}")
    ),
    "thread",
]
Action = Callable[[], Awaitable[object]]


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


def booted(kind: str, line: SerialLine) -> Vm:
    """A machine whose guest runs."""
    vm = Vm(make_config(kind, 8 * MIB, 0.001), line)
    vm.load(_WORK)
    vm.resume()
    return vm


class ScriptedLog:
    """A dirty log; before the collect of that number (from 1) a script's action runs."""

    def __init__(self, log: DirtyLog, script: Mapping[int, Action]) -> None:
        self._log = log
        self._script = script
        self.collects = 0

    async def start(self) -> None:
        await self._log.start()

    async def collect(self) -> Sequence[NDArray[np.uint64]]:
        self.collects += 1
        if action := self._script.get(self.collects):
            await action()
        return await self._log.collect()

    async def stop(self) -> None:
        await self._log.stop()


async def move(
    vm: Vm,
    line: SerialLine,
    *,
    log: DirtyLog | None = None,
    destination: VmDestination | None = None,
    **options: Any,
) -> tuple[Report | BaseException, Vm | None]:
    """Migrate over loopback: the source's outcome, and the machine at the destination."""
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
