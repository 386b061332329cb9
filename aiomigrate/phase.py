"""Where a migration is."""

from enum import StrEnum

__all__ = ["Phase"]


class Phase(StrEnum):
    """Where a migration is."""

    CONNECTING = "connecting"
    """At a source: until the destination has taken the Config and the lanes are there."""
    WAITING = "waiting"
    """At a destination: until a source comes."""
    PRECOPY = "precopy"
    """Memory moves while the guest runs."""
    SWITCHOVER = "switchover"
    """The guest is paused: the rest of its memory moves, then its state."""
    COMPLETING = "completing"
    """From Complete on: the destination takes the VM over."""
    SERVING = "serving"
    """The guest is the destination's, and its memory follows on demand."""
    DONE = "done"
    """The destination has the VM."""
    FAILED = "failed"
    """It ended otherwise; the error says who has the VM."""
