"""The VM while a destination builds it: it is discarded or it becomes ours, never both.

All calls into the embedder's Destination are made here, and what they come to is told to the
ownership table, which says what may follow.
"""

import asyncio
from collections.abc import Mapping

from aiomigrate.bookkeeping import Books
from aiomigrate.embedding import Destination, TakesMemory
from aiomigrate.errors import GuestNotStarted, MigrationError, MigrationFailed, OutcomeUnknown
from aiomigrate.executor import JobExecutor
from aiomigrate.hooks import Hooks
from aiomigrate.journal import Standing
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import VmConfig
from aiomigrate.protocol import DestinationFact, DestinationOwnership, DestinationTitle
from aiomigrate.requests import Refused

__all__ = ["Construction"]


class Construction:
    """One VM at its destination, from Config on."""

    def __init__(
        self,
        destination: Destination,
        hooks: Hooks,
        books: Books,
        executor: JobExecutor,
        warnings: list[str],
    ) -> None:
        self._destination = destination
        self._hooks = hooks
        self._books = books
        self._executor = executor
        self._warnings = warnings
        self._begun = False
        self.ownership = DestinationOwnership()
        self.fenced = asyncio.Event()
        """Set by `fence`: the source was told, or will be, that it may have the VM."""
        self.settled = asyncio.Event()
        """Set once a query can be answered, or never will be: `ownership.verdict` says how."""
        self.memory: GuestMemory | None = None
        """Its memory, once Config was accepted; never, if it was `adopted`."""
        self.adopted = False
        """Whether it has the source's own memory."""

    @property
    def owned(self) -> bool:
        """Whether it is ours: nothing takes it back any more."""
        return self.ownership.title in (DestinationTitle.OWNED, DestinationTitle.CONFIRMED)

    @property
    def in_doubt(self) -> bool:
        """Whether nobody can say whose it is."""
        return self.ownership.title is DestinationTitle.IN_DOUBT

    async def configure(
        self, config: VmConfig, source: str, expected: int | None = None
    ) -> GuestMemory:
        """Have its memory made, `expected` bytes of which are to come (None: it is not known).

        MigrationFailed or GuestNotStarted if that fails, Refused where there is no room for them.
        """
        self._begun = True
        memory = await self._hooks.call("configure", self._destination.configure(config, source))
        if memory.claimed:
            raise MigrationFailed(
                "destination: configure gave memory of a VM that is being migrated away: "
                "a VM cannot be migrated to itself"
            )
        self.memory = memory
        for shortage in await self._executor.run(memory.shortages, expected):
            if shortage.certain:
                raise Refused(str(shortage))
            self._warnings.append(str(shortage))
        return memory

    @property
    def takes_memory(self) -> TakesMemory | None:
        """Who takes memory by descriptor, if anybody does."""
        return self._destination if isinstance(self._destination, TakesMemory) else None

    async def adopt(
        self, taker: TakesMemory, config: VmConfig, source: str, fds: Mapping[int, int]
    ) -> None:
        """Have it built over the source's own memory. MigrationFailed or GuestNotStarted."""
        self._begun = True
        await self._hooks.call("adopt", taker.adopt(config, source, fds))
        self.adopted = True

    async def restore(self, state: bytes) -> None:
        """Have it built from its state. MigrationFailed or GuestNotStarted if that fails."""
        await self._hooks.call("restore", self._destination.restore(state))
        self._require(DestinationFact.STATE)

    def fence(self) -> None:
        """Make Complete impossible, unless it is being executed: the source asks who owns the VM.

        Whoever serves the migration ends it then, and discards the VM.
        """
        if self.ownership.fence():
            self.fenced.set()

    def take_over(self) -> None:
        """Complete was read: from here on it is executed. MigrationFailed if it must not be."""
        self._require(DestinationFact.COMPLETE)

    def _require(self, fact: DestinationFact) -> None:
        if not self.ownership.may(fact):
            raise MigrationFailed("the source asked who owns the VM before it was taken over")
        self.ownership.take(fact)

    async def own(self, *, paused: bool) -> None:
        """Make it ours, and run it unless it is `paused`; after `take_over`.

        MigrationFailed if it is not ours and no guest instruction has run, OutcomeUnknown if one
        may have.
        """
        fact = DestinationFact.NOT_STARTED if paused else DestinationFact.MAY_RUN
        try:
            if paused:
                await self._hooks.call("keep_paused", self._destination.keep_paused())
            else:
                await self._hooks.call("resume", self._destination.resume())
            fact = DestinationFact.TAKEN
        except GuestNotStarted as error:
            fact = DestinationFact.NOT_STARTED
            raise MigrationFailed(f"the VM could not be taken over: {error}") from error
        except MigrationFailed as error:
            if paused:
                raise
            raise OutcomeUnknown(
                f"{error.what}, and guest instructions may have run",
                "The source gets no answer and keeps the VM paused: end it there or here",
            ) from error
        finally:
            self._settle(fact)

    def _settle(self, fact: DestinationFact) -> None:
        self.ownership.take(fact)
        if self.ownership.settled:
            self.settled.set()

    async def confirmed(self, *, noted: bool) -> None:
        """The source knows that the VM is here, and has `noted` it, or nobody could look for our
        record; what goes wrong in the hook is a warning.
        """
        self.ownership.take(DestinationFact.SOURCE_KNOWS)
        await self._hooks.attempt("confirmed", self._destination.confirmed())
        if noted:
            await self._books.note(Standing.CONFIRMED)

    async def discard(self, failure: MigrationError) -> bool:
        """Throw away what was built, once, and note that: whether nothing of it is left.

        Refused for a VM that is ours or may run here.
        """
        if not self.ownership.fence():
            return False
        if not self.ownership.settled:
            problem = ""
            if self._begun:
                problem = await self._hooks.attempt("discard", self._destination.discard(failure))
            if problem:
                failure.hint = ". ".join(filter(None, [problem, failure.hint]))
                self._settle(DestinationFact.STUCK)
                return False
            await self._books.note(Standing.ABORTED)
            self._settle(DestinationFact.DISCARDED)
        return True
