"""Where a migration is."""

from enum import StrEnum

__all__ = ["Phase"]


class Phase(StrEnum):
    """Where a migration is."""

    CONNECTING = "connecting"
    WAITING = "waiting"
    PRECOPY = "precopy"
    SWITCHOVER = "switchover"
    COMPLETING = "completing"
    SERVING = "serving"
    """The guest is the destination's, and its memory follows on demand."""
    DONE = "done"
    FAILED = "failed"
