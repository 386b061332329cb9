"""How many bytes of Memory a lane may have unanswered: enough to fill the link, and not more.

The window is twice the product of the highest delivery rate seen lately and the shortest round
trip. Twice, so that the rate can be seen to grow: while the window binds, each round trip at
least doubles it, until the link does. Delivery rate is counted as in BBR: bytes answered between
a chunk's departure and its answer, over that time. (Cardwell et al., ACM Queue 14-5, 2016.)
"""

from collections import deque
from dataclasses import dataclass

__all__ = ["Window"]

_GAIN = 2.0
_RATE_SAMPLES = 32
"""Samples whose highest rate counts: about as many chunks as a window holds."""
_ROUND_TRIP_S = 10.0
"""How long a shortest round trip is believed (BBR's value): paths change."""
_INITIAL_BYTES = 64 << 20
"""Before the first answer: what a stock sender's one request has on the way. Backpressure of the
socket holds a slow lane back long before that."""
_CLOCK_S = 1e-3
"""What an event loop's clock can tell apart: uvloop counts milliseconds. Shorter round trips count
as one, so that no rate becomes infinite."""
_FLOOR_CHUNKS = 2
"""One chunk on the way and one being applied: below that a lane waits for each answer."""


@dataclass(slots=True)
class _Sent:
    nbytes: int
    at: float
    delivered: int


class Window:
    """A lane's window and ledger of sizes. Times are seconds of any one clock."""

    def __init__(self, chunk_bytes: int, *, one_by_one: bool = False) -> None:
        """`one_by_one`: a chunk is sent only once the last one is answered."""
        self._one_by_one = one_by_one
        self._floor = _FLOOR_CHUNKS * chunk_bytes
        self._ledger: deque[_Sent] = deque()
        self._delivered = 0
        self._rates: deque[float] = deque(maxlen=_RATE_SAMPLES)
        self._round_trip = float("inf")
        self._round_trip_at = 0.0
        self.unanswered = 0
        """Bytes of content that wait for their answer."""
        self.size = max(self._floor, _INITIAL_BYTES)
        """Bytes of content that may wait for their answer."""

    @property
    def has_room(self) -> bool:
        """Whether another chunk may be sent: the window may be overrun by less than one."""
        return self.unanswered < (1 if self._one_by_one else self.size)

    @property
    def rate(self) -> float:
        """The delivery rate that the window is sized for, bytes a second; 0 before an answer."""
        return max(self._rates, default=0.0)

    @property
    def round_trip_s(self) -> float:
        """The shortest round trip seen lately, in seconds; infinite before an answer."""
        return self._round_trip

    def sent(self, nbytes: int, now: float) -> None:
        """A chunk of `nbytes` begins to leave."""
        self._ledger.append(_Sent(nbytes, now, self._delivered))
        self.unanswered += nbytes

    def answered(self, now: float) -> int:
        """The oldest chunk was answered: its bytes."""
        chunk = self._ledger.popleft()
        self.unanswered -= chunk.nbytes
        self._delivered += chunk.nbytes
        elapsed = max(now - chunk.at, _CLOCK_S)
        self._rates.append((self._delivered - chunk.delivered) / elapsed)
        if elapsed <= self._round_trip or now - self._round_trip_at > _ROUND_TRIP_S:
            self._round_trip, self._round_trip_at = elapsed, now
        self.size = max(self._floor, int(_GAIN * self.rate * self._round_trip))
        return chunk.nbytes
