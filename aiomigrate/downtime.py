"""How long the guest stood still, and in which stage of the switchover.

The stages follow one another without a gap, so that they add up to the downtime.
"""

import asyncio
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Downtime", "Stage", "Stopwatch"]


class Stage(StrEnum):
    """What a source does while its guest is paused."""

    PAUSE = "pause_ms"
    LAST_PASS = "last_pass_ms"  # noqa: S105 (a pass over memory)
    CAPTURE = "capture_ms"
    HAND_OVER = "hand_over_ms"
    RESTORE = "restore_ms"
    WAITING = "waiting_ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Downtime:
    """The stages of a source's downtime, in milliseconds."""

    pause_ms: float
    """In the embedder's `pause`."""
    last_pass_ms: float
    """Moving the rest of the memory, that which `capture` wrote among it, and closing the lanes."""
    capture_ms: float
    """In the embedder's `capture`."""
    hand_over_ms: float
    """In the embedder's `hand_over`."""
    restore_ms: float
    """Sending the state, until the destination has restored it and said so."""
    waiting_ms: float
    """From there to the answer to Complete: the destination resumes the guest. A round trip less
    where Complete was sent right behind the state."""


class Stopwatch:
    """Runs from the first stage that is entered to `stop`, on the running loop's clock."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(Stage, 0.0)
        self._stage: Stage | None = None
        self._since = 0.0

    def enter(self, stage: Stage) -> None:
        """The stage before ends here, if there was one. A stage may be entered again."""
        now = asyncio.get_running_loop().time()
        if self._stage is not None:
            self._seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now

    def stop(self) -> Downtime:
        """The last stage ends here."""
        if self._stage is not None:
            self.enter(self._stage)
            self._stage = None
        return Downtime(**{stage.value: 1000 * spent for stage, spent in self._seconds.items()})

    @property
    def total_ms(self) -> float:
        """Of all stages that have ended."""
        return 1000 * sum(self._seconds.values())
