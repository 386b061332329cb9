"""`sendmsg` and `recvmsg` on a raw array of `struct iovec`, by ctypes.

The socket module wants a Python object for each buffer; guest memory comes as an array of addresses
that a kernel has computed. ctypes lets go of the GIL during the call. One object serves one
direction of one connection: it owns the `struct msghdr` that is filled in for each call, so that a
call makes no garbage.
"""

import ctypes
import errno
import os
import socket
import struct
from typing import Protocol

__all__ = ["IOVEC", "Vector", "VectoredCall", "first_entry"]

IOVEC = struct.Struct("=QQ")
"""`struct iovec` of 64-bit Linux: address and length."""


class Vector(Protocol):
    """Scattered memory that is moved from its start to its end, as an array of `struct iovec`.

    The owner keeps the memory mapped and the array in place until the transfer has ended.
    """

    @property
    def remaining(self) -> int:
        """Bytes that are not moved yet."""
        ...

    @property
    def steady(self) -> bool:
        """Whether the memory stays, so that it may be touched outside of system calls."""
        ...

    def window(self, max_bytes: int, /) -> tuple[int, int, int]:
        """The next entries, at most IOV_MAX: (address of the array, entries, bytes in them).

        At most `max_bytes` in all, except that one entry is always given. Only called while bytes
        remain.
        """
        ...

    def advance(self, nbytes: int, /) -> None:
        """Note that the first `nbytes` of what remains have been moved."""
        ...

    def through(self, function: int, handle: int, max_bytes: int, piece: int, /) -> tuple[int, int]:
        """Have a C function `int f(void *handle, void *address, int length)` move what remains, at
        most `piece` bytes a call, until it has moved `max_bytes` or a little more: (bytes moved, 0
        or why no more: an errno, or -1 for what is none). Only of what is `steady`.
        """
        ...


def first_entry(address: int) -> tuple[int, int]:
    """(address, length) of the first entry of the array that `Vector.window` gives."""
    base, length = IOVEC.unpack(ctypes.string_at(address, IOVEC.size))
    return base, length


class _MessageHeader(ctypes.Structure):
    """`struct msghdr` of Linux (recv(2))."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


_LIBC = ctypes.CDLL(None, use_errno=True)


class VectoredCall:
    """One direction's `sendmsg` or `recvmsg`, never blocking."""

    __slots__ = ("_address", "_flags", "_function", "_header")

    def __init__(self, *, write: bool) -> None:
        # A function object of its own: ctypes shares those that are looked up by attribute in the
        # whole process.
        self._function = _LIBC["sendmsg" if write else "recvmsg"]
        self._function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
        self._function.restype = ctypes.c_ssize_t
        self._flags = int(socket.MSG_DONTWAIT | (socket.MSG_NOSIGNAL if write else 0))
        self._header = _MessageHeader()
        self._address = ctypes.addressof(self._header)

    def __call__(self, fd: int, address: int, entries: int) -> int:
        """Move bytes between `fd` and the `entries` iovecs at `address`, and give their number.

        0 is the end of stream. Raises `BlockingIOError` where the call would wait, and another
        `OSError` for every other errno.
        """
        self._header.iov = address
        self._header.iovlen = entries
        while True:
            moved: int = self._function(fd, self._address, self._flags)
            if moved >= 0:
                return moved
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
