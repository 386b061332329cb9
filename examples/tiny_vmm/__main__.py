"""A VMM at a terminal: python -m examples.tiny_vmm run | receive ADDRESS | restore ADDRESS

It prints what the guest writes to its serial line, and takes commands on its standard input:

    send ADDRESS [CONNECTIONS [DOWNTIME_MS]]
                      migrate the guest to a VMM that receives, at tcp:HOST:PORT
    local ADDRESS     the same by descriptor, at unix:PATH, to `aiomigrate offload snapshot`, too
    receive ADDRESS   take a guest once this one is gone, at tcp:0.0.0.0:6000 or unix:PATH
    restore ADDRESS   take one that `aiomigrate offload restore --on-demand` brings to unix:PATH
    reset, off        press the guest's power button
    quit              end; so does the end of the input
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import suppress

import aiomigrate
from aiomigrate.protocol import ProtocolError
from aiomigrate.tiny_vmm.guest import POWER_OFF, RESET, Work
from aiomigrate.tiny_vmm.kvm import why_unusable
from aiomigrate.tiny_vmm.migrate import VmDestination, VmSource
from aiomigrate.tiny_vmm.restoring import restore_on_demand
from aiomigrate.tiny_vmm.userfaultfd import UserfaultfdUnusable
from aiomigrate.tiny_vmm.vmm import Vm, make_config
from aiomigrate.transport import TransportError, listen, parse_address

MIB = 1 << 20
_FAILURES = (
    aiomigrate.MigrationError,
    aiomigrate.UsageError,
    ProtocolError,
    TransportError,
    UserfaultfdUnusable,
    ValueError,
)


class Screen:
    """Where the serial line ends."""

    def write(self, text: str) -> None:
        say(f"| {text.rstrip()}")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")  # in one piece: the CPU's thread says something, too
    sys.stdout.flush()


class Console:
    """One machine at a time, and who types."""

    vm: Vm | None = None
    _watching: asyncio.Task[None]

    def hold(self, vm: Vm) -> None:
        """Have a machine that runs."""
        self.vm = vm
        self._watching = asyncio.create_task(self._watch(vm))

    async def drop(self) -> None:
        """End it here."""
        if self.vm is not None:
            vm, self.vm = self.vm, None
            self._watching.cancel()
            await vm.close()

    async def _watch(self, vm: Vm) -> None:
        try:
            say(f"the guest has ended: {await vm.ended()}")
        except Exception as error:
            say(f"the guest has ended: {error}")

    async def obey(self, command: str) -> None:
        """Do what was typed."""
        match command.split():
            case ["send", address, *rest] if self.vm and len(rest) < 3:
                await self.send(self.vm, address, *map(int, rest))
            case ["local", address] if self.vm:
                await self.send(self.vm, address, local=True)
            case ["receive" | "restore", _] if self.vm:
                say("not now: a guest is here, and none is migrated to where it is")
            case ["receive", address]:
                await self.receive(address)
            case ["restore", address]:
                await self.restore(address)
            case ["reset"] if self.vm:
                self.vm.press(RESET)
            case ["off"] if self.vm:
                self.vm.press(POWER_OFF)
            case _:
                say(f"not now, or not understood: {command.strip()}")

    async def send(
        self,
        vm: Vm,
        address: str,
        connections: int = 1,
        downtime_ms: int = 300,
        *,
        local: bool = False,
    ) -> None:
        """Migrate the guest; it runs on here if that fails."""
        options = aiomigrate.SendOptions(
            connections=connections, downtime_ms=downtime_ms, local=local
        )
        async with aiomigrate.send(VmSource(vm), address, options) as migration:
            report = await migration.result()
        await self.drop()
        say(
            f"sent: {report.bytes / MIB:.1f} MiB in {report.iterations} iterations, "
            f"downtime {report.downtime_ms:.1f} ms; the {report.owner} has the guest"
        )

    async def receive(self, address: str) -> None:
        """Take the first guest that comes."""
        destination = VmDestination(Screen())
        async with aiomigrate.receive(destination, address) as migration:
            say(f"listening on {migration.address}")
            await migration.result()
        if destination.vm is not None:
            self.hold(destination.vm)
            say("received: the guest runs here")

    async def restore(self, address: str) -> None:
        """Take a guest that runs at once, and whose memory comes meanwhile."""
        listener = await listen(parse_address(address, listening=True))
        try:
            say(f"listening on {listener.address}")
            vm = await restore_on_demand(listener, Screen())
        finally:
            listener.close()
        self.hold(vm)
        say("restored: the guest runs here")
        await vm.settled()
        say("all of its memory is here")


async def main(options: argparse.Namespace) -> None:
    console = Console()
    if options.command == "run":
        size = options.memory_mib * MIB
        vm = Vm(make_config(options.cpu, size, options.tick_ms / 1000), Screen())
        vm.load(Work(first=MIB, end=size, batch=options.batch))
        vm.resume()
        console.hold(vm)
        commands = []
    else:
        commands = [f"{options.command} {options.address}"]
    typed = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(typed), sys.stdin)
    try:
        while command := commands.pop() if commands else (await typed.readline()).decode():
            if command.strip() == "quit":
                break
            try:
                await console.obey(command)
            except _FAILURES as error:
                say(f"failed: {error}")
    finally:
        await console.drop()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.tiny_vmm")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="begin with a guest of this machine's own")
    run.add_argument("--cpu", choices=["kvm", "thread"], help="kvm where it can be used")
    run.add_argument("--memory-mib", type=int, default=64)
    run.add_argument("--batch", type=int, default=64, help="pages written between two ticks")
    run.add_argument("--tick-ms", type=float, default=10.0, help="from tick to tick of its timer")
    receive = commands.add_parser("receive", help="begin with a guest that comes")
    restore = commands.add_parser("restore", help="begin with one whose memory comes later")
    for command in (receive, restore):
        command.add_argument("address")
    options = parser.parse_args()
    if options.command == "run" and options.cpu is None:
        options.cpu = "thread" if why_unusable() else "kvm"
    return options


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # it has been cleaned up
        asyncio.run(main(parse()))
