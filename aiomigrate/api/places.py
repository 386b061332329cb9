"""The VMs of a service by name, and what is being done with each: one thing at a time.

There are an embedder's, which are registered, and those in a directory of stored VMs. A name of the
directory is remembered once somebody has used it, since what it is to become (`vm.resume`) is said
here only; names cost memory, whether there is such a VM or not, so the ones of which nothing was
said are forgotten again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TypeVar

from aiomigrate import Destination, Source
from aiomigrate.api.stored import NAME, StoredPlace, names_in
from aiomigrate.api.vms import Refusal, Vm, VmInfo, VmState
from aiomigrate.executor import JobExecutor
from aiomigrate.pruning import sweep_all

__all__ = ["Place", "Places", "Unknown"]

T = TypeVar("T")

_UNNAMED = "vm"
"""What the VM of a directory is called that Cloud Hypervisor's client means."""
_REMEMBERED = 1024
"""Names of stored VMs, unless more are in use: arbitrary, over what a host has."""


class Unknown(LookupError):
    """There is no VM or migration of that name. The message is a sentence."""


class Place:
    """A VM of the service, by name, and what is being done with it.

    Each call into it ends within `within` seconds, or is a Refusal.
    """

    def __init__(self, name: str, vm: Vm, within: float) -> None:
        self.name = name
        self.vm = vm
        self._within = within
        self._doing = ""
        self._before: VmInfo | None = None

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Nothing else is done with it meanwhile: Refusal if something is."""
        if self._doing:
            raise Refusal(f"The VM is {self._doing}")
        self._doing = what
        try:
            yield
        finally:
            self._doing, self._before = "", None

    @property
    def idle(self) -> bool:
        """Whether nothing is done with it."""
        return not self._doing

    async def in_time(self, what: str, hook: Awaitable[T]) -> T:
        """Wait for a call into the VM."""
        limit = asyncio.timeout(self._within)
        try:
            async with limit:
                return await hook
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Refusal(f"The VM's {what} did not return in {self._within:g} s") from error

    async def info(self) -> VmInfo | None:
        """The VM, if there is one; while it is sent or kept, as it was before."""
        return self._before or await self._info()

    async def _info(self) -> VmInfo | None:
        return await self.in_time("info", self.vm.info())

    async def require(self, state: VmState | None = None) -> VmInfo:
        """The VM. Refusal if there is none, or it is in another state."""
        info = await self._info()
        if info is None:
            raise Refusal("The VM is not created")
        if state is not None and info.state is not state:
            raise Refusal(f"The VM is {info.state}, not {state}")
        self._before = info
        return info

    async def require_none(self) -> None:
        """Refusal if there is a VM already."""
        if await self._info() is not None:
            raise Refusal("There is a VM already")

    @asynccontextmanager
    async def leaving(self, *, local: bool) -> AsyncIterator[Source]:
        """The VM for a migration away; with its memory to be given by descriptor, if `local`."""
        with self.doing("migrating"):
            self._before = await self._info()
            vm = self.vm
            opening: AbstractAsyncContextManager[Source] = (
                vm.loaded_source() if local and isinstance(vm, StoredPlace) else vm.source()
            )
            async with opening as source:
                yield source

    @asynccontextmanager
    async def arriving(self) -> AsyncIterator[Destination]:
        """The place for a migration that comes."""
        with self.doing("migrating"):
            await self.require_none()
            async with self.vm.destination() as destination:
                yield destination


class Places:
    """The VMs of `vms`, and those in the directory `stored`.

    Each call into one ends within `within` seconds, or is a Refusal.
    """

    def __init__(self, vms: Mapping[str, Vm], stored: str | None, within: float) -> None:
        self._stored = stored
        self._within = within
        self._places: dict[str, Place] = {}
        for name, vm in vms.items():
            self._add(name, vm)
        if stored is not None and not self._places:
            self._add(_UNNAMED, StoredPlace(stored))

    def _add(self, name: str, vm: Vm) -> Place:
        place = self._places[name] = Place(name, vm, self._within)
        return place

    def register(self, name: str, vm: Vm) -> None:
        """Add an embedder's VM. ValueError if the name is taken, or none."""
        if not NAME.fullmatch(name) or name in self._places:
            raise ValueError(f"{name!r} is no name, or taken")
        self._add(name, vm)

    def find(self, name: str | None) -> Place:
        """The VM that a request means. Unknown if there is none of that name."""
        if name is None:
            if not self._places:
                raise Unknown("this service has no VM")
            return next(iter(self._places.values()))
        place = self._places.get(name)
        if place is None:
            if self._stored is None or not NAME.fullmatch(name):
                raise Unknown(f"there is no VM {name!r}")
            self._forget()
            place = self._add(name, StoredPlace(self._stored, name))
        return place

    def _forget(self) -> None:
        if len(self._places) < _REMEMBERED:
            return
        for name, place in list(self._places.items()):
            if isinstance(place.vm, StoredPlace) and place.vm.as_found and place.idle:
                del self._places[name]

    async def names(self) -> list[str]:
        """The VMs that there are, and the directories that may be stored ones."""
        names = set(self._places)
        if self._stored is not None:
            with JobExecutor() as jobs:
                names.update(await jobs.run(names_in, self._stored))
        return sorted(names)

    async def sweep(self) -> None:
        """Remove what an earlier service that was killed has left of VMs on their way here.

        OSError if the directory of stored VMs cannot be read.
        """
        if self._stored is not None:
            with JobExecutor() as jobs:
                await jobs.run(sweep_all, self._stored)
