"""What a migration does right now, and what it did.

The engine counts in a `Tracker`; `Progress` and `Report` are frozen snapshots for others to keep.
"""

import asyncio
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from aiomigrate.downtime import Downtime
from aiomigrate.errors import Owner
from aiomigrate.history import History, Moment, Recorder
from aiomigrate.limiting import LimitedBy, Waits
from aiomigrate.phase import Phase

__all__ = ["Account", "ConnectionProgress", "Progress", "Report", "Tracker"]

_DECISIONS = 256
"""Decisions that are kept, the newest: a guest that never converges makes many."""
_RATE_WINDOW_S = 0.5
"""Rates are averages over at least this long: a person reads them."""
_ALMOST = 0.99
"""The overall figure at the most before the end: memory may be dirtied again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionProgress:
    """One connection that carries memory."""

    name: str
    """`main`, or `lane` and its number."""
    bytes: int
    """Bytes of content that have been moved and answered."""
    rate: float
    """Bytes a second, over the last half second or more."""
    window: int
    """At a source: bytes of content that may wait for their answer, as of the last one; else 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A snapshot of a migration. Sizes in bytes, rates in bytes a second."""

    phase: Phase
    """Where the migration is."""
    iteration: int
    """Its number; 0 is the pass over all memory."""
    iteration_bytes: int
    """What this iteration is expected to move; at a destination what came so far."""
    iteration_bytes_done: int
    """What of it was moved, or found to be zero."""
    bytes_done: int
    """Content moved and answered in all iterations."""
    zero_bytes: int
    """Found to be zero, and named or left out instead of sent; holes of files do not count."""
    ranges: int
    """The number of Memory requests' ranges that were moved and answered."""
    total_bytes: int
    """The guest's RAM; 0 until it is known."""
    connections: tuple[ConnectionProgress, ...]
    """Those that have carried memory, lost ones among them."""
    lanes_lost: int
    """The number of connections that were lost so far; their memory was sent again on others."""
    chunks_resent: int
    """The number of Memory requests that lost connections left unanswered, and that were sent
    again; 0 at a destination."""
    rate: float
    """Bytes of content a second on all connections, over the last half second or more."""
    elapsed_s: float
    """Since the migration began."""
    dirty_rate: float | None
    """Bytes a second that the guest dirties; None until an iteration has measured it."""
    expected_downtime_ms: float | None
    """If the guest were paused now; None until it can be told."""
    bandwidth: float | None
    """Bytes a second that moved in the last iterations, as the pre-copy policy reckons; None until
    an iteration has measured it."""
    throttle_percent: int | None
    """How far the guest is slowed down; None if it cannot be."""
    trouble: str
    """Why pre-copy does not converge and what would help, in a sentence; empty while it does."""
    fraction: float
    """Of the whole work, done: 0 to 1, 1 only at the end. Never less than it was before, though
    memory is dirtied and has to be sent again: it then stands still."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a migration did so far, or until it failed. Sizes in bytes."""

    duration_s: float
    """From the beginning of the attempt to its end."""
    bytes: int
    """Bytes of content that were moved and answered, those of all iterations."""
    zero_bytes: int
    """Found to be zero, and named or left out instead of sent; holes of files do not count."""
    iterations: int
    """The number of passes over memory, the last one among them."""
    connections: int
    """The number that carried memory, as `SendOptions.connections` counts them: the additional
    ones, lost ones and their replacements among them, or else the main one."""
    lanes_lost: int
    """The number of connections that were lost on the way."""
    warnings: tuple[str, ...] = ()
    """What went otherwise than it should have, and ended nothing; a sentence each."""
    decisions: tuple[str, ...] = ()
    """Each decision of the pre-copy policy, with its reason; of very many the last 256."""
    limited_by: LimitedBy | None = None
    """What limited the speed of a source; None at a destination, and where no memory was sent."""
    history: History = field(default_factory=History)
    """The course of it, for plots and tables."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Account):
    """A migration that succeeded."""

    owner: Owner
    """Who has the VM: the destination."""
    running: bool
    """Whether the guest runs at its owner."""
    downtime_ms: float
    """Source: from before pause to the answer to Complete. Destination: from State to its own."""
    confirmed: bool
    """Destination: the source has said that it read the answer, or else closed in good order after
    it. Source: always true."""
    downtime: Downtime | None = None
    """The source's downtime by stages, which add up to `downtime_ms`; None at a destination."""


@dataclass(slots=True)
class _Counter:
    bytes: int = 0
    rate: float = 0.0
    window: int = 0
    mark_bytes: int = 0
    mark_at: float = 0.0


@dataclass(slots=True)
class Tracker:
    """The engine's own counts, on the loop's clock."""

    iteration: int = 0
    iteration_bytes: int = 0
    iteration_bytes_done: int = 0
    bytes_done: int = 0
    ranges: int = 0
    total_bytes: int = 0
    zero_bytes: int = 0
    lanes_lost: int = 0
    chunks_resent: int = 0
    dirty_rate: float | None = None
    expected_downtime_ms: float | None = None
    bandwidth: float | None = None
    throttle_percent: int | None = None
    trouble: str = ""
    warnings: list[str] = field(default_factory=list)
    decisions: deque[str] = field(default_factory=lambda: deque(maxlen=_DECISIONS))
    started_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    _connections: dict[str, _Counter] = field(default_factory=dict)
    _overall: _Counter = field(default_factory=_Counter)
    _recorder: Recorder = field(default_factory=Recorder)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    phases: list[tuple[Phase, float]] = field(default_factory=list)
    """Each phase so far and when it began, the present one last."""
    waits: Waits = field(default_factory=lambda: Waits(asyncio.get_running_loop().time))
    """What the lanes of a source wait for."""
    _fraction: float = 0.0

    @property
    def phase(self) -> Phase:
        """Where the migration is."""
        return self.phases[-1][0] if self.phases else Phase.CONNECTING

    @phase.setter
    def phase(self, phase: Phase) -> None:
        now = self._loop.time()
        self.phases.append((phase, now))
        self._recorder.take(self._moment(now))

    def begin_iteration(self, number: int, expected_bytes: int) -> None:
        """A new pass, with its counts at zero."""
        self.iteration = number
        self.iteration_bytes = expected_bytes
        self.iteration_bytes_done = 0
        self._recorder.begin_iteration(expected_bytes, self._moment(self._loop.time()))

    def end_iteration(self) -> None:
        """Everything of it is answered."""
        self._recorder.end_iteration(self._loop.time())

    def judged(self, *, bandwidth: float | None, dirty_rate: float, downtime_ms: float) -> None:
        """What the pre-copy policy reckons with after an iteration; no bandwidth, no downtime."""
        self.dirty_rate = dirty_rate
        if bandwidth:
            self.bandwidth, self.expected_downtime_ms = bandwidth, downtime_ms
        self._recorder.judge(self.bandwidth, dirty_rate, self.expected_downtime_ms)

    def decided(self, decision: str) -> None:
        """What was decided after an iteration or in it, and why."""
        self.decisions.append(decision)
        self._recorder.decide(decision)

    def moved(self, connection: str, nbytes: int, ranges: int = 1, window: int = 0) -> None:
        """A Memory of `nbytes` of content in `ranges` ranges was answered on `connection`, which
        may have `window` bytes unanswered.
        """
        self.bytes_done += nbytes
        self.ranges += ranges
        self.iteration_bytes_done += nbytes
        if not self._overall.bytes:
            self._overall.mark_at = self.started_at
        self._overall.bytes += nbytes
        counter = self._connections.setdefault(connection, _Counter(mark_at=self.started_at))
        counter.bytes += nbytes
        counter.window = window
        self._look()

    def zeroed(self, nbytes: int) -> None:
        """So many bytes were found to be zero, and named or left out instead of sent."""
        self.zero_bytes += nbytes
        self.iteration_bytes_done += nbytes
        self._look()

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._recorder.due:
            self._recorder.take(self._moment(now))

    def _moment(self, now: float) -> Moment:
        return Moment(
            at=now,
            phase=self.phase,
            iteration=self.iteration,
            left_bytes=max(0, self.iteration_bytes - self.iteration_bytes_done),
            bytes_done=self.bytes_done,
            zero_bytes=self.zero_bytes,
            bandwidth=self.bandwidth,
            dirty_rate=self.dirty_rate,
            expected_downtime_ms=self.expected_downtime_ms,
            throttle_percent=self.throttle_percent,
            by_connection=tuple(counter.bytes for counter in self._connections.values()),
        )

    @property
    def carriers(self) -> int:
        """How many connections have carried memory; beside lanes the main one does not count."""
        lanes = len(self._connections.keys() - {"main"})
        return lanes or len(self._connections)

    def snapshot(self) -> Progress:
        """The counts as they are."""
        now = asyncio.get_running_loop().time()
        rate = _measure(self._overall, now)
        connections = tuple(
            ConnectionProgress(
                name=name,
                bytes=counter.bytes,
                rate=_measure(counter, now),
                window=counter.window,
            )
            for name, counter in self._connections.items()
        )
        return Progress(
            phase=self.phase,
            iteration=self.iteration,
            iteration_bytes=max(self.iteration_bytes, self.iteration_bytes_done),
            iteration_bytes_done=self.iteration_bytes_done,
            bytes_done=self.bytes_done,
            zero_bytes=self.zero_bytes,
            ranges=self.ranges,
            total_bytes=self.total_bytes,
            connections=connections,
            lanes_lost=self.lanes_lost,
            chunks_resent=self.chunks_resent,
            rate=rate,
            elapsed_s=now - self.started_at,
            dirty_rate=self.dirty_rate,
            expected_downtime_ms=self.expected_downtime_ms,
            bandwidth=self.bandwidth,
            throttle_percent=self.throttle_percent,
            trouble=self.trouble,
            fraction=self._measure_fraction(),
        )

    def _measure_fraction(self) -> float:
        """What is done of what is known to be to do: that may grow, the figure does not shrink."""
        if self.phase is Phase.DONE:
            self._fraction = 1.0
            return 1.0
        done = self.bytes_done + self.zero_bytes
        whole = done + max(0, self.iteration_bytes - self.iteration_bytes_done)
        if whole:
            self._fraction = max(self._fraction, min(done / whole, _ALMOST))
        return self._fraction

    def account(self) -> Account:
        """What was done so far; from the end on, until then."""
        over = self.phase in {Phase.DONE, Phase.FAILED}
        return Account(**self._account(self.phases[-1][1] if over else self._loop.time()))

    def report(
        self,
        *,
        running: bool,
        downtime_ms: float,
        downtime: Downtime | None = None,
        confirmed: bool = True,
    ) -> Report:
        """The counts of a migration whose VM is now with the destination."""
        return Report(
            owner=Owner.DESTINATION,
            running=running,
            downtime_ms=downtime_ms,
            confirmed=confirmed,
            downtime=downtime,
            **self._account(self._loop.time()),
        )

    def _account(self, now: float) -> dict[str, Any]:
        return {
            "duration_s": now - self.started_at,
            "bytes": self.bytes_done,
            "zero_bytes": self.zero_bytes,
            "iterations": self.iteration + 1,
            "connections": self.carriers,
            "lanes_lost": self.lanes_lost,
            "warnings": tuple(self.warnings),
            "decisions": tuple(self.decisions),
            "limited_by": self.waits.judge() if self.bytes_done else None,
            "history": self._recorder.made(
                self._moment(now), tuple(self._connections), self.started_at, self.phases
            ),
        }


def _measure(counter: _Counter, now: float) -> float:
    elapsed = now - counter.mark_at
    if elapsed >= _RATE_WINDOW_S:
        counter.rate = (counter.bytes - counter.mark_bytes) / elapsed
        counter.mark_bytes, counter.mark_at = counter.bytes, now
    return counter.rate
