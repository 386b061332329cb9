"""Looking at guest memory from outside: by the vectors it gives, its files and descriptors."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from aiomigrate.memory.iovec import IoVector

__all__ = [
    "HIGH",
    "MIB",
    "MakeMemfd",
    "bytes_of",
    "fill_from",
    "open_descriptors",
    "resident_bytes",
]

MIB = 1 << 20
MakeMemfd = Callable[[int], int]
_libc = ctypes.CDLL(None, use_errno=True)
HIGH = 1 << 32


def bytes_of(vector: IoVector) -> bytes:
    """What a vector points at, by writev."""
    fd = os.memfd_create("copy")
    try:
        while vector.remaining:
            address, entries, size = vector.window(1 << 20)
            assert _libc.writev(fd, ctypes.c_void_p(address), entries) == size
            vector.advance(size)
        return os.pread(fd, 1 << 24, 0)
    finally:
        os.close(fd)


def fill_from(vector: IoVector, data: bytes) -> None:
    """Write `data` to where a vector points, by readv."""
    fd = os.memfd_create("data")
    try:
        os.pwrite(fd, data, 0)
        while vector.remaining:
            address, entries, size = vector.window(1 << 20)
            assert _libc.readv(fd, ctypes.c_void_p(address), entries) == size
            vector.advance(size)
    finally:
        os.close(fd)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident_bytes(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512
