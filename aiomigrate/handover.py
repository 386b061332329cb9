"""The commit point, at the source: Complete, and what its answer says about the VM's owner.

Until a byte of Complete is in the socket the VM is the source's. From then on it is the
destination's, unless an answer proves that Complete was not executed: answers come in order, so
an Error to any request does. Without an answer the owner is in doubt: a destination that takes
ownership queries is asked, over connections of their own; else the outcome is unknown.

Complete may be sent right behind State, before that is answered: a round trip less of downtime.
All of State is in the socket then, and of Complete nothing, so the commit point is the same one;
but a lost Error to State leaves the owner in doubt, too.
"""

import asyncio
import logging
from contextlib import suppress
from typing import NamedTuple

from aiomigrate.downtime import Stage, Stopwatch
from aiomigrate.errors import MigrationCancelled, MigrationFailed, OutcomeUnknown
from aiomigrate.inquiry import NoVerdict, ask_owner, next_answer
from aiomigrate.options import Deadlines
from aiomigrate.protocol import (
    Answer,
    Extension,
    MainState,
    ProtocolError,
    RemoteProtocolError,
    SourceFact,
    SourceMain,
    SourceOwnership,
    Verdict,
    command_name,
)
from aiomigrate.tasks import settle
from aiomigrate.transport import Address, Connection, Identity, TransportError

__all__ = ["Desk", "Handover"]

log = logging.getLogger("aiomigrate.source")

_HINT = (
    "The VM stays paused here: see whether it runs at the destination before resuming or ending it"
)


class Desk(NamedTuple):
    """Where a destination can be asked who owns the VM."""

    address: Address
    token: bytes
    identity: Identity | None = None


class Handover:
    """One Complete on a main connection whose every other request is answered, but perhaps State.

    `ownership` is told what happens; `desk` is None of a peer that takes no ownership queries.
    `stopwatch` is in RESTORE as long as State is unanswered.
    """

    def __init__(
        self,
        connection: Connection,
        core: SourceMain,
        deadlines: Deadlines,
        ownership: SourceOwnership,
        desk: Desk | None,
        stopwatch: Stopwatch,
    ) -> None:
        self._connection = connection
        self._core = core
        self._deadlines = deadlines
        self._ownership = ownership
        self._desk = desk
        self._stopwatch = stopwatch
        self._told: Connection | None = None
        """Over which the destination said that it has the VM, in answer to a query."""

    async def complete(self, *, paused: bool) -> None:
        """Hand the VM over; returns once the destination has it.

        Raises MigrationFailed if the VM is still the source's, OutcomeUnknown if that cannot be
        told. A cancellation before the commit point is raised at once. After it the answer is
        waited for as long as `commit_grace_s` and then taken for lost: if the destination says
        that it discarded the VM, MigrationCancelled is raised, and if it has it, nothing.
        """
        header = self._core.complete(paused=paused)
        sent = await self._commit(header)
        reading = asyncio.create_task(self._read_outcome(header[sent:]))
        cancelled = False
        try:
            await asyncio.shield(reading)
        except asyncio.CancelledError:
            cancelled = True
            timer = asyncio.get_running_loop().call_later(
                self._deadlines.commit_grace_s, reading.cancel
            )
            await settle(reading)
            timer.cancel()
        doubt = "cancelled while Complete was unanswered"
        if not reading.cancelled():
            doubt = reading.result()
        if not doubt:
            return
        problem = f"{self._connection.name}: {doubt}"
        settling = asyncio.create_task(self._settle(problem))
        cancelled |= await settle(settling)
        if settling.result() is Verdict.ABORTED:
            failure = MigrationCancelled if cancelled else MigrationFailed
            raise failure(f"{problem}; the destination says that it discarded the VM")

    async def confirm(self) -> None:
        """Tell a destination that wants to know that its answer was read, and noted; what fails is
        no failure.
        """
        if self._told is not None:
            self._told.close()
        core = self._core
        if core.state is not MainState.COMPLETED or Extension.CONFIRMATION not in core.extensions:
            return
        try:
            async with asyncio.timeout(self._deadlines.confirm_s):
                await self._connection.write(core.confirm(), self._deadlines.pace)
                await next_answer(self._connection, core)
        except (TimeoutError, TransportError, ProtocolError) as error:
            log.info("%s: not confirmed: %r", self._connection.name, error)

    def withhold(self) -> None:
        """Not confirm, nor end anything in good order, that could be taken for it; nothing of that
        concerns a plain peer.
        """
        if self._core.extensions:
            self._connection.abort()
        if self._told is not None:
            self._told.abort()

    async def _commit(self, header: bytes) -> int:
        """Hand the first byte over: an error up to here means that nothing was taken."""
        while not self._connection.hung_up():
            taken = self._connection.write_now(header)
            if taken:
                self._ownership.take(SourceFact.COMMITTED)
                return taken
            await self._connection.writable(self._deadlines.pace.seconds)
        # What it said before that says more.
        with suppress(TimeoutError, TransportError, RemoteProtocolError):
            async with asyncio.timeout(self._deadlines.linger_s):
                while (answer := await next_answer(self._connection, self._core)).ok:
                    pass
                raise self._refused(answer)
        name = self._connection.name
        raise MigrationFailed(f"{name}: the destination hung up before Complete was sent")

    async def _read_outcome(self, rest: bytes) -> str:
        """Why it is in doubt whose the VM is, or nothing: it is the destination's."""
        due = "Complete"
        with suppress(TransportError):  # an answer that came before a break still counts: read on
            # TLS may have taken all and not handed it over yet: then a write of nothing does that.
            await self._connection.write(rest, self._deadlines.pace)
        try:
            if self._core.state is MainState.IN_FLIGHT:
                due = "State, with Complete behind it,"
                answer = await self._answer()
                if answer.ok:
                    due = "Complete"
                    self._stopwatch.enter(Stage.WAITING)
                    answer = await self._answer()
            else:
                answer = await self._answer()
        except TimeoutError:
            return f"no answer to {due} in {self._deadlines.answer_s:g} s"
        except (TransportError, RemoteProtocolError) as error:
            return f"the answer to {due} was lost ({error})"
        self._ownership.take(SourceFact.OK if answer.ok else SourceFact.ERROR)
        if answer.ok:
            return ""
        self._connection.close()  # in good order: the destination sees that it was read
        raise self._refused(answer)

    async def _answer(self) -> Answer:
        async with asyncio.timeout(self._deadlines.answer_s):
            return await next_answer(self._connection, self._core)

    def _refused(self, answer: Answer) -> MigrationFailed:
        what = command_name(answer.command)
        return MigrationFailed(f"{self._connection.name}: the destination refused {what}")

    async def _settle(self, problem: str) -> Verdict:
        """Have the destination say whose the VM is. OutcomeUnknown if it cannot be asked."""
        if self._desk is None:
            raise OutcomeUnknown(problem, _HINT)
        log.warning("%s: asking the destination who owns the VM", problem)
        try:
            address, token, identity = self._desk
            verdict, connection = await ask_owner(
                address, token, within=self._deadlines.settle_s, identity=identity
            )
        except NoVerdict as error:
            raise OutcomeUnknown(f"{problem}; asked who owns the VM, but {error}", _HINT) from None
        self._ownership.believe(verdict)
        if verdict is Verdict.COMMITTED:
            self._told = connection
        else:
            connection.close()
        return verdict
