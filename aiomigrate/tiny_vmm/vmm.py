"""The VMM: memory, devices, and a CPU with its thread.

The thread runs the guest, serves its exits, and stops when the guest is paused, is powered off or
fails; to resume is to run it again. The event loop touches CPU and devices only while the thread
stands still, but for `press` and `pause`, which set what it looks at.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from typing import Any, Self

from aiomigrate import (
    BitmapDirtyLog,
    CombinedDirtyLog,
    DirtyLog,
    GuestMemory,
    KvmDirtyLog,
    KvmSlot,
    VmConfig,
)
from aiomigrate.tiny_vmm.config import make_config, own_part
from aiomigrate.tiny_vmm.cpu import Cpu, Exit
from aiomigrate.tiny_vmm.devices import Dma, Output, Serial
from aiomigrate.tiny_vmm.guest import (
    DMA_PORT,
    ENTRY,
    PANIC,
    POWER_OFF,
    POWER_PORT,
    RESET,
    SERIAL_PORT,
    STACK,
    STAMP_PORT,
    Work,
)
from aiomigrate.tiny_vmm.kvm import KvmCpu
from aiomigrate.tiny_vmm.pager import Pager
from aiomigrate.tiny_vmm.ram import Ram
from aiomigrate.tiny_vmm.thread_cpu import ThreadCpu, ThreadDirtyLog

__all__ = ["Power", "Vm", "make_config"]


class Power(StrEnum):
    """Whether there is a guest to run."""

    ON = "on"
    OFF = "off"
    PANIC = "panic"
    """It has found a page that is not as it should be."""


class Vm:
    """A virtual machine, which does not run yet; its memory is empty, or in the file `memory`,
    which stays the caller's. A context manager.

    ValueError for another VMM's Config, KvmUnusable for KVM's where there is none. To be made in
    the main thread.
    """

    def __init__(self, config: VmConfig, output: Output, memory: int | None = None) -> None:
        own = own_part(config)
        self.config = config
        self.power = Power.ON
        self.ram = Ram(config.memory_map.total_bytes, memory)
        self._pager: Pager | None = None
        self.cpu, self.dirty = self._make_cpu(own["cpu"])
        self._tick_s: float = own["tick_s"]
        self.serial = Serial(output)
        self._dma = Dma(self.ram)
        self._button = 0
        self._thread = ThreadPoolExecutor(1, "cpu")
        self._run: Future[None] | None = None
        self._pausing = self._resetting = self._closed = False
        self._awake = threading.Event()
        self._woken = 0.0
        self.throttle_percent = 0
        """Of its time the guest is kept from running, at the ticks of its timer."""
        self._ended: Future[Power] = Future()
        self._ended.set_running_or_notify_cancel()  # who waits for it cannot cancel it
        self.memory = GuestMemory.over_files(config.memory_map, {0: self.ram.fd}, writable=True)

    def _make_cpu(self, kind: str) -> tuple[Cpu, DirtyLog]:
        """A CPU, and the log of all that it and the devices write."""
        devices = BitmapDirtyLog(self.config.memory_map, self.ram.exchange)
        try:
            if kind == "kvm":
                cpu = KvmCpu(self.ram.memory, ENTRY, STACK)
                slot = KvmSlot(0, 0, len(self.ram.memory), cpu.address)
                return cpu, CombinedDirtyLog(KvmDirtyLog(cpu.machine, [slot]), devices)
            return ThreadCpu(self.ram), ThreadDirtyLog(self.ram, devices)
        except BaseException:
            self.ram.close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Power it off, and give everything back. Idempotent."""
        if self._closed:
            return
        self._closed = True
        pausing = asyncio.gather(self.pause(), return_exceptions=True)  # `ended` tells of a failure
        if self._pager is not None:
            # Where memory is missing the guest stands still, and would not see that it is paused:
            # it goes on to where it does, with zeros, and nobody shall hear of that.
            await asyncio.sleep(0)
            if self._pager.missing:
                self.serial.mute()
            await self._pager.close()
        await pausing
        self._thread.shutdown(wait=False)  # it is idle
        self.cpu.close()
        await self.memory.aclose()
        self.ram.close()

    def page_with(self, pager: Pager) -> None:
        """Memory is missing, and `pager` gets it. It is closed with the machine."""
        self._pager = pager
        pager.begin()

    async def settled(self) -> None:
        """Wait until all memory is here. Raises why it will not be."""
        if self._pager is not None:
            await self._pager.whole()

    def load(self, work: Work) -> None:
        """Put the guest's program and parameters into memory."""
        for address, data in work.image():
            self.ram.write(address, data)

    def press(self, button: int) -> None:
        """Press the power button: RESET or POWER_OFF. The guest sees it at its next tick."""
        self._button = button

    @property
    def runs(self) -> bool:
        """Whether it was resumed, and not paused since."""
        return self._run is not None

    def resume(self) -> None:
        """Let the guest run: after a pause that was cut short, too, whatever has become of it."""
        self._pausing = False
        self._awake.clear()
        self._run = self._thread.submit(self._serve)

    async def pause(self) -> None:
        """Stop the guest: its CPU is between two instructions. Raises what the CPU failed with."""
        if self._run is not None:
            self._pausing = True
            self.cpu.interrupt()
            self._awake.set()
            await asyncio.wrap_future(self._run)
            self._run = None

    async def ended(self) -> Power:
        """Wait until the guest ends by itself, and say how. Raises what its CPU failed with."""
        return await asyncio.wrap_future(self._ended)

    def capture(self) -> bytes:
        """The state of a paused machine but for its memory, to which a device may write now."""
        self._dma.drain()
        state = {
            "cpu": self.cpu.capture(),
            "power": self.power,
            "button": self._button,
            "serial": self.serial.line,
            "dma": self._dma.number,
        }
        return json.dumps(state).encode()

    def restore(self, captured: bytes) -> None:
        """Be what was captured; memory is there already."""
        state: dict[str, Any] = json.loads(captured)
        self.cpu.restore(state["cpu"])
        self.power = Power(state["power"])
        self._button = state["button"]
        self.serial.line = state["serial"]
        self._dma.number = state["dma"]

    # In the CPU's thread

    def _serve(self) -> None:
        self._woken = time.monotonic()
        try:
            while True:
                self.cpu.rearm()
                if self._resetting:
                    self._resetting = False
                    self.cpu.reset()
                # Not before `rearm`, which may have undone an interruption.
                if self._pausing or self.power is not Power.ON:
                    break
                for exited in iter(self.cpu.run, None):
                    self._handle(exited)
        except BaseException as error:
            if not self._ended.done():  # it was resumed all the same
                self._ended.set_exception(error)
            raise
        if self.power is not Power.ON and not self._ended.done():
            self._ended.set_result(self.power)

    def _handle(self, exited: Exit) -> None:
        match exited:
            case Exit(port=None):  # until the timer's next tick
                ran = time.monotonic() - self._woken
                rest = ran * self.throttle_percent / (100 - self.throttle_percent)
                self._awake.wait(self._tick_s + rest)
                self._woken = time.monotonic()
            case Exit(port=port, data=None):
                self.cpu.answer(self._button if port == POWER_PORT else 0)
                self._button = 0
            case Exit(port=port, data=bytes(data)):
                self._write(port, data)

    def _write(self, port: int | None, data: bytes) -> None:
        value = int.from_bytes(data, "little")
        match port:
            case _ if port == SERIAL_PORT:
                self.serial.write(data)
            case _ if port == STAMP_PORT:
                self._dma.number = value
            case _ if port == DMA_PORT:
                self._dma.request(value)
            case _ if port == POWER_PORT:
                self._resetting = value == RESET
                if value == POWER_OFF:
                    self.power = Power.OFF
                elif value == PANIC:
                    self.power = Power.PANIC
                self.cpu.interrupt()  # the instruction ends first
