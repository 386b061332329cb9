"""A REST service for a guest: python -m examples.tiny_vmm.serve ADDRESS [boot BYTES BATCH]

    python -m examples.tiny_vmm.serve tcp:127.0.0.1:9440 boot 67108864 64 &   # a guest, which runs
    python -m examples.tiny_vmm.serve tcp:127.0.0.1:9441 &                    # a place for one
    curl -X PUT localhost:9441/api/v1/vm.receive-migration -H 'Content-Type: application/json' \
        -d '{"receiver_url": "tcp:127.0.0.1:6000"}' &
    curl -X PUT localhost:9440/api/v1/vm.send-migration -H 'Content-Type: application/json' \
        -d '{"destination_url": "tcp:127.0.0.1:6000"}'

http://localhost:9440/ shows what it does. Whoever reaches the address may use it: for trying only.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO

import uvloop

from aiomigrate.api import Service, VmInfo, VmState, open_tcp, serve
from aiomigrate.tiny_vmm.guest import Work
from aiomigrate.tiny_vmm.kvm import why_unusable
from aiomigrate.tiny_vmm.migrate import VmDestination, VmSource
from aiomigrate.tiny_vmm.vmm import Vm, make_config

FIRST_BYTE = 1 << 20
TICK_S = 0.01


class Place:
    """An `aiomigrate.api.Vm`: a place for one tiny VM."""

    def __init__(self) -> None:
        self.vm: Vm | None = None
        self._console = StringIO()

    def boot(self, size: int, batch: int) -> None:
        """Run a guest that writes `batch` pages a tick, in memory full of noise."""
        cpu = "thread" if why_unusable() else "kvm"
        self.vm = Vm(make_config(cpu, size, TICK_S), self._console)
        self.vm.ram.memory[FIRST_BYTE:size] = os.urandom(size - FIRST_BYTE)
        self.vm.load(Work(first=FIRST_BYTE, end=size, batch=batch))
        self.vm.resume()

    async def info(self) -> VmInfo | None:
        if self.vm is None:
            return None
        state = VmState.RUNNING if self.vm.runs else VmState.PAUSED
        return VmInfo(config={}, state=state, memory_actual_size=len(self.vm.ram.memory))

    async def pause(self) -> None:
        await self._there.pause()

    async def resume(self) -> None:
        self._there.resume()

    @asynccontextmanager
    async def source(self) -> AsyncIterator[VmSource]:
        source = Leaving(self._there)
        yield source
        if source.gone:
            await self._there.close()
            self.vm = None

    @asynccontextmanager
    async def destination(self) -> AsyncIterator[VmDestination]:
        destination = VmDestination(self._console)
        try:
            yield destination
        finally:
            self.vm = destination.vm

    @property
    def _there(self) -> Vm:
        if self.vm is None:
            raise RuntimeError("there is no VM")
        return self.vm


class Leaving(VmSource):
    """A VM that is sent, and then the destination's."""

    gone = False

    async def release(self) -> None:
        self.gone = True


async def main(listener: socket.socket, place: Place) -> None:
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    async with serve(Service({"web-1": place}), listener, insecure=True):
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
        await ending.wait()
    if place.vm is not None:
        await place.vm.close()


if __name__ == "__main__":
    address, *boot = sys.argv[1:]
    here = Place()
    if boot:
        here.boot(int(boot[1]), int(boot[2]))
    with open_tcp(address) as door:
        uvloop.run(main(door, here))
