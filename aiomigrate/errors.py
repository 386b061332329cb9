"""How a migration ends badly, and who has the VM then.

Every error is one sentence of what failed and where, names the owner of the VM, and where there
is one, what to try.
"""

from enum import StrEnum
from typing import Any

__all__ = [
    "GuestNotStarted",
    "MigrationCancelled",
    "MigrationError",
    "MigrationFailed",
    "OutcomeUnknown",
    "Owner",
    "UsageError",
]


class Owner(StrEnum):
    """The side that may run the guest."""

    SOURCE = "source"
    """The side that sends."""
    DESTINATION = "destination"
    """The side that receives."""
    UNKNOWN = "unknown"
    """Paused at the source; at the destination it runs or does not exist."""


_HAS_IT = {
    Owner.SOURCE: "the VM is with the source",
    Owner.DESTINATION: "the VM is with the destination",
    Owner.UNKNOWN: "it is unknown who has the VM: it is paused at the source and may be running "
    "at the destination",
}


class MigrationError(Exception):
    """A migration that did not end as it should.

    `what` says what failed and where, without a full stop; `owner` who may run the guest now;
    `hint` what to try, or is empty.
    """

    def __init__(self, what: str, owner: Owner, hint: str = "") -> None:
        super().__init__(what, owner, hint)
        self.what = what
        self.owner = owner
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.what}; {_HAS_IT[self.owner]}"
        return f"{text}. {self.hint}" if self.hint else text


class MigrationFailed(MigrationError):
    """It failed, and one side has the VM for certain: the source, unless `owner` says otherwise."""

    def __init__(self, what: str, owner: Owner = Owner.SOURCE, hint: str = "") -> None:
        super().__init__(what, owner, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.owner, self.hint)


class MigrationCancelled(MigrationFailed):
    """It was cancelled in time: the VM stays with the source."""


class OutcomeUnknown(MigrationError):
    """Complete was sent and its answer was lost: the VM never runs at both, and may run at none.

    At the source the VM is paused and stays so until whoever embeds this decides.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, Owner.UNKNOWN, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.hint)


class UsageError(ValueError):
    """An option, an address or an embedder's object that cannot be meant; nothing was sent."""


class GuestNotStarted(Exception):
    """Raised by a destination's `resume` that can say that no guest instruction has run.

    The engine then discards the VM and answers Error, so that the source may resume it. Any other
    exception out of `resume` leaves the outcome unknown.
    """
