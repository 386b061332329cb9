"""The process behind a `Link` with a delay: carries packets between two TUN devices.

    python -m aiomigrate.testing.forwarding FD FD DELAY_S RATE QUEUE_S

RATE is in bytes a second, 0 for none. Says when it begins, ends with its standard input. Each
packet comes with the header in which the kernel says what is left to do to it (virtio_net_hdr:
checksum, segmentation); the other device is told the same.
"""

import os
import select
import sys
from collections import deque
from contextlib import suppress
from time import monotonic

__all__: list[str] = []

PACKET_BYTES = 10 + 65535
"""A virtio_net_hdr and the longest IPv4 packet."""

BATCH = 64
"""Packets to read from one device before the other has its turn; arbitrary."""


class Way:
    """One direction: a queue that empties at the rate, then the delay."""

    def __init__(self, source: int, sink: int, delay_s: float, rate: float, queue_s: float) -> None:
        self.source = source
        self._sink = sink
        self._delay_s = delay_s
        self._rate = rate
        self._queue_s = queue_s
        self._free_at = 0.0
        self._flying: deque[tuple[float, bytes]] = deque()

    @property
    def due(self) -> float:
        """When the next packet is to arrive; infinity if none is on the way."""
        return self._flying[0][0] if self._flying else float("inf")

    def take(self) -> None:
        """Take what the device has, or drop it where the queue is full."""
        with suppress(OSError):  # nothing more is there, or the device is down
            for _ in range(BATCH):
                packet = os.read(self.source, PACKET_BYTES)
                now = monotonic()
                if self._free_at - now > self._queue_s:
                    continue
                if self._rate:
                    self._free_at = max(now, self._free_at) + len(packet) / self._rate
                self._flying.append((max(now, self._free_at) + self._delay_s, packet))

    def land(self) -> None:
        """Deliver what is due."""
        while self.due <= monotonic():
            with suppress(OSError):  # the device is down, or its kernel has no room: a lost packet
                os.write(self._sink, self._flying.popleft()[1])


def main() -> None:
    """Carry packets until standard input ends."""
    near, far = (int(text) for text in sys.argv[1:3])
    delay_s, rate, queue_s = (float(text) for text in sys.argv[3:])
    ways = [
        Way(near, far, delay_s, rate, queue_s),
        Way(far, near, delay_s, rate, queue_s),
    ]
    print("carrying", flush=True)  # noqa: T201 - to the Link
    sources: list[int] = [0, near, far]
    while True:
        wait = min(way.due for way in ways) - monotonic()
        # select(2) has timeouts of microseconds; epoll's are of milliseconds.
        ready, _, _ = select.select(sources, [], [], None if wait == float("inf") else max(wait, 0))
        if 0 in ready:
            return
        for way in ways:
            if way.source in ready:
                way.take()
            way.land()


if __name__ == "__main__":
    main()
