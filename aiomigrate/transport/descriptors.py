"""Descriptors that travel beside the bytes of a unix socket (SCM_RIGHTS, unix(7)).

A plain read that reaches bytes with descriptors beside them has the kernel drop those, so where
they may come every read is a recvmsg. What came is held here until somebody takes it, and is closed
with the connection: no path loses one.
"""

import array
import os
import socket
from typing import Any

from aiomigrate.transport.errors import DescriptorError

__all__ = ["PassedDescriptors", "send_with"]

_ITEM_BYTES = array.array("i").itemsize
_ROOM = socket.CMSG_SPACE(_ITEM_BYTES)
"""For one descriptor; aligned, it holds two, so that a second one is seen. More are cut off, which
the kernel says (MSG_CTRUNC)."""


def send_with(sock: socket.socket, data: memoryview, fd: int, flags: int) -> int:
    """Send bytes with a descriptor beside them: how many were taken; the descriptor goes with the
    first.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    return sock.sendmsg([data], rights, flags)


class PassedDescriptors:
    """What came on `sock` and was not taken yet."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._sock = sock
        self._name = name
        self._held: list[int] = []
        self._cut = False

    def receive(self, max_bytes: int) -> bytes:
        """One read; descriptors that come beside its bytes are held."""
        data, ancillary, flags, _ = self._sock.recvmsg(max_bytes, _ROOM, socket.MSG_CMSG_CLOEXEC)
        self._hold(ancillary, flags)
        return data

    def receive_into(self, buffer: memoryview) -> int:
        """The same into a buffer: how many bytes."""
        moved, ancillary, flags, _ = self._sock.recvmsg_into(
            [buffer], _ROOM, socket.MSG_CMSG_CLOEXEC
        )
        self._hold(ancillary, flags)
        return moved

    def _hold(self, ancillary: list[tuple[int, int, Any]], flags: int) -> None:
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(data)
                self._held += fds
        self._cut |= bool(flags & socket.MSG_CTRUNC)
        # One at a time is ever taken: whoever sends more is refused, and fills no table meanwhile.
        while len(self._held) > 2:
            os.close(self._held.pop())

    def take(self, expected: int) -> list[int]:
        """All that came since the last time, which are `expected` (0 or 1) descriptors and the
        caller's from here on; DescriptorError, and all are closed, if they are not.
        """
        if len(self._held) == expected and not self._cut:
            taken, self._held = self._held, []
            return taken
        got = "more than came through (MSG_CTRUNC)" if self._cut else f"{len(self._held)}"
        self.close()
        raise DescriptorError(self._name, expected=expected, got=got)

    def close(self) -> None:
        """Close what nobody took."""
        while self._held:
            os.close(self._held.pop())
        self._cut = False
