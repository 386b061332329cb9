"""What the service does, whoever asks: its VMs, their migrations, events and metrics.

    with open_unix("/run/api.sock") as listener:
        async with serve(Service({"web-1": vm}), listener):
            ...

One thing at a time is done with a VM; different VMs, and questions, never wait for one another.
Errors are the engine's, `Refusal` for what the VM's state does not allow, and `Unknown` for what is
not there.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

from aiomigrate import (
    Departure,
    Destination,
    History,
    MigrationError,
    ReceiveOptions,
    SendOptions,
    Source,
    __version__,
)
from aiomigrate.api.copying import restore, snapshot
from aiomigrate.api.events import Event, EventBus
from aiomigrate.api.lateness import Lateness
from aiomigrate.api.migrations import Entry, Migrations, log_about
from aiomigrate.api.models import (
    Info,
    MigrationInfo,
    Ping,
    ReceiveMigration,
    SendMigration,
    Settings,
    Tune,
)
from aiomigrate.api.stored import NAME, StoredPlace, names_in
from aiomigrate.api.vms import Refusal, Vm, VmInfo, VmState
from aiomigrate.executor import JobExecutor
from aiomigrate.preference import prefer
from aiomigrate.pruning import sweep_all

__all__ = ["Place", "Service", "Unknown"]

T = TypeVar("T")

_UNNAMED = "vm"
"""What the VM of a directory is called that Cloud Hypervisor's client means."""
_REMEMBERED = 1024
"""Names of stored VMs, unless more are in use: arbitrary, over what a host has."""
_CHOSEN_BY_PREFERENCE = {"downtime_ms", "throttle_cap_percent"}


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


class Service:
    """Runs migrations of `vms`, and of the stored VMs in the directory `stored`. A context manager.

    Without a name the first of `vms` is meant, or, if there is only a directory, the VM that was
    received or restored last. `sending` and `receiving` hold what requests cannot say: journal,
    deadlines, limits.
    """

    def __init__(
        self,
        vms: Mapping[str, Vm] | None = None,
        *,
        stored: str | None = None,
        sending: SendOptions | None = None,
        receiving: ReceiveOptions | None = None,
    ) -> None:
        self._places: dict[str, Place] = {}
        self._stored = stored
        self._sending = sending or SendOptions()
        for name, vm in (vms or {}).items():
            self._add(name, vm)
        if stored is not None and not self._places:
            self._add(_UNNAMED, StoredPlace(stored))
        self._receiving = receiving or ReceiveOptions()
        self.bus = EventBus()
        """Where events are published."""
        self.migrations = Migrations(self.bus)
        """Those that run, and the last that are over."""
        self.lateness = Lateness()
        """How late the event loop is."""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Also removes what an earlier service that was killed has left of VMs on their way here.

        OSError if the directory of stored VMs cannot be read.
        """
        if self._stored is not None:
            with JobExecutor() as jobs:
                await jobs.run(sweep_all, self._stored)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.lateness)
            stack.callback(self.bus.close)
            await stack.enter_async_context(self.migrations)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    # VMs

    def register(self, name: str, vm: Vm) -> None:
        """Add an embedder's VM, `vm`. ValueError if the name is taken, or none."""
        if not NAME.fullmatch(name) or name in self._places:
            raise ValueError(f"{name!r} is no name, or taken")
        self._add(name, vm)

    def _add(self, name: str, vm: Vm) -> Place:
        place = self._places[name] = Place(name, vm, self._sending.deadlines.embedder_s)
        return place

    def place(self, name: str | None) -> Place:
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
        """Names cost memory, whether there is such a VM or not."""
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

    # Cloud Hypervisor's

    def ping(self) -> Ping:
        """Who we are."""
        return Ping(
            build_version=f"aiomigrate {__version__}",
            version=__version__,
            pid=os.getpid(),
            features=["migration-progress", "cancel-migration", "tune-migration", "events"],
        )

    async def info(self, place: Place) -> Info:
        """The VM of `place`. Unknown if there is none."""
        info = await place.info()
        if info is None:
            raise Unknown("The VM is not created")
        return Info(
            config=dict(info.config),
            state=info.state,
            memory_actual_size=info.memory_actual_size,
        )

    async def pause(self, place: Place) -> None:
        """Stop the guest of `place`. Refusal if none runs."""
        with place.doing("being paused"):
            await place.require(VmState.RUNNING)
            with self._telling(place, Event.PAUSING, Event.PAUSED):
                await place.in_time("pause", place.vm.pause())

    async def resume(self, place: Place) -> None:
        """Let the guest of `place` run. Refusal if none is paused."""
        with place.doing("being resumed"):
            await place.require(VmState.PAUSED)
            with self._telling(place, Event.RESUMING, Event.RESUMED):
                await place.in_time("resume", place.vm.resume())

    async def snapshot(self, place: Place, directory: str) -> None:
        """Keep the paused VM of `place` in `directory`, a new one. Refusal if none is paused."""
        with place.doing("being kept"):
            await place.require(VmState.PAUSED)
            with self._telling(place, Event.SNAPSHOTTING, Event.SNAPSHOTTED):
                await snapshot(place.vm, directory)

    async def restore(self, place: Place, directory: str, *, resumes: bool) -> None:
        """Have the stored VM of `directory` at `place`, running if it `resumes`. Refusal if there
        is a VM already.
        """
        with place.doing("being restored"):
            await place.require_none()
            with self._telling(place, Event.RESTORING, Event.RESTORED):
                if isinstance(place.vm, StoredPlace):
                    await place.vm.adopt(directory, VmState.RUNNING if resumes else VmState.PAUSED)
                else:
                    await restore(place.vm, directory, resumes=resumes)

    @contextmanager
    def _telling(self, place: Place, before: Event, after: Event) -> Iterator[None]:
        self.bus.publish(before, {"vm": place.name})
        yield
        self.bus.publish(after, {"vm": place.name})

    async def send(self, place: Place, asked: SendMigration) -> Entry:
        """Begin to migrate the VM of `place` away, as `asked`. Refusal for what its state does not
        allow, UsageError for options that cannot be meant.
        """
        options = replace(
            self._sending,
            local=asked.local,
            connections=asked.connections,
            dialect=asked.dialect,
            downtime_ms=asked.downtime_ms,
            timeout_s=asked.timeout_s,
            timeout_strategy=asked.strategy,
            rate_limit=asked.rate_limit,
            throttle_cap_percent=asked.throttle_cap_percent,
            fast_switchover=asked.fast_switchover,
            tls_dir=asked.tls_dir or self._sending.tls_dir,
        )
        notes = []
        if asked.prefer is not None:
            told = asked.model_fields_set & _CHOSEN_BY_PREFERENCE
            options, chosen = prefer(asked.prefer, options, told)
            notes.append(chosen)
        entry = await self.migrations.send(
            place.name, place.leaving(local=asked.local), asked.destination_url, options, notes
        )
        for note in notes:
            log_about(entry, logging.INFO, note)
        return entry

    async def receive(self, place: Place, asked: ReceiveMigration) -> Entry:
        """Begin to receive a VM at `place`, as `asked`: somebody listens. Refusal if there is a VM
        already, UsageError for options that cannot be meant.
        """
        options = replace(self._receiving, tls_dir=asked.tls_dir or self._receiving.tls_dir)
        return await self.migrations.receive(
            place.name, place.arriving(), asked.receiver_url, options
        )

    # Ours

    def migration(self, name: str | None, vm: str | None) -> Entry:
        """A migration by its id, `name`, or the newest one of `vm`. Unknown if there is none."""
        if name is not None:
            entry = self.migrations.find(name)
        else:
            entry = self.migrations.latest_of(self.place(vm).name)
        if entry is None:
            raise Unknown(f"there is no migration {name!r}" if name else "there is no migration")
        return entry

    async def cancel(self, entry: Entry) -> None:
        """Cancel `entry`, and wait until the VM is where it was. Refusal if that is too late."""
        if entry.migration is None or entry.over.is_set():
            raise Refusal(f"{entry.id}: the migration is over: {entry.state}")
        if not entry.migration.cancel():
            raise Refusal(f"{entry.id}: too late to cancel: the VM is changing hands")
        await entry.over.wait()
        if entry.report is not None:
            raise Refusal(f"{entry.id}: too late to cancel: the migration is done")

    def tune(self, entry: Entry, asked: Tune) -> None:
        """Change `entry`, a migration that runs, as `asked`. UsageError for a value that cannot be
        meant, Refusal if it cannot be changed (any more).
        """
        migration = entry.migration
        if not isinstance(migration, Departure):
            raise Refusal(f"{entry.id}: a migration is changed at its source")
        try:
            migration.tune(
                downtime_ms=asked.downtime_ms,
                rate_limit=asked.rate_limit,
                throttle_cap_percent=asked.throttle_cap_percent,
            )
            if asked.switch_over_now:
                migration.switch_over_now()
        except MigrationError as error:
            raise Refusal(f"{entry.id}: {error}") from error
        changes = asked.model_dump(exclude_none=True, exclude_defaults=True)
        log_about(entry, logging.INFO, f"changed: {changes}")
        self.bus.publish(
            Event.TUNED,
            {"migration": entry.id, "vm": entry.vm}
            | {name: str(value) for name, value in changes.items()},
        )

    def describe(self, entry: Entry, *, in_list: bool = False) -> MigrationInfo:
        """A migration, `entry`, as a client sees it; `in_list` without its course over time, which
        is long.
        """
        account, report = None, entry.report
        if in_list:
            report = None if report is None else replace(report, history=History())
        elif report is None and entry.migration is not None:
            account = entry.migration.account()
        settings = None
        if isinstance(entry.migration, Departure):
            settings = Settings.model_validate(entry.migration.options, from_attributes=True)
        return MigrationInfo(
            id=entry.id,
            vm=entry.vm,
            direction=entry.direction,
            url=entry.url,
            state=entry.state,
            began=entry.began,
            ended=entry.ended,
            owner=entry.owner,
            error=None if entry.failure is None else str(entry.failure),
            notes=entry.notes,
            settings=settings,
            progress=entry.progress,
            account=account,
            report=report,
        )
