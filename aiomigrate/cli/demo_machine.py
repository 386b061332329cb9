"""One of the demo's two processes: a tiny VMM that is told what to do on its standard input.

`python -m aiomigrate.cli.demo_machine boot BYTES CPU | receive ADDRESS`: the first runs a guest and
sends it when it reads a line `ADDRESS CONNECTIONS RATE_LIMIT`, the second takes it and runs it.
Both tell by JSON lines what happens, each line of the guest's serial port among it, and end when
their input does: the guest is theirs as long as the demo lasts.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from aiomigrate import MigrationError, SendOptions, TimeoutStrategy, receive, send
from aiomigrate.cli.output import JsonLines, Output
from aiomigrate.cli.running import follow
from aiomigrate.cli.status import sentence_of
from aiomigrate.tiny_vmm.guest import Work
from aiomigrate.tiny_vmm.migrate import VmDestination, VmSource
from aiomigrate.tiny_vmm.vmm import Vm, make_config

__all__ = ["BATCH_PAGES", "FIRST_BYTE", "TICK_S"]

FIRST_BYTE = 1 << 20
"""Where the pages begin that the guest looks after: all memory from there on."""
TICK_S = 0.01
BATCH_PAGES = 512
"""200 MiB/s at the most: a fraction of what a loopback connection moves, so that it converges."""
_DOWNTIME_MS = 30
"""A tenth of the default: there is an iteration more to see."""
_TIMEOUT_S = 20
"""A machine that is too slow for this guest moves it all the same, with a longer pause."""
_NOISE_BYTES = 1 << 20


class _Serial:
    """Tells lines of the guest, which its CPU's thread writes."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._loop = asyncio.get_running_loop()

    def write(self, text: str) -> None:
        """One line, with its end."""
        self._loop.call_soon_threadsafe(self._tell, text.rstrip())

    def _tell(self, line: str) -> None:
        self._output.tell("serial", line=line)


@asynccontextmanager
async def _watched(vm: Vm, output: Output) -> AsyncIterator[None]:
    """Tell if the guest ends by itself."""

    async def tell() -> None:
        try:
            output.tell("ended", how=str(await vm.ended()))
        except (OSError, RuntimeError) as error:  # its CPU cannot go on
            output.tell("ended", how=str(error))

    watching = asyncio.create_task(tell())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _typed() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _boot(output: Output, size: int, cpu: str) -> None:
    """Run a guest in memory full of noise, and send it when told to."""
    commands = await _typed()
    async with Vm(make_config(cpu, size, TICK_S), _Serial(output)) as vm:
        noise = os.urandom(_NOISE_BYTES)
        for address in range(FIRST_BYTE, size, _NOISE_BYTES):
            vm.ram.memory[address : address + _NOISE_BYTES] = noise
        vm.load(Work(first=FIRST_BYTE, end=size, batch=BATCH_PAGES))
        vm.resume()
        output.tell("running", pid=os.getpid())
        async with _watched(vm, output):
            command = (await commands.readline()).decode().split()
        if command:
            destination, connections, rate_limit = command
            options = SendOptions(
                connections=int(connections),
                downtime_ms=_DOWNTIME_MS,
                timeout_s=_TIMEOUT_S,
                timeout_strategy=TimeoutStrategy.IGNORE,
                rate_limit=int(rate_limit),
            )
            async with send(VmSource(vm), destination, options) as migration:
                output.tell("report", **(await follow(migration, output)).as_dict())
        await commands.read()


async def _receive(output: Output, address: str) -> None:
    """Take a guest, and run it."""
    commands = await _typed()
    destination = VmDestination(_Serial(output))
    async with receive(destination, address) as migration:
        output.tell("listening", address=str(migration.address), pid=os.getpid())
        report = await follow(migration, output)
    output.tell("report", **report.as_dict())
    if destination.vm is not None:
        async with destination.vm as vm, _watched(vm, output):
            await commands.read()


def main(command: str, *arguments: Any) -> int:
    """Be one of them; the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the demo's, which ends our input
    with Output(JsonLines()) as output:
        try:
            if command == "boot":
                size, cpu = arguments
                uvloop.run(_boot(output, int(size), cpu))
            else:
                (address,) = arguments
                uvloop.run(_receive(output, address))
        except (MigrationError, OSError, RuntimeError) as error:
            output.tell("error", error=sentence_of(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
