"""What the service does with its VMs, whoever asks; events tell of it.

    with open_unix("/run/api.sock") as listener:
        async with serve(Service({"web-1": vm}), listener):
            ...

One thing at a time is done with a VM; different VMs, and questions, never wait for one another.
Errors are the engine's, `Refusal` for what the VM's state does not allow, and `Unknown` for what is
not there.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from aiomigrate import (
    Departure,
    History,
    MigrationError,
    ReceiveOptions,
    SendOptions,
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
from aiomigrate.api.places import Place, Places, Unknown
from aiomigrate.api.stored import StoredPlace
from aiomigrate.api.vms import Refusal, Vm, VmState
from aiomigrate.preference import prefer

__all__ = ["Service"]

_CHOSEN_BY_PREFERENCE = {"downtime_ms", "throttle_cap_percent"}


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
        self._sending = sending or SendOptions()
        self._receiving = receiving or ReceiveOptions()
        self.places = Places(vms or {}, stored, self._sending.deadlines.embedder_s)
        """The VMs."""
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
        await self.places.sweep()
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

    def register(self, name: str, vm: Vm) -> None:
        """Add an embedder's VM, `vm`. ValueError if the name is taken, or none."""
        self.places.register(name, vm)

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
            entry = self.migrations.latest_of(self.places.find(vm).name)
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
            runs=entry.runs,
            owner=entry.owner,
            error=None if entry.failure is None else str(entry.failure),
            notes=entry.notes,
            settings=settings,
            progress=entry.progress,
            account=account,
            report=report,
        )
