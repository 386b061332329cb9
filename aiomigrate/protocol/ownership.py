"""Who may run the guest: a table of states for each side of a migration.

Exactly one side owns the VM at any time. The source gives it away with the first byte of Complete;
what comes back, on the main connection or to the ownership query, says whose it is. The
destination takes it over with Complete, unless something made that impossible before: a failure, or
a query, which is a fence. As long as neither table is in one of its last states the guest runs at
neither side.

A pair that is missing is a mistake of our own driver, and refused: after `KEPT` no Complete can
be sent, after `FENCED` none can be executed. The diagrams in docs/protocol-states.md are made
from these tables.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Generic, TypeVar

from aiomigrate.protocol.errors import LocalProtocolError
from aiomigrate.protocol.extensions import Verdict

__all__ = [
    "DESTINATION_OWNERSHIP",
    "SOURCE_OWNERSHIP",
    "DestinationFact",
    "DestinationOwnership",
    "DestinationTitle",
    "SourceFact",
    "SourceOwnership",
    "SourceTitle",
]


class SourceTitle(Enum):
    """What the source knows of the owner."""

    OURS = "Ours"
    """No byte of Complete has been handed to anything that could flush it."""
    KEPT = "Kept"
    """The migration failed and the VM is the source's for good: it may resume it."""
    IN_DOUBT = "InDoubt"
    """A byte of Complete was handed over, and nothing said what became of it."""
    THEIRS = "Theirs"
    """The destination has it: nothing here may resume it any more."""


class SourceFact(Enum):
    """What moves the source's table."""

    FAILED = "failure"
    """Anything that ends the migration before the commit point."""
    COMMITTED = "first byte of Complete"
    OK = "Ok to Complete"
    ERROR = "Error"
    """To Complete, or to any request before it: answers come in order."""
    VERDICT_COMMITTED = "query says committed"
    VERDICT_ABORTED = "query says aborted"


class DestinationTitle(Enum):
    """What the destination knows of the owner."""

    BUILDING = "Building"
    """Nothing of the VM could run yet."""
    RESTORED = "Restored"
    """State was accepted: only Complete is missing."""
    TAKING_OVER = "TakingOver"
    """Complete was read and is being executed; what comes of it is not known yet."""
    OWNED = "Owned"
    """The VM is ours; the source may not know."""
    CONFIRMED = "Confirmed"
    """The source knows that the VM is ours."""
    FENCED = "Fenced"
    """Complete can no longer be executed; what was built is being discarded."""
    ABORTED = "Aborted"
    """All of it is discarded: the source may resume the VM."""
    IN_DOUBT = "InDoubt"
    """Guest instructions may have run, or something of the VM is left: no answer is true."""


class DestinationFact(Enum):
    """What moves the destination's table."""

    STATE = "State accepted"
    COMPLETE = "Complete read"
    """By a source that has not hung up: one that has may not know that it sent it."""
    FENCE = "query or failure"
    TAKEN = "VM taken over"
    """The guest runs, or is kept paused as CompletePaused asks."""
    NOT_STARTED = "failure before the first guest instruction"
    MAY_RUN = "failure after that"
    DISCARDED = "VM discarded"
    STUCK = "VM not discarded"
    SOURCE_KNOWS = "source knows"
    """It confirmed, or read the answer to its query; one that has no CONFIRMATION: it closed in
    good order."""


S = TypeVar("S", bound=Enum)
F = TypeVar("F", bound=Enum)

_A, _D = SourceTitle, DestinationTitle
_F, _G = SourceFact, DestinationFact

SOURCE_OWNERSHIP: Mapping[tuple[SourceTitle, SourceFact], SourceTitle] = {
    (_A.OURS, _F.FAILED): _A.KEPT,
    (_A.OURS, _F.COMMITTED): _A.IN_DOUBT,
    (_A.IN_DOUBT, _F.OK): _A.THEIRS,
    (_A.IN_DOUBT, _F.ERROR): _A.KEPT,
    (_A.IN_DOUBT, _F.VERDICT_COMMITTED): _A.THEIRS,
    (_A.IN_DOUBT, _F.VERDICT_ABORTED): _A.KEPT,
}

DESTINATION_OWNERSHIP: Mapping[tuple[DestinationTitle, DestinationFact], DestinationTitle] = {
    (_D.BUILDING, _G.STATE): _D.RESTORED,
    (_D.BUILDING, _G.FENCE): _D.FENCED,
    (_D.RESTORED, _G.COMPLETE): _D.TAKING_OVER,
    (_D.RESTORED, _G.FENCE): _D.FENCED,
    (_D.TAKING_OVER, _G.TAKEN): _D.OWNED,
    (_D.TAKING_OVER, _G.NOT_STARTED): _D.FENCED,
    (_D.TAKING_OVER, _G.MAY_RUN): _D.IN_DOUBT,
    (_D.OWNED, _G.SOURCE_KNOWS): _D.CONFIRMED,
    (_D.FENCED, _G.DISCARDED): _D.ABORTED,
    (_D.FENCED, _G.STUCK): _D.IN_DOUBT,
}


class _Ownership(Generic[S, F]):
    """A table at work."""

    def __init__(self, side: str, table: Mapping[tuple[S, F], S], first: S) -> None:
        self._side = side
        self._table = table
        self.title: S = first

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.title.value}>"

    def may(self, fact: F) -> bool:
        """Whether `fact` is possible now."""
        return (self.title, fact) in self._table

    def take(self, fact: F) -> None:
        """Note `fact`. LocalProtocolError, and no change, if it is not possible now."""
        following = self._table.get((self.title, fact))
        if following is None:
            possible = [fact.value for title, fact in self._table if title is self.title]
            raise LocalProtocolError(
                connection=f"ownership at the {self._side}",
                state=self.title.value,
                command=None,
                expected=" or ".join(possible) or "nothing more",
                got=fact.value,
            )
        self.title = following


class SourceOwnership(_Ownership[SourceTitle, SourceFact]):
    """The owner as the source knows it."""

    def __init__(self) -> None:
        super().__init__("source", SOURCE_OWNERSHIP, SourceTitle.OURS)

    def believe(self, verdict: Verdict) -> None:
        """Note what the destination answered to the ownership query."""
        if verdict is Verdict.COMMITTED:
            self.take(SourceFact.VERDICT_COMMITTED)
        else:
            self.take(SourceFact.VERDICT_ABORTED)


class DestinationOwnership(_Ownership[DestinationTitle, DestinationFact]):
    """The owner as the destination knows it."""

    _VERDICTS: Mapping[DestinationTitle, Verdict | None] = {
        DestinationTitle.OWNED: Verdict.COMMITTED,
        DestinationTitle.CONFIRMED: Verdict.COMMITTED,
        DestinationTitle.ABORTED: Verdict.ABORTED,
        DestinationTitle.IN_DOUBT: None,
    }

    def __init__(self) -> None:
        super().__init__("destination", DESTINATION_OWNERSHIP, DestinationTitle.BUILDING)

    def fence(self) -> bool:
        """Make Complete impossible from now on, if it has not been begun: whether it is so."""
        if self.may(DestinationFact.FENCE):
            self.take(DestinationFact.FENCE)
        return self.title in (DestinationTitle.FENCED, DestinationTitle.ABORTED)

    @property
    def settled(self) -> bool:
        """Whether a query can be answered, or never will be."""
        return self.title in self._VERDICTS

    @property
    def verdict(self) -> Verdict | None:
        """The answer to a query once it is `settled`; None: it cannot be told, close instead."""
        return self._VERDICTS[self.title]
