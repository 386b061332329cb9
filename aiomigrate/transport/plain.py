"""A channel without TLS: system calls on the socket itself, without a copy in this process."""

import fcntl
import socket
import sys
import termios

from aiomigrate.transport.descriptors import PassedDescriptors, send_with
from aiomigrate.transport.vectored import Vector, VectoredCall

__all__ = ["SEND_FLAGS", "DescriptorChannel", "PlainChannel", "unread_bytes", "unsent_bytes"]

SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


def unread_bytes(fd: int) -> int:
    """How many bytes the kernel holds for a socket (FIONREAD)."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def unsent_bytes(fd: int) -> int:
    """How many bytes of a socket the peer's kernel has not acknowledged (SIOCOUTQ); of a unix
    socket, with the kernel's own overhead.
    """
    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


class PlainChannel:
    """See `Channel`."""

    owed = 0

    def __init__(self, sock: socket.socket) -> None:
        self.written = 0
        self.received = 0
        self._sock = sock
        self._fd = sock.fileno()
        self._receive_vector = VectoredCall(write=False)
        self._send_vector = VectoredCall(write=True)

    def receive(self, max_bytes: int) -> bytes:
        data = self._sock.recv(max_bytes)
        self.received += len(data)
        return data

    def receive_into(self, view: memoryview) -> int:
        moved = self._sock.recv_into(view)
        self.received += moved
        return moved

    def receive_vector(self, vector: Vector, offer: int) -> int:
        address, entries, _ = vector.window(offer)
        moved = self._receive_vector(self._fd, address, entries)
        vector.advance(moved)
        self.received += moved
        return moved

    def send(self, view: memoryview) -> int:
        moved = self._sock.send(view, SEND_FLAGS)
        self.written += moved
        return moved

    send_now = send

    def send_beside(self, view: memoryview, descriptor: int) -> int:
        moved = send_with(self._sock, view, descriptor, SEND_FLAGS)
        self.written += moved
        return moved

    def send_vector(self, vector: Vector, offer: int) -> int:
        address, entries, _ = vector.window(offer)
        moved = self._send_vector(self._fd, address, entries)
        vector.advance(moved)
        self.written += moved
        return moved

    def flush(self) -> int:
        return 0

    def discard(self, view: memoryview) -> int:
        return self.receive_into(view)

    def unread(self) -> int:
        return unread_bytes(self._fd)

    def queued(self, unsent: int) -> int:
        return unsent

    def end(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    leave = end

    def close(self, *, politely: bool) -> None:
        pass


class DescriptorChannel(PlainChannel):
    """Of a unix socket whose peer may pass descriptors: every read looks for them."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        super().__init__(sock)
        self._passed = PassedDescriptors(sock, name)

    def receive(self, max_bytes: int) -> bytes:
        data = self._passed.receive(max_bytes)
        self.received += len(data)
        return data

    def receive_into(self, view: memoryview) -> int:
        moved = self._passed.receive_into(view)
        self.received += moved
        return moved

    def take(self, expected: int) -> list[int]:
        """See `PassedDescriptors.take`."""
        return self._passed.take(expected)

    def close(self, *, politely: bool) -> None:
        self._passed.close()
