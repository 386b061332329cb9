"""A connection of the naive receiver in `peer.py`: what was seen on it, how it is answered."""

import contextlib
import struct
import threading

from tests.support.sockets import Wire, unread

__all__ = ["ERROR", "OK", "Connection", "Refused"]

OK, ERROR = 1, 2


class Refused(Exception):
    """The migration ends here, with this answer; `status` None: the connection is just closed."""

    def __init__(self, why: str, status: int | None = ERROR) -> None:
        super().__init__(why)
        self.status = status


class Connection:
    """One accepted connection and what was seen on it. `number` 0 is the main one."""

    def __init__(self, number: int, wire: Wire) -> None:
        self.number = number
        self.wire = wire
        self.role: int | None = None
        self.requests: list[int] = []  # commands, in order
        self.content = 0  # bytes of memory
        self.answers = bytearray()  # what was really sent
        self.error: str | None = None
        self._lock = threading.Lock()
        self._held: list[bytes] = []
        self.holding = False

    @property
    def unanswered(self) -> int:
        """Requests that were read and not answered yet."""
        with self._lock:
            return len(self.requests) - len(self.answers) // 16

    def answer(self, status: int) -> None:
        response = struct.pack("<H6xQ", status, 0)
        with self._lock:
            if self.holding:
                self._held.append(response)
            else:
                self._send(response)

    def release(self) -> None:
        """Send what was held back."""
        with self._lock:
            self.holding = False
            with contextlib.suppress(OSError):  # the sender may be gone
                for response in self._held:
                    self._send(response)
            self._held.clear()

    def unread_request(self) -> bool:
        """Whether bytes lie in the socket that nobody has read."""
        return self.role is not None and unread(self.wire.sock)

    def _send(self, response: bytes) -> None:
        self.wire.send(response)
        self.answers += response
