"""The journal as one side of a running migration keeps it.

The first record, of what may become of the VM, is written while the migration goes on and has to
be durable before it can become true: a journal that cannot be written ends the migration while
the VM is still the source's. What did become of it is written afterwards, and a journal that
cannot take that is a warning: the VM is where it is.

A disk that does not answer is one that cannot be written, once `within` seconds are over; from then
on nothing waits for it any more. The thread that does is one of our own, and has no other work: it
writes one record after another, in their order, whenever that may be, and nothing else can end it.
"""

import asyncio
import logging
import os
from contextlib import suppress
from types import TracebackType
from typing import Self

from aiomigrate.embedding import Recorded
from aiomigrate.errors import MigrationFailed
from aiomigrate.executor import JobExecutor
from aiomigrate.journal import Journal, JournalError, Record, Side, Standing
from aiomigrate.pruning import prune
from aiomigrate.tasks import outlive

__all__ = ["Books"]

log = logging.getLogger("aiomigrate")


class Books:
    """One side's record of one migration; without a `directory` there is none.

    `vm` is the embedder's Source or Destination, which may say what to call the VM. The disk is
    waited for `within` seconds. Use as a context manager: leaving it lets go of the record.
    """

    def __init__(
        self,
        side: Side,
        directory: str | os.PathLike[str] | None,
        vm: object,
        within: float,
        warnings: list[str],
    ) -> None:
        self._side = side
        self._journal = None if directory is None else Journal(directory)
        self._vm = vm
        self._within = within
        self._warnings = warnings
        self._writer = JobExecutor(workers=1)
        self._record: Record | None = None
        self._opening: asyncio.Future[None] | None = None
        self._late = False
        """Whether the disk was waited for in vain."""

    def identify(self, migration: str) -> None:
        """Tell the embedder the migration's id, as the records have it."""
        if isinstance(self._vm, Recorded):
            self._vm.identify(migration)

    def begin(self, token: bytes, peer: str, *, ownership: bool) -> None:
        """Begin to write the first record."""
        recorded = self._vm if isinstance(self._vm, Recorded) else None
        self._record = Record.begin(
            token=token,
            side=self._side,
            peer=peer,
            ownership=ownership,
            vm="" if recorded is None else recorded.vm_name,
            stored=recorded is not None and recorded.vm_is_stored,
        )
        if self._journal is not None:
            self._opening = self._writer.start(self._journal.write, self._record)

    async def require(self) -> None:
        """Wait until the first record is durable. MigrationFailed if it cannot be."""
        if self._journal is None or self._opening is None:
            return
        try:
            await self._wait(self._journal, self._opening)
        except JournalError as error:
            raise MigrationFailed(
                f"{self._side}: {error}",
                hint="Have its directory writable, or name another journal",
            ) from error

    async def note(self, state: Standing) -> bool:
        """Write what became of the VM, if there is a record: False if that failed, which is a
        warning.
        """
        if self._journal is None or self._opening is None or self._record is None:
            return True
        self._record = self._record.now(state)
        try:
            await self._wait(self._journal, self._writer.start(self._journal.write, self._record))
        except JournalError as error:
            warning = f"{self._side}: the VM is {state}, but that is not in the journal: {error}"
            log.warning("%s", warning)
            self._warnings.append(warning)
            return False
        return True

    async def _wait(self, journal: Journal, job: asyncio.Future[None]) -> None:
        """Wait for a job of the writer. JournalError if it does not end in time; its own errors."""
        job.add_done_callback(_hear)
        done, _ = await asyncio.wait([job], timeout=0.0 if self._late else self._within)
        if not done:
            self._late = True
            why = f"the disk did not answer in {self._within:g} s; it may be written later"
            raise JournalError(journal.path, why)
        job.result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._writer:
            if self._journal is not None and self._opening is not None:
                # A cancellation meanwhile is not passed on: how the migration ended says more.
                with suppress(asyncio.CancelledError):
                    await outlive(self._end(self._journal))

    async def _end(self, journal: Journal) -> None:
        letting_go = self._writer.start(_let_go, journal)
        try:
            await self._wait(journal, letting_go)
        except (JournalError, OSError) as problem:
            if letting_go.done():
                log.warning("%s: old records stay in the journal: %s", self._side, problem)
            else:
                log.warning(
                    "%s: %s. Until then the thread that waits for it lives, and this process",
                    self._side,
                    problem,
                )


def _let_go(journal: Journal) -> None:
    written = journal.held
    journal.close()
    if written:
        prune(journal.path)


def _hear(job: asyncio.Future[None]) -> None:
    """It may fail after whoever waited for it has gone."""
    if not job.cancelled():
        job.exception()
