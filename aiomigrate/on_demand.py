"""Memory that is served by descriptor while its guest runs elsewhere, at the source.

The files that were passed are empty. A fault connection is opened after Config, and is served from
before State, since restoring the VM touches its memory, until the destination ends it, which it may
do before Complete if it has all of the memory by then. Before the commit point whatever ends it
earlier ends the migration; afterwards the guest is the destination's, whole or not, and never runs
here again.
"""

import asyncio
from types import TracebackType
from typing import Self

from aiomigrate.embedding import OnDemand, Source
from aiomigrate.errors import MigrationError, MigrationFailed, Owner
from aiomigrate.options import SendOptions
from aiomigrate.protocol import FaultSource
from aiomigrate.serving import PageServer
from aiomigrate.tasks import root_cause, settle
from aiomigrate.transport import Address, Connection, connect

__all__ = ["PageService"]


class PageService:
    """The fault connection of one migration; does nothing for a source that is not `OnDemand`.

    Use as a context manager: leaving it ends the serving.
    """

    def __init__(self, source: Source, options: SendOptions) -> None:
        self._pages: PageServer | None = None
        if options.local and isinstance(source, OnDemand):
            self._pages = source.pages
        self._options = options
        self._connection: Connection | None = None
        self._serving: asyncio.Task[int] | None = None

    @property
    def serves(self) -> bool:
        """Whether there is a fault connection."""
        return self._serving is not None

    async def open(self, address: Address) -> None:
        """Connect, say what the connection is, and begin to serve. TransportError."""
        if self._pages is None:
            return
        deadlines = self._options.deadlines
        connection = await connect(address, within=deadlines.connect_s)
        self._connection = connection
        core = FaultSource(self._options.limits)
        await connection.write(core.open(), deadlines.pace)
        self._serving = asyncio.create_task(self._serve(self._pages, connection, core))

    async def _serve(self, pages: PageServer, connection: Connection, core: FaultSource) -> int:
        """Serve until the peer ends it: the bytes that it had not been given by then."""
        async with asyncio.TaskGroup() as group:
            filling = group.create_task(pages.fill())
            await pages.answer(connection, core, self._options.deadlines)
            given = pages.served_bytes
            await filling
        return pages.served_bytes - given

    async def watch(self) -> None:
        """MigrationFailed if serving ends early, before the commit point; a task of its own."""
        if self._serving is not None:
            await asyncio.wait([self._serving])
            if why := self._why(self._serving):
                raise MigrationFailed(f"the fault connection ended before Complete{why}")

    async def finish(self) -> MigrationError | None:
        """The destination has the VM: wait until it has the memory, too. What is missing if it has
        not, also if that is because whoever waits here is cancelled.
        """
        if self._serving is None or self._pages is None:
            return None
        try:
            await asyncio.wait([self._serving])
        except asyncio.CancelledError:
            if not self._serving.done():
                return self._loss(self._pages, ": it was cancelled")
        why = self._why(self._serving)
        return self._loss(self._pages, why) if why else None

    @staticmethod
    def _loss(pages: PageServer, why: str) -> MigrationError:
        return MigrationError(
            f"the guest's memory is not all with it{why}; {pages.served_bytes} of "
            f"{pages.total_bytes} bytes were served",
            Owner.DESTINATION,
            "What runs at the destination stops at the first page that it misses: end it there",
        )

    @staticmethod
    def _why(serving: asyncio.Task[int]) -> str:
        """What the serving, which has ended, met; or nothing."""
        error = serving.exception()
        if error is not None:
            return f": {root_cause(error)}"
        missing = serving.result()
        return f": the destination ended it while {missing} bytes were missing" if missing else ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._serving is not None:
            self._serving.cancel()
            await settle(self._serving)
            if not self._serving.cancelled():
                self._serving.exception()  # told already, if it mattered
        if self._connection is not None:
            self._connection.close()
