"""What limited the speed of a source: what its lanes waited for.

The time of all lanes together is shared out. A lane waits for a chunk (because of the rate limit,
because the pool's producer is behind, because the iteration is over), for answers as its window
is full, or for the kernel to take what it writes; the rest of its time it writes, or waits for its
turn on the event loop, for which the processor is the limit. Whether the network or the destination
is to blame for the second and third the kernel knows: while data is on its way and the receiver
takes it, it is the network.

Waits are counted where they begin and end: two readings of the clock each. Those that go on count
up to now, so that whoever asks in the middle of one is told what it is.
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
        self._lane_s = self._answers_s = self._rate_s = 0.0
        self._pool_s = dict.fromkeys(PoolState, 0.0)
        self._carriers: set[_Carrier] = set()
        self._link_s = self._socket_s = 0.0
        """Of lanes that carry no more."""
        self.looking_s = self.reading_s = self.zero_test_s = 0.0
        """Of `LimitedBy`; counted by the pool's jobs, of which there is one at a time."""

    @contextmanager
    def carrying(
        self, times: Callable[[], TcpTimes | None], waited: Callable[[], float]
    ) -> Iterator[None]:
        """A lane carries memory. `times` asks the kernel about its connection; `waited` says for
        how many seconds, up to now, its writes have waited for the kernel to take them.
        """
        self._advance()
        carrier = _Carrier(times, waited)
        self._carriers.add(carrier)
        try:
            yield
        finally:
            self._advance()
            self._carriers.remove(carrier)
            self._link_s += carrier.link_s
            self._socket_s += carrier.socket_s

    def pool(self, state: PoolState) -> None:
        """From now on there may be no chunk for this reason."""
        self._advance()
        self._pool = state

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
        socket_s = self._socket_s + sum(carrier.socket_s for carrier in self._carriers)
        peer = self._answers_s + self._pool_s[PoolState.DRAINING] + socket_s
        link = min(peer, self._link_s + sum(carrier.link_s for carrier in self._carriers))
        seconds = {
            Limit.RATE_LIMIT: self._rate_s,
            Limit.MEMORY: self._pool_s[PoolState.PRODUCING],
            Limit.LINK: link,
            Limit.DESTINATION: peer - link,
            Limit.BETWEEN_ITERATIONS: self._pool_s[PoolState.IDLE],
        }
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


class _Carrier:
    """A lane that carries. Its connection may do so again and again, and counts from when it was
    made.
    """

    def __init__(self, times: Callable[[], TcpTimes | None], waited: Callable[[], float]) -> None:
        self._times = times
        self._waited = waited
        self._link_before = _on_the_way(times())
        self._waited_before = waited()

    @property
    def link_s(self) -> float:
        """Seconds for which the network had data on its way since it began to carry."""
        return max(0.0, _on_the_way(self._times()) - self._link_before)

    @property
    def socket_s(self) -> float:
        """Seconds for which its writes have waited since then."""
        return self._waited() - self._waited_before


def _on_the_way(times: TcpTimes | None) -> float:
    """Seconds in which data was on its way and the receiver would have taken more."""
    return 0.0 if times is None else max(0.0, times.busy_s - times.receiver_s)
