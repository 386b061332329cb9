"""Blocking sockets for the thread-based peers: every operation has a timeout, and says what it is
doing.

A virtual clock must not jump while a peer still has something to do. `Wire.busy()` answers that
exactly: a thread in `recv` is busy only if something can be read, one in `send` only if something
can be written.
"""

import contextlib
import random
import select
import socket
import struct
import threading

__all__ = ["RequestLost", "Wire", "connect", "free_port", "listen", "ready", "text_of", "unread"]

_PIECE = 1 << 20


class RequestLost(Exception):
    """The other side ended in the middle of something: `got` of `wanted` bytes came."""

    def __init__(self, got: int, wanted: int) -> None:
        super().__init__(f"end of stream after {got} of {wanted} bytes")
        self.got = got
        self.wanted = wanted


class Wire:
    """A connected blocking socket for one thread; `busy` and `stop` are for other threads."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self.sock = sock
        sock.settimeout(timeout)
        self._waits_for = 0  # poll events of the system call it is in; 0 while it works
        self.resting = False  # silent on purpose, or waiting for another thread: never busy
        self._closing = threading.Lock()
        self._closed = False

    def receive(self, length: int) -> bytes:
        """Exactly `length` bytes; RequestLost at an earlier end of stream."""
        parts: list[bytes] = []
        missing = length
        while missing:
            piece = self.receive_some(min(missing, _PIECE))
            if not piece:
                raise RequestLost(length - missing, length)
            parts.append(piece)
            missing -= len(piece)
        return b"".join(parts)

    def receive_some(self, limit: int = _PIECE) -> bytes:
        """What is there, at least one byte; b"" at the end of stream."""
        self._waits_for = select.POLLIN
        try:
            return self.sock.recv(limit)
        finally:
            self._waits_for = 0

    def receive_rest(self) -> tuple[bytes, str]:
        """Everything that still comes, and how that ended: "eof", "reset" or "timeout"."""
        parts = []
        try:
            while piece := self.receive_some():
                parts.append(piece)
        except TimeoutError:
            return b"".join(parts), "timeout"
        except OSError:
            return b"".join(parts), "reset"
        return b"".join(parts), "eof"

    def send(self, data: bytes | memoryview) -> None:
        """All of `data`."""
        view = memoryview(data)
        while view:
            self._waits_for = select.POLLOUT
            try:
                sent = self.sock.send(view[:_PIECE])
            finally:
                self._waits_for = 0
            view = view[sent:]

    def readable_before(self, other: socket.socket, timeout: float) -> bool:
        """Wait until something can be read here; False if `other` can be read, too, or nothing
        came in time.
        """
        self._waits_for = select.POLLIN
        try:
            found, _, _ = select.select([other, self.sock], [], [], timeout)
        finally:
            self._waits_for = 0
        return found == [self.sock]

    def busy(self) -> bool:
        """Whether the thread on this socket can go on by itself."""
        with self._closing:
            if self._closed or self.resting:
                return False
            waits_for = self._waits_for
            return not waits_for or ready(self.sock, waits_for)

    def end_writing(self) -> None:
        """Let the other side read an end of stream; reading goes on."""
        with self._closing:
            if not self._closed:
                with contextlib.suppress(OSError):  # the other side has reset it
                    self.sock.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        """End both directions now: wakes a thread that waits in `receive` or `send`."""
        with self._closing:
            if not self._closed:
                with contextlib.suppress(OSError):  # not connected any more
                    self.sock.shutdown(socket.SHUT_RDWR)

    def close(self, *, reset: bool = False) -> None:
        """Close; `reset` drops what is unsent and lets the other side read ECONNRESET (TCP)."""
        with self._closing:
            if not self._closed:
                if reset:
                    no_linger = struct.pack("ii", 1, 0)
                    self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
                self._closed = True
                self.sock.close()


def listen(address: str) -> socket.socket:
    """A listening socket on "tcp:host:port" (0: any port) or "unix:path"."""
    family, where = _parse(address)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(256)
    except BaseException:
        listener.close()
        raise
    return listener


def free_port() -> int:
    """A TCP port of the loopback that a program can listen on, more than once.

    Below the range that the kernel takes ports of connections from (ip_local_port_range), so that
    none of another test takes it meanwhile.
    """
    while True:
        port = random.randint(10000, 32000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def connect(address: str, timeout: float) -> socket.socket:
    """A socket that is connected to "tcp:host:port" or "unix:path"."""
    family, where = _parse(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(where)
    except BaseException:
        sock.close()
        raise
    return sock


def text_of(listener: socket.socket) -> str:
    """The address of a listener, as Cloud Hypervisor writes it."""
    where = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{where}"
    host = f"[{where[0]}]" if listener.family == socket.AF_INET6 else where[0]
    return f"tcp:{host}:{where[1]}"


def unread(sock: socket.socket) -> bool:
    """Whether bytes lie in the socket that nobody has read."""
    try:
        return ready(sock, select.POLLIN) and bool(sock.recv(1, socket.MSG_PEEK))
    except (OSError, ValueError):  # ValueError: its thread has closed it
        return False


def ready(sock: socket.socket, events: int) -> bool:
    """Whether one of `events` (of select.poll), an error or a hang-up is there now."""
    poll = select.poll()
    poll.register(sock, events)
    return bool(poll.poll(0))


def _parse(address: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    kind, _, rest = address.partition(":")
    if kind == "unix":
        return socket.AF_UNIX, rest
    host, _, port = rest.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    return family, (host.strip("[]"), int(port))
