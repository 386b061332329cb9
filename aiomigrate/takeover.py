"""The commit point, at the destination: owning the VM, and answering Complete.

Before it the source's hang-up is looked for: a source that is gone may not know that it sent
Complete. Once Ok is on its way nothing takes the VM back from here.
"""

import asyncio
import logging

from aiomigrate.construction import Construction
from aiomigrate.errors import MigrationFailed
from aiomigrate.protocol import REQUEST_BYTES, DestinationMain
from aiomigrate.tasks import outlive
from aiomigrate.transport import Connection, Pace, TransportError

__all__ = ["Takeover"]

log = logging.getLogger("aiomigrate.destination")


class Takeover:
    """One Complete, at the destination that read it from `connection`."""

    def __init__(
        self, construction: Construction, connection: Connection, core: DestinationMain
    ) -> None:
        self._construction = construction
        self._connection = connection
        self._core = core
        self._answered = False

    async def own(self, pace: Pace, *, paused: bool) -> None:
        """Make the VM ours and say so. Runs to its end whoever is cancelled.

        `Construction.ownership` tells what has happened, whatever is raised. MigrationFailed if
        the VM stays the source's, OutcomeUnknown if that cannot be told.
        """
        # Without an await from here to the table: nothing can come in between.
        if self._connection.hung_up():
            name = self._connection.name
            raise MigrationFailed(f"{name}: the source hung up before the VM was taken over")
        self._construction.take_over()
        await outlive(self._own(pace, paused=paused))

    async def _own(self, pace: Pace, *, paused: bool) -> None:
        name = self._connection.name
        await self._construction.own(paused=paused)
        try:
            await self._connection.write(self._core.answer(ok=True), pace)
        except TransportError as error:
            log.info("%s: the answer to Complete was not taken: %s", name, error)
        else:
            self._answered = True

    async def confirmed(self, within: float) -> bool:
        """Wait for the source's end of stream: whether it has read that the VM is here."""
        connection = self._connection
        if not self._answered:  # the error was told once: now the stream merely seems to end
            return False
        try:
            async with asyncio.timeout(within):
                rest = await connection.read_some(REQUEST_BYTES)
        except (TransportError, TimeoutError) as error:
            log.info("%s: did not close in good order: %r", connection.name, error)
            return False
        return not rest and connection.acknowledged() == connection.written
