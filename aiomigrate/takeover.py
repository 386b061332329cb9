"""The commit point, at the destination: owning the VM, and answering Complete.

An Error is answered only after the half-built VM has been discarded, and only where it is certain
that no guest instruction ran; where that is not certain nothing is answered. Once Ok is on its way
nothing takes the VM back from here.
"""

import asyncio
import logging

from aiomigrate.embedding import Destination
from aiomigrate.errors import GuestNotStarted, MigrationFailed, OutcomeUnknown
from aiomigrate.hooks import Hooks
from aiomigrate.protocol import REQUEST_BYTES, DestinationMain
from aiomigrate.tasks import outlive
from aiomigrate.transport import Connection, Pace, TransportError

__all__ = ["Takeover"]

log = logging.getLogger("aiomigrate.destination")


class Takeover:
    """One Complete, at the destination that read it from `connection`."""

    def __init__(
        self, destination: Destination, hooks: Hooks, connection: Connection, core: DestinationMain
    ) -> None:
        self._destination = destination
        self._hooks = hooks
        self._connection = connection
        self._core = core
        self.refused = b""
        """The Error to answer with, after a MigrationFailed; empty: answer nothing."""
        self.discarded = False
        """Whether what was built has been discarded here."""
        self._answered = False

    async def own(self, pace: Pace, *, paused: bool) -> None:
        """Make the VM ours and say so. Runs to its end whoever is cancelled.

        MigrationFailed if it stays the source's, OutcomeUnknown if guest instructions may have
        run; CancelledError only once the VM is ours.
        """
        await outlive(self._own(pace, paused=paused))

    async def _own(self, pace: Pace, *, paused: bool) -> None:
        name = self._connection.name
        if self._connection.hung_up():
            raise MigrationFailed(f"{name}: the source hung up before the VM was taken over")
        try:
            if paused:
                await self._hooks.call("keep_paused", self._destination.keep_paused())
            else:
                await self._hooks.call("resume", self._destination.resume())
        except (MigrationFailed, GuestNotStarted) as error:
            if not (paused or isinstance(error, GuestNotStarted)):
                raise OutcomeUnknown(
                    f"{name}: {error}, and guest instructions may have run",
                    "The source got no answer and keeps the VM paused: end it there or here",
                ) from error
            failure = MigrationFailed(f"{name}: the VM could not be taken over: {error}")
            await self._hooks.attempt("discard", self._destination.discard(failure))
            self.discarded = True
            self.refused = self._core.answer(ok=False)
            raise failure from error
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
