"""The commit point, at the destination: owning the VM, and answering Complete.

Before it the source's hang-up is looked for: a source that is gone may not know that it sent
Complete. Once Ok is on its way nothing takes the VM back from here.
"""

import asyncio
import logging
from contextlib import suppress

from aiomigrate.construction import Construction
from aiomigrate.errors import MigrationFailed
from aiomigrate.options import Deadlines
from aiomigrate.protocol import REQUEST_BYTES, DestinationMain, Extension, RemoteProtocolError
from aiomigrate.requests import read_request
from aiomigrate.tasks import outlive
from aiomigrate.transport import Connection, TransportError

__all__ = ["Takeover"]

log = logging.getLogger("aiomigrate.destination")


class Takeover:
    """One Complete, at the destination that read it from `connection`."""

    def __init__(
        self,
        construction: Construction,
        connection: Connection,
        core: DestinationMain,
        deadlines: Deadlines,
    ) -> None:
        self._construction = construction
        self._connection = connection
        self._core = core
        self._deadlines = deadlines
        self._answered = False
        self.noted = False
        """Whether the source's record is on its disk, or it has none with this migration's id: it
        said Confirm, or is a plain peer. Any other end comes also from a process that is killed.
        """

    async def own(self, *, paused: bool) -> None:
        """Make the VM ours and say so. Runs to its end whoever is cancelled.

        `Construction.ownership` tells what has happened, whatever is raised. MigrationFailed if
        the VM stays the source's, OutcomeUnknown if that cannot be told.
        """
        # Without an await from here to the table: nothing can come in between.
        if self._connection.hung_up():
            name = self._connection.name
            raise MigrationFailed(f"{name}: the source hung up before the VM was taken over")
        self._construction.take_over()
        await outlive(self._own(paused=paused))

    async def _own(self, *, paused: bool) -> None:
        name = self._connection.name
        await self._construction.own(paused=paused)
        try:
            await self._connection.write(self._core.answer(ok=True), self._deadlines.pace)
        except TransportError as error:
            log.info("%s: the answer to Complete was not taken: %s", name, error)
        else:
            self._answered = True

    async def confirmed(self, within: float) -> bool:
        """Wait until the source has read that the VM is here: whether it has.

        It says so with Confirm. One that does not know Confirm closes in good order: then all that
        can be told is that its kernel, or that of whatever stands between, had the answer.
        """
        connection = self._connection
        if not self._answered:  # the error was told once: now the stream merely seems to end
            return False
        try:
            async with asyncio.timeout(within):
                if Extension.CONFIRMATION in self._core.extensions:
                    await read_request(connection, self._core, self._deadlines)
                    self.noted = True
                    await self._acknowledge()
                    return True
                rest = await connection.read_some(REQUEST_BYTES)
        except (TransportError, RemoteProtocolError, TimeoutError) as error:
            log.info("%s: did not confirm: %r", connection.name, error)
            return False
        clean = not rest and connection.acknowledged() == connection.written
        self.noted = clean and Extension.SESSION not in self._core.extensions
        return clean

    async def _acknowledge(self) -> None:
        with suppress(TransportError):  # it was said all the same
            await self._connection.write(self._core.answer(ok=True), self._deadlines.pace)
