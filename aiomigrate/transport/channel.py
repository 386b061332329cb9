"""What a connection's bytes go through: the bare socket (`plain.py`), or TLS on it (`tls.py`).

A channel never waits: each of its calls does what can be done at once, or raises `BlockingIOError`.
Waiting, deadlines, turns, errors and who may do what are the `Connection`'s, once for both. All
bytes are counted as the two sides of a migration see them: of TLS, those inside of its records.
"""

from typing import Protocol

from aiomigrate.transport.vectored import Vector

__all__ = ["Channel", "UncleanEnd"]


class UncleanEnd(OSError):
    """The stream ended between two TLS records, and the peer has not said that it would.

    Cloud Hypervisor never says it (its rustls streams are dropped as they are), so between two
    messages this is an end like any other; inside of one it is a lost connection.
    """

    def __init__(self) -> None:
        super().__init__(0, "the peer ended the stream without a TLS close_notify")


class Channel(Protocol):
    """Both directions of one connected non-blocking socket.

    Receiving gives what is there, nothing at the end of the stream, or raises `BlockingIOError`;
    sending gives how many bytes the kernel has taken, or raises `BlockingIOError`.
    """

    written: int
    """Bytes that the kernel has taken from this side."""
    received: int
    """Bytes that this side has read."""

    def receive(self, max_bytes: int, /) -> bytes:
        """Read at most so many bytes."""
        ...

    def receive_into(self, view: memoryview, /) -> int:
        """Read into `view`."""
        ...

    def receive_vector(self, vector: Vector, offer: int, /) -> int:
        """Read about `offer` bytes at most into a vector, and advance it."""
        ...

    def send(self, view: memoryview, /) -> int:
        """Send from `view`; while bytes are `owed`, those go first and only they are counted."""
        ...

    def send_beside(self, view: memoryview, descriptor: int, /) -> int:
        """Send from `view`, with a descriptor beside the first byte; of unix sockets only."""
        ...

    def send_vector(self, vector: Vector, offer: int, /) -> int:
        """Send about `offer` bytes at most of a vector, and advance it; as `send`."""
        ...

    def send_now(self, view: memoryview, /) -> int:
        """Take of `view` what can be taken at once. An error means that nothing was; what was taken
        and not sent is `owed`.
        """
        ...

    @property
    def owed(self) -> int:
        """Bytes that were taken, and that the kernel has not: `flush` sends them."""
        ...

    def flush(self) -> int:
        """Send of what is owed, and give how many bytes that were."""
        ...

    def unread(self) -> int:
        """How many bytes have come and were not read; of TLS at least 1 if any have."""
        ...

    def queued(self, unsent: int, /) -> int:
        """At most how many of the `written` bytes are among the last `unsent` of the socket."""
        ...

    def discard(self, view: memoryview, /) -> int:
        """Read bytes that nobody wants, using `view`; TLS does not decrypt them."""
        ...

    def end(self) -> None:
        """End our direction of the stream, and go on reading."""
        ...

    def leave(self) -> None:
        """End our direction as politely as can be; what comes can only be discarded from now on."""
        ...

    def close(self, *, politely: bool) -> None:
        """Let go of what the channel holds, and `politely` tell the peer; the socket stays."""
        ...
