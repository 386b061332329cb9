"""Having what was read acknowledged at once, where the peer may wait for that.

A stock sender writes header, table and content apart and without TCP_NODELAY: its last small
segment waits for our acknowledgement. Linux falls back to delayed ones by itself (tcp(7),
TCP_QUICKACK), so quick ones are asked for again around each read. After a read that acknowledges
what was read; where the read found nothing it makes sure that what comes next is acknowledged on
arrival, also if we have written in between.
"""

import socket
from collections.abc import Callable

__all__ = ["QuickAck"]

_BULK_BYTES = 1 << 16
"""A read of less may have drained the socket: a sender may wait for its acknowledgement."""


class QuickAck:
    """That of one connected socket: nothing on a unix socket, or if it is not `wanted`."""

    __slots__ = ("_sock", "wanted")

    def __init__(self, sock: socket.socket, *, wanted: bool) -> None:
        self._sock = sock
        self.wanted = wanted and sock.family != socket.AF_UNIX

    def after(self, read: Callable[[], int]) -> int:
        """Make a read of bulk, and have what may be the end of it acknowledged at once.

        In the middle of much the kernel acknowledges by itself, and setting the option each time
        costs 5 to 10 % of the throughput.
        """
        moved = 0
        try:
            moved = read()
        finally:
            if moved < _BULK_BYTES:
                self.now()
        return moved

    def now(self) -> None:
        """Have it acknowledged, and what comes next; nothing once the socket is closed."""
        if self.wanted and self._sock.fileno() >= 0:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
