"""Deadlines that judge progress, not age.

A transfer is cut when it moved fewer than `min_bytes` (and fewer than its rest) within `seconds`.
Windows follow one another: a new one begins as soon as the last has its bytes. So nobody is cut who
really moved `min_bytes` in every `seconds`, a drip of single bytes is cut, and nobody holds a
transfer longer than that rate allows.
"""

from dataclasses import dataclass

__all__ = ["Pace", "PaceMeter"]


@dataclass(frozen=True, slots=True)
class Pace:
    """The least a peer must do: `min_bytes` bytes, or the rest if that is less, in `seconds`.

    ValueError for less than a byte, or no time.
    """

    min_bytes: int = 65536
    seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.min_bytes < 1 or not self.seconds > 0:
            raise ValueError(
                f"a pace must ask for at least a byte in more than no time, not {self}"
            )


class PaceMeter:
    """Holds one transfer to its pace; times are the event loop's, passed in by the caller."""

    __slots__ = ("_pace", "_rest", "deadline", "goal", "moved")

    def __init__(self, pace: Pace, total: int, now: float) -> None:
        self._pace = pace
        self._rest = total
        self._begin(now)

    @property
    def seconds(self) -> float:
        """The length of a window."""
        return self._pace.seconds

    def _begin(self, now: float) -> None:
        self.deadline = now + self._pace.seconds
        self.goal = min(self._pace.min_bytes, self._rest)
        self.moved = 0

    def advance(self, moved: int, now: float) -> None:
        """Count `moved` more bytes; a window that has its bytes ends, and the next one begins."""
        self._rest -= moved
        self.moved += moved
        if self.moved >= self.goal:
            self._begin(now)
