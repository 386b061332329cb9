"""The two ends of a migration of a Vm: what aiomigrate asks of it, in the order that it asks."""

from __future__ import annotations

from collections.abc import Mapping

from aiomigrate import GuestMemory, VmConfig
from aiomigrate.tiny_vmm.devices import Output
from aiomigrate.tiny_vmm.vmm import Vm

__all__ = ["VmDestination", "VmSource"]


class VmSource:
    """An `aiomigrate.Source`, and `Throttled`: a Vm that is migrated away. It stays the caller's to
    close.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.resumes = vm.runs  # at the destination, if it does so here
        self.memory = vm.memory
        self.dirty = vm.dirty

    async def config(self) -> bytes:
        await self._vm.settled()
        return self._vm.config.raw

    async def pause(self) -> None:
        await self._vm.pause()

    async def capture(self) -> bytes:
        return self._vm.capture()

    async def hand_over(self, destination: str) -> None:
        """Here disks would be unlocked."""

    async def take_back(self, reason: BaseException) -> None:
        """Here they would be locked again."""

    async def resume(self) -> None:
        if self.resumes:
            self._vm.resume()

    async def release(self) -> None:
        """It is paused, and never resumed."""

    async def lost(self, reason: BaseException) -> None:
        """It stays paused: it may run at the destination."""

    async def throttle(self, percent: int) -> None:
        self._vm.throttle_percent = percent


class VmDestination:
    """An `aiomigrate.Destination`, and `TakesMemory`: makes a Vm, in `vm` once it is ours, for the
    caller to close.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self.vm: Vm | None = None

    async def configure(self, config: VmConfig, source: str) -> GuestMemory:
        self.vm = Vm(config, self._output)
        return self.vm.memory

    async def adopt(self, config: VmConfig, source: str, fds: Mapping[int, int]) -> None:
        self.vm = Vm(config, self._output, fds[0])

    async def restore(self, state: bytes) -> None:
        self._made.restore(state)

    async def resume(self) -> None:
        self._made.resume()

    async def keep_paused(self) -> None:
        """It does not run before it is resumed."""

    async def confirmed(self) -> None:
        """The source has ended its VM."""

    async def discard(self, reason: BaseException) -> None:
        if self.vm is not None:  # configuring may have failed
            await self.vm.close()
            self.vm = None

    @property
    def _made(self) -> Vm:
        if self.vm is None:
            raise RuntimeError("no VM was configured")
        return self.vm
