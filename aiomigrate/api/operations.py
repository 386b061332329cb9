"""The operations that the service offers over HTTP: one table, of which requests are served and
the OpenAPI document is made.

On Cloud Hypervisor's own paths errors have its statuses: 400 for a body that cannot be meant, 404
where there is no VM to tell about, and 500, as `Refused`, for all that the VM's state does not
allow. On ours that is 409.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from pydantic import BaseModel

from aiomigrate import JournalError, MigrationError, StoredVmError, UsageError
from aiomigrate.api.answers import Failure, refused
from aiomigrate.api.migrations import Entry
from aiomigrate.api.models import (
    Info,
    Listing,
    MigrationInfo,
    Names,
    Ping,
    ProgressInfo,
    ReceiveMigration,
    Restore,
    SendMigration,
    Snapshot,
    Tune,
)
from aiomigrate.api.places import Place, Unknown
from aiomigrate.api.service import Service
from aiomigrate.api.vms import Refusal
from aiomigrate.transport import TransportError

__all__ = ["BASE", "OPERATIONS", "QUERY", "Call", "Done", "Operation"]

log = logging.getLogger("aiomigrate.api")

BASE = "/api/v1"
QUERY = {
    "vm": "The VM's name. Without it the one that this service has, or had last, is meant.",
    "migration": "A migration's id. Without it the newest one of the VM is meant.",
}
_EXPECTED = (
    Refusal, UsageError, StoredVmError, MigrationError, JournalError, TransportError, OSError,
)  # fmt: skip
"""Errors whose text is meant for people."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request for an operation, read."""

    service: Service
    vm: str | None
    migration: str | None
    body: BaseModel | None

    @property
    def place(self) -> Place:
        """The VM that is meant."""
        return self.service.places.find(self.vm)

    @property
    def entry(self) -> Entry:
        """The migration that is meant."""
        return self.service.migration(self.migration, self.vm)


@dataclass(frozen=True, slots=True)
class Done:
    """What came of it."""

    body: BaseModel | None = None
    location: str | None = None
    """Of the migration that was begun."""


B = TypeVar("B", bound=BaseModel)
Handler: TypeAlias = Callable[[Call], Awaitable[Done]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    method: str
    name: str
    """Of the path, behind `BASE`."""
    summary: str
    run: Handler
    failing: str = ""
    """Cloud Hypervisor's sentence for a failure; empty: the operation is not one of its."""
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    asks: frozenset[str] = frozenset({"vm"})
    """Which of `QUERY` can be given."""

    @property
    def path(self) -> str:
        """The whole path."""
        return f"{BASE}/{self.name}"

    async def __call__(self, call: Call) -> Done:
        """Run it; whatever it meets is raised as a Failure."""
        try:
            return await self.run(call)
        except Unknown as error:
            raise Failure(404, *self._outer(), str(error.args[0])) from error
        except Exception as error:
            why = str(error)
            if not isinstance(error, _EXPECTED):
                log.exception("%s %s", self.method, self.path)
                why = repr(error)
            if self.failing:
                raise refused(self.failing, why) from error
            if isinstance(error, UsageError):
                raise Failure(400, why) from error
            if isinstance(error, Refusal):
                raise Failure(409, why) from error
            raise Failure(500, why) from error

    def _outer(self) -> list[str]:
        return ["Error from API", self.failing] if self.failing else []


async def _ping(call: Call) -> Done:
    return Done(call.service.ping())


async def _info(call: Call) -> Done:
    return Done(await call.service.info(call.place))


async def _pause(call: Call) -> Done:
    await call.service.pause(call.place)
    return Done()


async def _resume(call: Call) -> Done:
    await call.service.resume(call.place)
    return Done()


async def _snapshot(call: Call) -> Done:
    body = _body(call, Snapshot)
    await call.service.snapshot(call.place, _directory(body.destination_url))
    return Done()


async def _restore(call: Call) -> Done:
    body = _body(call, Restore)
    await call.service.restore(call.place, _directory(body.source_url), resumes=body.resume)
    return Done()


async def _send(call: Call) -> Done:
    entry = await call.service.send(call.place, _body(call, SendMigration))
    return Done(location=entry.id)


async def _receive(call: Call) -> Done:
    entry = await call.service.receive(call.place, _body(call, ReceiveMigration))
    await entry.over.wait()
    if entry.failure is not None:
        raise Refusal(str(entry.failure))
    return Done(location=entry.id)


async def _progress(call: Call) -> Done:
    entry = call.entry
    return Done(ProgressInfo(migration=entry.id, progress=entry.progress))


async def _cancel(call: Call) -> Done:
    entry = call.entry
    await call.service.cancel(entry)
    return Done(call.service.describe(entry))


async def _tune(call: Call) -> Done:
    call.service.tune(call.entry, _body(call, Tune))
    return Done()


async def _migrations(call: Call) -> Done:
    entries = call.service.migrations
    return Done(Listing([call.service.describe(entry, in_list=True) for entry in entries]))


async def _migration(call: Call) -> Done:
    return Done(call.service.describe(call.entry))


async def _vms(call: Call) -> Done:
    return Done(Names(await call.service.places.names()))


def _body(call: Call, kind: type[B]) -> B:
    """The body, which was read as the operation's table entry says."""
    if not isinstance(call.body, kind):
        raise TypeError(f"the body of this operation is no {kind.__name__}")
    return call.body


def _directory(url: str) -> str:
    """The path in a `file://` URL, taken literally, as Cloud Hypervisor does."""
    path = url.removeprefix("file://")
    if path == url or not path.startswith("/") or "\0" in path:
        raise Refusal(f"{url!r} is not file:// and an absolute path")
    return path


_BOTH = frozenset(QUERY)
_NONE: frozenset[str] = frozenset()

OPERATIONS = (
    Operation(
        method="GET",
        name="vmm.ping",
        summary="Who answers",
        run=_ping,
        failing="The VMM could not be pinged",
        answer=Ping,
        asks=_NONE,
    ),
    Operation(
        method="GET",
        name="vm.info",
        summary="The VM; while it is migrated away, as it was before",
        run=_info,
        failing="The VM info is not available",
        answer=Info,
    ),
    Operation(
        method="PUT",
        name="vm.pause",
        summary="Pause the guest",
        run=_pause,
        failing="The VM could not be paused",
    ),
    Operation(
        method="PUT",
        name="vm.resume",
        summary="Let the guest run",
        run=_resume,
        failing="The VM could not resume",
    ),
    Operation(
        method="PUT",
        name="vm.snapshot",
        summary="Keep the paused VM as a stored VM",
        run=_snapshot,
        failing="The VM could not be snapshotted",
        body=Snapshot,
    ),
    Operation(
        method="PUT",
        name="vm.restore",
        summary="Have a stored VM here",
        run=_restore,
        failing="The VM could not be restored",
        body=Restore,
    ),
    Operation(
        method="PUT",
        name="vm.send-migration",
        summary="Begin to migrate the VM away; what becomes of it is told elsewhere",
        run=_send,
        failing="Error starting migration sender",
        body=SendMigration,
    ),
    Operation(
        method="PUT",
        name="vm.receive-migration",
        summary="Receive a VM; the answer comes when it is here",
        run=_receive,
        failing="Error starting migration receiver",
        body=ReceiveMigration,
    ),
    Operation(
        method="GET",
        name="vm.migration-progress",
        summary="How far a migration is",
        run=_progress,
        answer=ProgressInfo,
        asks=_BOTH,
    ),
    Operation(
        method="PUT",
        name="vm.cancel-migration",
        summary="Cancel a migration; the answer comes when the VM is where it was",
        run=_cancel,
        answer=MigrationInfo,
        asks=_BOTH,
    ),
    Operation(
        method="PUT",
        name="vm.tune-migration",
        summary="Change a running migration at its source",
        run=_tune,
        body=Tune,
        asks=_BOTH,
    ),
    Operation(
        method="GET",
        name="vm.migration",
        summary="A migration, running or ended, with its report",
        run=_migration,
        answer=MigrationInfo,
        asks=_BOTH,
    ),
    Operation(
        method="GET",
        name="vm.migrations",
        summary="All migrations, the ended ones with their reports, oldest first",
        run=_migrations,
        answer=Listing,
        asks=_NONE,
    ),
    Operation(
        method="GET",
        name="vmm.vms",
        summary="The names of all VMs",
        run=_vms,
        answer=Names,
        asks=_NONE,
    ),
)
