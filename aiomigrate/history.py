"""The course of a migration over time, for plots and tables of it, however long it takes.

A `Recorder` keeps cumulative counts, not rates. A sample is due once its interval is over, and is
taken where an answer is counted: there is no task and no timer. When there is no room for another
one the interval doubles, and samples go that are closer to each other. A rate is made when it is
asked for, of two neighbours: the average between them, exact however coarse they are, and low where
everything stood still. The beginning of a phase is worth a sample, too, but none that is closer to
the one before than the interval, or its rates would be noise: it takes that one's place.

Of very many iterations the first and the last are kept.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from aiomigrate.phase import Phase

__all__ = [
    "MAX_ITERATIONS",
    "MAX_SAMPLES",
    "History",
    "Iteration",
    "Moment",
    "PhaseBegin",
    "Recorder",
    "Sample",
]

MAX_SAMPLES = 200
"""More than a plot has columns: of a long migration at least half as many are left."""
_INTERVAL_S = 0.05
"""Between two samples, at first: a few chunks of a quick network, and ten samples of half a second.
All of them are kept for 10 s."""
_CLOCK_S = 1e-3
"""What an event loop's clock can tell apart: uvloop counts milliseconds."""
_MOVING = (Phase.PRECOPY, Phase.SWITCHOVER)
_FIRST_ITERATIONS = 8
_LAST_ITERATIONS = 120
MAX_ITERATIONS = _FIRST_ITERATIONS + _LAST_ITERATIONS + 1
"""With the one that goes on. A guest that never converges makes thousands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One moment. Sizes in bytes, rates in bytes a second; None: unknown."""

    at_s: float
    """Since the migration began."""
    phase: Phase
    """Where the migration was."""
    iteration: int
    """Its number; 0 is the pass over all memory."""
    left_bytes: int
    """Of this iteration, still to be moved; at a destination at the most, as it is not told."""
    bytes_done: int
    """Content moved and answered in all iterations."""
    rate: float
    """Of content, on average since the sample before."""
    bandwidth: float | None
    """This and the next three: as `Progress` had them."""
    dirty_rate: float | None
    """How fast the guest writes memory."""
    expected_downtime_ms: float | None
    """If the guest had been paused then."""
    throttle_percent: int | None
    """How far the guest was slowed down; None, too, if it cannot be."""
    connections: dict[str, float]
    """The rates of those that moved anything since the sample before, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """One pass over what is to be moved. Sizes in bytes, rates in bytes a second."""

    number: int
    """0 is the pass over all memory."""
    bytes: int
    """To be moved when it began: in later ones what was dirty."""
    bytes_sent: int
    """Content, answered in this iteration."""
    zero_bytes: int
    """Found to be zero, and named or left out instead of sent."""
    duration_s: float
    """Until all of it was answered."""
    bandwidth: float | None
    """This and the next two: what the pre-copy policy reckoned with when it had ended; None of the
    last one, and at a destination."""
    dirty_rate: float | None
    """How fast the guest wrote memory meanwhile."""
    expected_downtime_ms: float | None
    """If the guest had been paused then."""
    throttle_percent: int | None
    """How far the guest was slowed down when it began; None if it cannot be."""
    decision: str
    """What the policy decided at its end, or an operator in the middle, and why; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBegin:
    """A phase, and when it began, in seconds since the migration did."""

    phase: Phase
    """Which one."""
    at_s: float
    """When it began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The course of a migration, oldest first."""

    samples: tuple[Sample, ...] = ()
    """At most `MAX_SAMPLES`, the newest one of the moment when this was made, or of the end."""
    iterations: tuple[Iteration, ...] = ()
    """At most `MAX_ITERATIONS`: of more, some in the middle are left out."""
    phases: tuple[PhaseBegin, ...] = ()
    """All of them so far, the present one last."""


class Moment(NamedTuple):
    """The counts at one time, on the loop's clock."""

    at: float
    phase: Phase
    iteration: int
    left_bytes: int
    bytes_done: int
    zero_bytes: int
    bandwidth: float | None
    dirty_rate: float | None
    expected_downtime_ms: float | None
    throttle_percent: int | None
    by_connection: tuple[int, ...]
    """Bytes of each, in the order in which they first moved any."""


@dataclass(slots=True)
class _Pass:
    """The newest iteration."""

    number: int
    nbytes: int
    began: Moment
    ended: float | None = None
    bandwidth: float | None = None
    dirty_rate: float | None = None
    expected_downtime_ms: float | None = None
    decision: str = ""

    def as_iteration(self, now: Moment) -> Iteration:
        """As it is now."""
        began = self.began
        return Iteration(
            number=self.number,
            bytes=self.nbytes,
            bytes_sent=now.bytes_done - began.bytes_done,
            zero_bytes=now.zero_bytes - began.zero_bytes,
            duration_s=(now.at if self.ended is None else self.ended) - began.at,
            bandwidth=self.bandwidth,
            dirty_rate=self.dirty_rate,
            expected_downtime_ms=self.expected_downtime_ms,
            throttle_percent=began.throttle_percent,
            decision=self.decision,
        )


class Recorder:
    """What one migration keeps of its course. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._moments: list[Moment] = []
        self._interval = _INTERVAL_S
        self.due = 0.0
        """When the next sample is to be taken."""
        self._first: list[Iteration] = []
        self._last: deque[Iteration] = deque(maxlen=_LAST_ITERATIONS)
        self._pass: _Pass | None = None

    def take(self, moment: Moment) -> None:
        """Keep a sample; none is earlier than the one before."""
        self._moments = self._with(moment)
        while len(self._moments) >= MAX_SAMPLES:  # there is one more of the moment of asking
            self._interval *= 2
            self._thin()
        self.due = moment.at + self._interval
        if moment.phase not in _MOVING and self._pass is not None and self._pass.ended is None:
            self._pass.ended = moment.at

    def _with(self, moment: Moment) -> list[Moment]:
        kept = self._moments
        # The first one is the beginning, whatever comes right behind it.
        if len(kept) > 1 and moment.at < kept[-1].at + self._interval:
            kept = kept[:-1]
        return [*kept, moment]

    def _thin(self) -> None:
        """Leave samples an interval apart; the first and the newest stay."""
        first, *others, newest = self._moments
        kept = [first]
        for moment in others:
            if self._interval - (moment.at - kept[-1].at) < _CLOCK_S:
                kept.append(moment)
        self._moments = [*kept, newest]

    def begin_iteration(self, nbytes: int, moment: Moment) -> None:
        """A pass over `nbytes` begins; the one before is over, if there was one."""
        if self._pass is not None:
            done = self._pass.as_iteration(moment)
            (self._first if len(self._first) < _FIRST_ITERATIONS else self._last).append(done)
        self._pass = _Pass(moment.iteration, nbytes, moment)

    def end_iteration(self, now: float) -> None:
        """All of it is answered."""
        if self._pass is not None:
            self._pass.ended = now

    def judge(
        self, bandwidth: float | None, dirty_rate: float, expected_downtime_ms: float | None
    ) -> None:
        """What the policy reckons with now that the iteration has ended."""
        if self._pass is not None:
            self._pass.bandwidth = bandwidth
            self._pass.dirty_rate = dirty_rate
            self._pass.expected_downtime_ms = expected_downtime_ms

    def decide(self, decision: str) -> None:
        """What was decided at the end of the iteration, or in it."""
        if self._pass is not None:
            self._pass.decision = decision

    def made(
        self,
        moment: Moment,
        names: Sequence[str],
        began: float,
        phases: Iterable[tuple[Phase, float]],
    ) -> History:
        """The course up to `moment`. `names` are those of the connections, in their order; `began`
        is when the migration did: what was before counts as then.
        """
        iterations = [*self._first, *self._last]
        if self._pass is not None:
            iterations.append(self._pass.as_iteration(moment))
        return History(
            samples=tuple(_samples(self._with(moment), names, began)),
            iterations=tuple(iterations),
            phases=tuple(PhaseBegin(phase=phase, at_s=_since(began, at)) for phase, at in phases),
        )


def _samples(moments: Iterable[Moment], names: Sequence[str], began: float) -> Iterator[Sample]:
    before: Moment | None = None
    for moment in moments:
        seconds = _since(began, moment.at) - (_since(began, before.at) if before else 0.0)
        moved = moment.bytes_done - (before.bytes_done if before else 0)
        each = zip_longest(
            moment.by_connection, before.by_connection if before else (), fillvalue=0
        )
        yield Sample(
            at_s=_since(began, moment.at),
            phase=moment.phase,
            iteration=moment.iteration,
            left_bytes=moment.left_bytes,
            bytes_done=moment.bytes_done,
            rate=_rate(moved, seconds),
            bandwidth=moment.bandwidth,
            dirty_rate=moment.dirty_rate,
            expected_downtime_ms=moment.expected_downtime_ms,
            throttle_percent=moment.throttle_percent,
            connections={
                name: _rate(now - then, seconds)
                for name, (now, then) in zip(names, each, strict=False)
                if now > then
            },
        )
        before = moment


def _since(began: float, at: float) -> float:
    return max(0.0, at - began)


def _rate(nbytes: int, seconds: float) -> float:
    """Whole bytes a second: a report has thousands of these."""
    return float(round(nbytes / seconds)) if seconds else 0.0
