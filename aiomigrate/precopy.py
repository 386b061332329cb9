"""The pre-copy policy: another iteration, a slower guest, the pause, or the end.

A pure function of measured figures: no clock, no asyncio. The first tests and their order are the
reference's: nothing dirty; what is dirty is expected to move within the downtime; the time is over.
Unlike the reference's, the estimate looks at several iterations, since the last one alone may have
been short or unlucky, and a guest that writes faster than memory moves is noticed: it is throttled
where its VMM can do that (auto-converge), and the operator is told what would help.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from aiomigrate.options import MAX_THROTTLE_PERCENT, SendOptions, TimeoutStrategy

__all__ = ["Course", "Decision", "Figures", "Verdict", "decide", "trouble"]

_MIB = 1 << 20
_WINDOW = 4
_WINDOW_S = 10.0
"""Rates are those of the newest iterations: so many at the most, and no older ones than this, but
always the newest. Arbitrary: a few iterations even out, 10 s ago the network was another one."""
_CLOCK_S = 1e-3
"""What an event loop's clock can tell apart: uvloop counts milliseconds. Shorter iterations count
as that long, so that no rate becomes infinite."""
_PATIENCE = 4
"""Iterations without progress before the guest is throttled at all."""
_PATIENCE_MORE = 2
"""And between one raise and the next: the first iteration after a raise was dirtied before it."""
_THROTTLE_FIRST = 20
_THROTTLE_MORE = 10
"""Percent: QEMU's cpu-throttle-initial and cpu-throttle-increment."""


class Verdict(Enum):
    """What to do next."""

    ITERATE = "send another iteration"
    THROTTLE = "throttle the guest and send another iteration"
    SWITCH_OVER = "pause the guest"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and the figures behind it."""

    verdict: Verdict
    reason: str
    throttle_percent: int = 0
    """With THROTTLE: how far."""

    def __str__(self) -> str:
        return f"{self.verdict.value}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured when an iteration ended. Rates in bytes a second, over the window."""

    dirty_bytes: int
    """What is still to be sent."""
    bandwidth: float
    """0 where nothing was moved, so that nothing is known."""
    dirty_rate: float
    stalled: int
    """Iterations, the last ones, none of which left less to send than each one before."""
    since_throttle: int
    """Iterations since the guest was last throttled further."""
    throttle_percent: int | None
    """How far the guest is throttled; None if its VMM cannot do that."""
    elapsed_s: float
    """Since pre-copy began."""

    @property
    def expected_downtime_ms(self) -> float:
        """To move what is dirty; infinite where the bandwidth is not known."""
        return 1000 * self.dirty_bytes / self.bandwidth if self.bandwidth else float("inf")

    @property
    def diverging(self) -> bool:
        """Whether going on like this cannot succeed."""
        return self.stalled > 0 and self.dirty_rate >= self.bandwidth


class _Iteration(NamedTuple):
    moved: int
    settled: int
    dirty: int
    seconds: float


class Course:
    """The iterations so far, as far as they matter for what comes next."""

    def __init__(self) -> None:
        self._window: deque[_Iteration] = deque(maxlen=_WINDOW)
        self._least: int | None = None
        self._stalled = 0
        self._since_throttle = 0
        self._bandwidth = 0.0

    def add(self, *, moved: int, settled: int, dirty: int, seconds: float) -> None:
        """An iteration sent `moved` bytes, dealt with `settled`, zeros included, and left `dirty`
        of them, or others, dirty.
        """
        self._window.append(_Iteration(moved, settled, dirty, max(seconds, _CLOCK_S)))
        self._measure()
        self._since_throttle += 1
        if self._least is None or dirty < self._least:
            self._least = dirty
            self._stalled = 0
        else:
            self._stalled += 1

    def throttled(self) -> None:
        """From here on the guest is slower."""
        self._since_throttle = 0

    def _measure(self) -> None:
        """Iterations of nothing but zeros say nothing of the bandwidth, unless there were no
        others: then they are what is to be expected.
        """
        moved = settled = 0
        moving = settling = 0.0
        for iteration in self._lately():
            moved += iteration.moved
            moving += iteration.seconds if iteration.moved else 0.0
            settled += iteration.settled
            settling += iteration.seconds
        if moved:
            self._bandwidth = moved / moving
        elif not self._bandwidth:
            self._bandwidth = settled / settling

    def _lately(self) -> Iterator[_Iteration]:
        seconds = 0.0
        for iteration in reversed(self._window):
            if seconds and seconds + iteration.seconds > _WINDOW_S:
                break
            seconds += iteration.seconds
            yield iteration

    def figures(self, *, elapsed_s: float, throttle_percent: int | None) -> Figures:
        """What has been measured; there was an iteration."""
        lately = list(self._lately())
        seconds = sum(iteration.seconds for iteration in lately)
        return Figures(
            dirty_bytes=self._window[-1].dirty,
            bandwidth=self._bandwidth,
            dirty_rate=sum(iteration.dirty for iteration in lately) / seconds,
            stalled=self._stalled,
            since_throttle=self._since_throttle,
            throttle_percent=throttle_percent,
            elapsed_s=elapsed_s,
        )


def decide(options: SendOptions, figures: Figures) -> Decision:
    """Judge `figures` by the options as they are now."""
    if not figures.dirty_bytes:
        return Decision(Verdict.SWITCH_OVER, "nothing is dirty")
    expected_ms = figures.expected_downtime_ms
    said = (
        f"{figures.dirty_bytes} bytes are dirty, "
        f"{expected_ms:.0f} ms at {figures.bandwidth:.0f} bytes/s"
    )
    if expected_ms <= options.downtime_ms:
        return Decision(Verdict.SWITCH_OVER, f"{said}, the limit is {options.downtime_ms} ms")
    if figures.diverging:
        said += f", and the guest writes {figures.dirty_rate:.0f} bytes/s"
    if figures.elapsed_s >= options.timeout_s:
        over = f"{said}, and {options.timeout_s} s are over"
        if options.timeout_strategy is TimeoutStrategy.IGNORE:
            return Decision(Verdict.SWITCH_OVER, over)
        return Decision(Verdict.GIVE_UP, over)
    percent = _next_throttle(options, figures)
    if percent:
        return Decision(
            Verdict.THROTTLE,
            f"{said}; {figures.stalled} iterations without progress: by {percent} %",
            percent,
        )
    return Decision(Verdict.ITERATE, said)


def _next_throttle(options: SendOptions, figures: Figures) -> int:
    """How far to throttle from here on, if that is further than now; else 0."""
    now = figures.throttle_percent
    if now is None or now >= options.throttle_cap_percent:
        return 0
    patience = _PATIENCE_MORE if now else _PATIENCE
    if figures.stalled < patience or figures.since_throttle < _PATIENCE_MORE:
        return 0
    return min(now + _THROTTLE_MORE if now else _THROTTLE_FIRST, options.throttle_cap_percent)


def trouble(options: SendOptions, figures: Figures) -> str:
    """Why it does not converge and what would help, in a sentence; empty where it does."""
    if not figures.diverging or decide(options, figures).verdict is Verdict.SWITCH_OVER:
        return ""
    helps = []
    if figures.bandwidth:
        helps.append(f"a downtime of {figures.expected_downtime_ms:.0f} ms")
    helps.append("a higher rate limit" if options.rate_limit else "more bandwidth")
    percent = figures.throttle_percent
    if percent is None:
        slower = "a guest that writes less"
    elif percent < options.throttle_cap_percent:
        slower = "throttling, which will go further by itself"
    elif percent < MAX_THROTTLE_PERCENT:
        slower = "a higher throttle cap"
    else:
        slower = "a guest that writes less"
    helps.append(slower)
    return (
        f"the guest writes {figures.dirty_rate / _MIB:.1f} MiB/s and "
        f"{figures.bandwidth / _MIB:.1f} MiB/s are moved: "
        f"{', '.join(helps[:-1])} or {helps[-1]} would help"
    )
