"""What limited the speed of a source: what its lanes waited for.

The time of all lanes together is shared out. A lane waits for a chunk (because of the rate limit,
because the pool's producer is behind, because the iteration is over), for answers as its window
is full, or for the kernel to take what it writes; the rest of its time it writes, or waits for its
turn on the event loop, for which the processor is the limit. Whether the network or the destination
is to blame for the second and third the kernel knows: while data is on its way and the receiver
takes it, it is the network.

Waits are counted where they begin and end: two readings of the clock each.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType

from aiomigrate.transport import TcpTimes

__all__ = ["Limit", "LimitedBy", "PoolState", "Waits"]


class Limit(StrEnum):
    """What can limit the speed."""

    RATE_LIMIT = "rate_limit"
    """The one that was asked for (`SendOptions.rate_limit`)."""
    MEMORY = "memory"
    """This side's memory or disk: finding what is to be sent, reading it, telling zeros apart."""
    LINK = "link"
    """The network between the two hosts."""
    DESTINATION = "destination"
    """It reads or answers slowly, or whatever reads in its place does."""
    PROCESSOR = "processor"
    """This side's: it copies into sockets, encrypts, and runs everything else of the loop."""
    BETWEEN_ITERATIONS = "between_iterations"
    """Nothing is there to be sent: dirty logs are collected, the guest is paused and captured."""


class PoolState(StrEnum):
    """Why there may be no chunk in the pool."""

    PRODUCING = "producing"
    DRAINING = "draining"
    """All chunks of the iteration are taken, and not all of them are answered."""
    IDLE = "idle"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitedBy:
    """What limited the speed of a source, with the figures behind it."""

    cause: Limit
    """The one with the most seconds."""
    share: float
    """Its part of the time of all lanes, 0 to 1."""
    seconds: dict[str, float]
    """By `Limit`, of all lanes together: four lanes have four seconds a second."""
    looking_s: float
    """This and the next two: seconds of the jobs that make chunks. Looking for what is to be sent:
    for data in files, for bits in dirty bitmaps."""
    reading_s: float
    """Making pages resident."""
    zero_test_s: float
    """Telling pages apart that are zero."""


class _Mark:
    """A wait that can be entered by many lanes at once, and again and again."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self._advance = advance
        self.lanes = 0

    def __enter__(self) -> None:
        self._advance()
        self.lanes += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._advance()
        self.lanes -= 1


class Waits:
    """The waits of all lanes of a source, on one clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()
        self.answers = _Mark(self._advance)
        """A context: a lane waits for answers, as its window is full."""
        self.chunk = _Mark(self._advance)
        """A context: a lane waits for a chunk of the pool."""
        self.payment = _Mark(self._advance)
        """A context: who takes the next chunk waits for the rate limit, and all behind it do."""
        self._pool = PoolState.IDLE
        self._lane_s = self._answers_s = self._socket_s = self._rate_s = 0.0
        self._pool_s = dict.fromkeys(PoolState, 0.0)
        self._carriers: dict[int, tuple[Callable[[], TcpTimes | None], float]] = {}
        """Of each: what asks the kernel, and what it said when the lane began to carry."""
        self._carried = 0
        self._link_s = 0.0
        self.looking_s = self.reading_s = self.zero_test_s = 0.0
        """Of `LimitedBy`; counted by the pool's jobs, of which there is one at a time."""

    @contextmanager
    def carrying(self, times: Callable[[], TcpTimes | None]) -> Iterator[None]:
        """A lane carries memory. `times` asks the kernel about its connection."""
        self._advance()
        self._carried += 1
        number = self._carried
        self._carriers[number] = times, _on_the_way(times())
        try:
            yield
        finally:
            self._advance()
            self._link_s += _since(*self._carriers.pop(number))

    def pool(self, state: PoolState) -> None:
        """From now on there may be no chunk for this reason."""
        self._advance()
        self._pool = state

    def socket(self, seconds: float) -> None:
        """A lane waited so long for the kernel to take what it writes."""
        self._socket_s += seconds

    def _advance(self) -> None:
        now = self._clock()
        spent, self._at = now - self._at, now
        if not spent:
            return
        self._lane_s += len(self._carriers) * spent
        self._answers_s += self.answers.lanes * spent
        if self.payment.lanes:
            self._rate_s += self.chunk.lanes * spent
        else:
            self._pool_s[self._pool] += self.chunk.lanes * spent

    def judge(self) -> LimitedBy | None:
        """What limited the speed so far; None if no lane has spent any time."""
        self._advance()
        if not self._lane_s:
            return None
        peer = self._answers_s + self._pool_s[PoolState.DRAINING] + self._socket_s
        on_the_way = sum(_since(*carrier) for carrier in self._carriers.values())
        link = min(peer, self._link_s + on_the_way)
        seconds = {
            Limit.RATE_LIMIT: self._rate_s,
            Limit.MEMORY: self._pool_s[PoolState.PRODUCING],
            Limit.LINK: link,
            Limit.DESTINATION: peer - link,
            Limit.BETWEEN_ITERATIONS: self._pool_s[PoolState.IDLE],
        }
        # A wait that goes on is not in all of these yet.
        seconds[Limit.PROCESSOR] = max(0.0, self._lane_s - sum(seconds.values()))
        cause = max(seconds, key=lambda limit: seconds[limit])
        return LimitedBy(
            cause=cause,
            share=min(1.0, seconds[cause] / self._lane_s),
            seconds={limit.value: seconds[limit] for limit in Limit},
            looking_s=self.looking_s,
            reading_s=self.reading_s,
            zero_test_s=self.zero_test_s,
        )


def _since(times: Callable[[], TcpTimes | None], before: float) -> float:
    """A connection may carry again and again; the kernel counts from when it was made."""
    return max(0.0, _on_the_way(times()) - before)


def _on_the_way(times: TcpTimes | None) -> float:
    """Seconds in which data was on its way and the receiver would have taken more."""
    return 0.0 if times is None else max(0.0, times.busy_s - times.receiver_s)
