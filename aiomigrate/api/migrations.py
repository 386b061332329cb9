"""The migrations of a service: each runs in a task of its own, is listed, and can be changed.

A migration belongs to the service, not to the request that asked for it: a client that goes away
changes nothing. Ended ones stay in the list, the newest `KEPT`. When the service ends, what can be
cancelled is; where a VM is changing hands, its end is waited for (the engine's deadlines bound it).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import Self, TypeAlias

from aiomigrate import (
    Destination,
    Migration,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    Phase,
    Progress,
    ReceiveOptions,
    Report,
    SendOptions,
    Source,
    StoredSource,
    receive,
    send,
)
from aiomigrate.api.events import Event, EventBus
from aiomigrate.api.vms import Refusal
from aiomigrate.tasks import settle

__all__ = ["Direction", "Entry", "Migrations", "State", "log_about"]

log = logging.getLogger("aiomigrate.api")

KEPT = 64
"""Ended migrations in the list. Encoding so many with their reports holds the event loop up for
3 ms, and for 20 if each of them made as many decisions as are kept."""
FIGURES = ("bytes_done", "ranges", "zero_bytes", "lanes_lost", "chunks_resent")
"""Of `Progress`: what adds up over migrations."""
_TELL_S = 1.0
"""Between two progress events of a migration: what a person or a chart follows."""


class Direction(StrEnum):
    """Which side of it we are."""

    SEND = "send"
    RECEIVE = "receive"


class State(StrEnum):
    """How a migration stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    """It is unknown who has the VM."""


_Run: TypeAlias = Callable[[asyncio.Future[None]], Awaitable[None]]
"""Runs one migration; the future is told once it has begun."""

_EVENTS = {
    Direction.SEND: (Event.MIGRATION_STARTED, Event.MIGRATION_FINISHED, Event.MIGRATION_FAILED),
    Direction.RECEIVE: (Event.RECEIVE_STARTED, Event.RECEIVE_FINISHED, Event.RECEIVE_FAILED),
}


@dataclass(eq=False, slots=True)
class Entry:
    """One migration of the list."""

    direction: Direction
    vm: str
    url: str
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended: datetime | None = None
    state: State = State.RUNNING
    owner: Owner | None = None
    """Who has the VM, once it has ended."""
    failure: MigrationError | None = None
    report: Report | None = None
    runs: bool | None = None
    """Whether the guest runs at the source until it is paused; None at a destination."""
    notes: list[str] = field(default_factory=list)
    """What was chosen for it."""
    migration: Migration | None = None
    """Once it has begun."""
    first_id: str = ""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _last: Progress | None = None

    @property
    def progress(self) -> Progress | None:
        """What it does right now, or how far it came; None before it begins."""
        if self._last is not None or self.migration is None:
            return self._last
        return self.migration.progress

    def end(self) -> None:
        """Nothing changes any more."""
        self.ended, self._last = datetime.now(UTC), self.progress
        self.over.set()

    @property
    def id(self) -> str:
        """As journals and logs have it; a received one's changes once its source has named it."""
        return self.first_id if self.migration is None else self.migration.id

    def is_called(self, name: str) -> bool:
        """Whether `name` is its id, or was at the beginning."""
        return name in {self.id, self.first_id}


class Migrations:
    """All migrations of a service. A context manager: none outlives it."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._entries: list[Entry] = []
        self._tasks: dict[asyncio.Task[None], Entry] = {}
        self._ending = False
        self._past: Counter[tuple[Direction, str]] = Counter()
        """Figures of those that are not in the list any more."""

    def __iter__(self) -> Iterator[Entry]:
        """Oldest first."""
        return iter(self._entries)

    def find(self, name: str) -> Entry | None:
        """The migration with this id."""
        return next((entry for entry in reversed(self._entries) if entry.is_called(name)), None)

    def latest_of(self, vm: str) -> Entry | None:
        """The newest migration of a VM, running or not."""
        return next((entry for entry in reversed(self._entries) if entry.vm == vm), None)

    def totals(self) -> Counter[tuple[Direction, str]]:
        """What all migrations since the beginning add up to, by direction and figure: what
        `Progress` counts, `iterations`, and how many ended in each `State`.
        """
        total = self._past.copy()
        for entry in self._entries:
            total.update(_figures(entry))
        return total

    async def send(
        self,
        vm: str,
        opening: AbstractAsyncContextManager[Source],
        url: str,
        options: SendOptions,
        notes: list[str],
    ) -> Entry:
        """Begin to send; the entry once the VM is opened and the migration runs.

        Raises what opening it raises, and UsageError for options that cannot be meant together.
        """
        entry = Entry(Direction.SEND, vm, url, notes=notes)

        async def run(started: asyncio.Future[None]) -> None:
            async with opening as source, send(source, url, options) as migration:
                entry.runs = source.resumes and not isinstance(source, StoredSource)
                await self._follow(entry, migration, started)

        await self._start(entry, run)
        return entry

    async def receive(
        self,
        vm: str,
        opening: AbstractAsyncContextManager[Destination],
        url: str,
        options: ReceiveOptions,
    ) -> Entry:
        """Begin to receive; the entry once somebody listens. Raises what that raises."""
        entry = Entry(Direction.RECEIVE, vm, url)

        async def run(started: asyncio.Future[None]) -> None:
            async with opening as destination, receive(destination, url, options) as migration:
                entry.url = str(migration.address)
                await self._follow(entry, migration, started)

        await self._start(entry, run)
        return entry

    async def _start(self, entry: Entry, run: _Run) -> None:
        if self._ending:
            raise Refusal("The service is ending")
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(entry, run, started))
        self._tasks[task] = entry
        task.add_done_callback(self._tasks.pop)
        # A client that has gone meanwhile does not end it.
        await asyncio.shield(started)

    async def _run(self, entry: Entry, run: _Run, started: asyncio.Future[None]) -> None:
        try:
            await run(started)
        except asyncio.CancelledError as error:  # by the service's end
            if started.done():
                self._end(entry, error)
            else:
                started.cancel()
            raise
        except Exception as error:
            if started.done():
                self._end(entry, error)
            else:  # nothing was begun: it is the request that failed
                started.set_exception(error)
                started.exception()  # told to whoever still waits for it
        else:
            self._end(entry, None)

    async def _follow(
        self, entry: Entry, migration: Migration, started: asyncio.Future[None]
    ) -> None:
        entry.migration, entry.first_id = migration, migration.id
        self._entries.append(entry)
        self._forget()
        started.set_result(None)
        receiving = entry.direction is Direction.RECEIVE
        self._tell(Event.RECEIVE_READY if receiving else Event.MIGRATION_STARTED, entry)
        log_about(entry, logging.INFO, f"{entry.direction} of {entry.vm} begins: {entry.url}")
        told = asyncio.get_running_loop().time()
        before: Progress | None = None
        async for progress in migration:
            self._tell_changes(entry, before, progress)
            before = progress
            if (now := asyncio.get_running_loop().time()) - told >= _TELL_S:
                told = now
                self._tell(Event.PROGRESS, entry, progress=progress.as_dict())
        entry.report = await migration.result()

    def _tell_changes(self, entry: Entry, before: Progress | None, now: Progress) -> None:
        for number in range(_passes(entry, before), _passes(entry, now)):
            self._tell(Event.MIGRATION_ITERATION, entry, id=str(number))
        phase = None if before is None else before.phase
        if now.phase is not phase:
            self._tell(Event.PHASE, entry, phase=now.phase.value)
            if phase is Phase.WAITING and now.phase is not Phase.FAILED:
                self._tell(Event.RECEIVE_STARTED, entry)

    def _end(self, entry: Entry, error: BaseException | None) -> None:
        """What became of it: an error after the report is one of putting things away."""
        _, finished, failed = _EVENTS[entry.direction]
        if entry.report is not None:
            entry.state, entry.owner = State.DONE, entry.report.owner
            if error is not None:
                log_about(entry, logging.WARNING, f"it is done, but: {error!r}")
                entry.notes.append(f"it is done, but: {error!r}")
            log_about(entry, logging.INFO, f"{entry.direction} of {entry.vm} is done")
            self._tell(finished, entry)
        else:
            entry.failure = _as_failure(error)
            entry.state, entry.owner = _state_of(entry.failure), entry.failure.owner
            level = logging.INFO if entry.state is State.CANCELLED else logging.WARNING
            log_about(entry, level, str(entry.failure))
            self._tell(failed, entry, error=str(entry.failure), state=entry.state.value)
        entry.end()

    def _tell(self, event: Event, entry: Entry, **properties: object) -> None:
        about = {"migration": entry.id, "vm": entry.vm, "url": entry.url}
        self._bus.publish(event, about | properties)

    def _forget(self) -> None:
        ended = [entry for entry in self._entries if entry.over.is_set()]
        for entry in ended[: max(0, len(ended) - KEPT)]:
            self._entries.remove(entry)
            self._past.update(_figures(entry))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending = True
        cancelled = False
        for task, entry in list(self._tasks.items()):
            if entry.migration is None:
                task.cancel()
            else:
                entry.migration.cancel()
        for task in list(self._tasks):
            cancelled |= await settle(task)
        if cancelled:
            raise asyncio.CancelledError


def log_about(entry: Entry, level: int, message: str) -> None:
    """Our own tasks are none of the migration's: the record is told what it is about."""
    phase = "" if entry.progress is None else entry.progress.phase.value
    about = {"migration": entry.id, "connection": "-", "phase": phase}
    log.log(level, "%s", message, extra=about)


def _figures(entry: Entry) -> dict[tuple[Direction, str], int]:
    found: dict[str, int] = {}
    if entry.progress is not None:
        found = {name: getattr(entry.progress, name) for name in FIGURES}
        begun = entry.progress.bytes_done or entry.progress.zero_bytes
        found["iterations"] = entry.progress.iteration + 1 if begun else 0
    if entry.over.is_set():
        found[entry.state.value] = 1
    return {(entry.direction, name): value for name, value in found.items()}


def _passes(entry: Entry, progress: Progress | None) -> int:
    """How many passes over memory a source has begun while its guest ran.

    Cloud Hypervisor tells of those only. The last one, with the guest paused, has a number of its
    own unless there was nothing to move; that is not known here, and taken to be so.
    """
    if entry.direction is Direction.RECEIVE or progress is None:
        return 0
    match progress.phase:
        case Phase.PRECOPY:
            return progress.iteration + 1
        case Phase.SWITCHOVER | Phase.COMPLETING | Phase.DONE:
            return max(progress.iteration, 1)
        case _:
            return 0


def _as_failure(error: BaseException | None) -> MigrationError:
    """How a migration without a report ended; what is no MigrationError happened before Complete,
    or the engine would have said so.
    """
    match error:
        case MigrationError():
            return error
        case asyncio.CancelledError():
            return MigrationCancelled("cancelled with the service")
        case _:
            return MigrationFailed(f"the service: {error!r}")


def _state_of(failure: MigrationError) -> State:
    match failure:
        case MigrationCancelled():
            return State.CANCELLED
        case OutcomeUnknown():
            return State.UNKNOWN
        case _:
            return State.FAILED
