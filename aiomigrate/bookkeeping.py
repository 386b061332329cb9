"""The journal as one side of a running migration keeps it.

The first record, of what may become of the VM, is written while the migration goes on and has to
be durable before it can become true: a journal that cannot be written ends the migration while
the VM is still the source's. What did become of it is written afterwards, and a journal that
cannot take that is a warning: the VM is where it is.
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
from aiomigrate.tasks import settle

__all__ = ["Books"]

log = logging.getLogger("aiomigrate")


class Books:
    """One side's record of one migration; without a `directory` there is none.

    `vm` is the embedder's Source or Destination, which may say what to call the VM. Use as a
    context manager: leaving it lets go of the record.
    """

    def __init__(
        self,
        side: Side,
        directory: str | os.PathLike[str] | None,
        vm: object,
        executor: JobExecutor,
        warnings: list[str],
    ) -> None:
        self._side = side
        self._journal = None if directory is None else Journal(directory)
        self._vm = vm
        self._executor = executor
        self._warnings = warnings
        self._record: Record | None = None
        self._opening: asyncio.Future[None] | None = None

    def begin(self, token: bytes, peer: str, *, ownership: bool) -> None:
        """Begin to write the first record; the migration's id is told to the embedder."""
        recorded = self._vm if isinstance(self._vm, Recorded) else None
        self._record = Record.begin(
            token=token,
            side=self._side,
            peer=peer,
            ownership=ownership,
            vm="" if recorded is None else recorded.vm_name,
            stored=recorded is not None and recorded.vm_is_stored,
        )
        if recorded is not None:
            recorded.identify(self._record.id)
        if self._journal is not None:
            self._opening = self._executor.start(self._journal.write, self._record)

    async def require(self) -> None:
        """Wait until the first record is durable. MigrationFailed if it cannot be."""
        if self._opening is None:
            return
        try:
            await self._executor.join(self._opening)
        except JournalError as error:
            raise MigrationFailed(
                f"{self._side}: {error}",
                hint="Have its directory writable, or name another journal",
            ) from error

    async def note(self, state: Standing) -> None:
        """Write what became of the VM, if there is a record. Runs to its end if it is shielded."""
        if self._journal is None or self._opening is None or self._record is None:
            return
        self._record = self._record.now(state)
        with suppress(JournalError):  # told by `require`; half of it may be there all the same
            await self._executor.join(self._opening)
        try:
            await self._executor.run(self._journal.write, self._record)
        except JournalError as error:
            warning = f"{self._side}: the VM is {state}, but that is not in the journal: {error}"
            log.warning("%s", warning)
            self._warnings.append(warning)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._journal is None:
            return
        if self._opening is None:
            return
        # A cancellation meanwhile is not passed on: how the migration ended says more.
        await settle(self._opening)
        written = self._opening.exception() is None  # else told, if anybody wanted to know
        self._journal.close()
        if not written:
            return
        pruning = self._executor.start(prune, self._journal.path)
        await settle(pruning)
        if (problem := pruning.exception()) is not None:
            log.warning("%s: old records stay in the journal: %s", self._side, problem)
