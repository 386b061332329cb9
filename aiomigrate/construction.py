"""The VM while a destination builds it: it is discarded or it becomes ours, never both.

All calls into the embedder's Destination are made here, so that one place knows what was begun.
"""

from aiomigrate.embedding import Destination
from aiomigrate.errors import GuestNotStarted, MigrationError, MigrationFailed, OutcomeUnknown
from aiomigrate.hooks import Hooks
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import VmConfig

__all__ = ["Construction"]


class Construction:
    """One VM at its destination, from Config on."""

    def __init__(self, destination: Destination, hooks: Hooks) -> None:
        self._destination = destination
        self._hooks = hooks
        self._begun = False
        self._discarded: bool | None = None
        self.memory: GuestMemory | None = None
        """Its memory, once Config was accepted."""
        self.may_run = False
        """Whether guest instructions may have run here."""
        self.owned = False
        """Whether it is ours: from then on nothing takes it back."""

    async def configure(self, config: VmConfig, source: str) -> GuestMemory:
        """Have its memory made. MigrationFailed or GuestNotStarted if that fails."""
        self._begun = True
        self.memory = await self._hooks.call(
            "configure", self._destination.configure(config, source)
        )
        return self.memory

    async def restore(self, state: bytes) -> None:
        """Have it built from its state. MigrationFailed or GuestNotStarted if that fails."""
        await self._hooks.call("restore", self._destination.restore(state))

    async def own(self, *, paused: bool) -> None:
        """Make it ours, and run it unless it is `paused`.

        MigrationFailed if it is not and no guest instruction has run, OutcomeUnknown if one may
        have.
        """
        try:
            if paused:
                await self._hooks.call("keep_paused", self._destination.keep_paused())
            else:
                self.may_run = True
                await self._hooks.call("resume", self._destination.resume())
        except GuestNotStarted as error:
            self.may_run = False
            raise MigrationFailed(f"the VM could not be taken over: {error}") from error
        except MigrationFailed as error:
            if self.may_run:
                raise OutcomeUnknown(
                    f"{error.what}, and guest instructions may have run",
                    "The source gets no answer and keeps the VM paused: end it there or here",
                ) from error
            raise
        self.owned = True

    async def confirmed(self) -> None:
        """The source knows that the VM is here; what goes wrong in the hook is a warning."""
        await self._hooks.attempt("confirmed", self._destination.confirmed())

    async def discard(self, failure: MigrationError) -> bool:
        """Throw away what was built, once: whether nothing of it is left.

        Refused for a VM that is ours or may run here.
        """
        if self.owned or self.may_run:
            return False
        if self._discarded is None:
            problem = ""
            if self._begun:
                problem = await self._hooks.attempt("discard", self._destination.discard(failure))
            self._discarded = not problem
            if problem:
                failure.hint = ". ".join(filter(None, [problem, failure.hint]))
        return self._discarded
