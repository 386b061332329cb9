"""The pre-copy policy: another iteration, or pause the guest now, or give up.

A pure function of measured figures. The tests and their order are the reference's: nothing dirty;
what is dirty is expected to move within the downtime; the time is over.
"""

from dataclasses import dataclass
from enum import Enum

from aiomigrate.options import SendOptions, TimeoutStrategy

__all__ = ["Decision", "Verdict", "decide"]


class Verdict(Enum):
    """What to do next."""

    ITERATE = "send another iteration"
    SWITCH_OVER = "pause the guest"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and the figures behind it."""

    verdict: Verdict
    reason: str

    def __str__(self) -> str:
        return f"{self.verdict.value}: {self.reason}"


def decide(options: SendOptions, dirty_bytes: int, bandwidth: float, elapsed_s: float) -> Decision:
    """Judge `dirty_bytes` against the last iteration's `bandwidth` (bytes/s) and the options."""
    if not dirty_bytes:
        return Decision(Verdict.SWITCH_OVER, "nothing is dirty")
    expected_ms = 1000 * dirty_bytes / bandwidth if bandwidth else float("inf")
    figures = f"{dirty_bytes} bytes are dirty, {expected_ms:.0f} ms at {bandwidth:.0f} bytes/s"
    if expected_ms <= options.downtime_ms:
        return Decision(Verdict.SWITCH_OVER, f"{figures}, the limit is {options.downtime_ms} ms")
    if elapsed_s < options.timeout_s:
        return Decision(Verdict.ITERATE, figures)
    over = f"{figures}, and {options.timeout_s} s are over"
    if options.timeout_strategy is TimeoutStrategy.IGNORE:
        return Decision(Verdict.SWITCH_OVER, over)
    return Decision(Verdict.GIVE_UP, over)
