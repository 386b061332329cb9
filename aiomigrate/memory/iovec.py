"""What one vectored system call after the other moves: an array of `struct iovec` and a position in
it.

The array is (n, 2) uint64 of (host address, length), which is `struct iovec` on every 64-bit Linux.
No entry is longer than PIECE, so that an offer of some bytes is a run of whole entries: nothing is
split, and a partial write is undone by cutting one entry in place.

Addresses are bare numbers. An IoVector keeps the plain buffers alive that it was made of; guest
memory it does not: whoever hands it to a system call holds a lease on that memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from aiomigrate.memory import call_kernels, kernels

__all__ = ["IOV_MAX", "PIECE", "Buffer", "IoVector", "pieces_of"]

Buffer: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.generic]

PIECE = 256 * 1024
"""Bytes of an entry at most. An offer is bounded to within one piece of what was asked for."""

IOV_MAX: int = os.sysconf("SC_IOV_MAX")
"""Entries of one system call at most: 1,024 on Linux."""


def pieces_of(lengths: npt.NDArray[np.uint64]) -> int:
    """Entries that ranges of these lengths (u64) take."""
    piece = np.uint64(PIECE)
    return int((lengths // piece + (lengths % piece != 0)).sum())


def _buffer_words(buffers: Sequence[Buffer]) -> tuple[kernels.Words, list[npt.NDArray[np.uint8]]]:
    """Entries of plain buffers, and what keeps them alive and in place."""
    rows: list[tuple[int, int]] = []
    held = []
    for buffer in buffers:
        view = np.frombuffer(buffer, np.uint8) if len(buffer) else np.zeros(0, np.uint8)
        address: int = view.__array_interface__["data"][0]
        rows.extend(
            (address + start, min(PIECE, view.size - start)) for start in range(0, view.size, PIECE)
        )
        held.append(view)
    return np.array(rows, np.uint64).reshape(-1, 2), held


class IoVector:
    """Bytes still to be moved, as entries of (host address, length)."""

    def __init__(self, entries: kernels.Words, held: object = None, *, steady: bool = True) -> None:
        """Take over `entries`, an (n, 2) uint64 array that is changed by `advance`; `held` is kept
        as long.
        """
        self.steady = steady
        """Whether the memory stays there, so that it may be touched outside of system calls."""
        self._entries = entries
        self._address: int = entries.__array_interface__["data"][0]
        self._held = held
        self._begin = 0
        self._remaining = int(entries[:, 1].sum())

    @classmethod
    def of_buffers(cls, buffers: Sequence[Buffer]) -> IoVector:
        """The bytes of plain C-contiguous buffers, one after the other; empty ones are left out."""
        entries, held = _buffer_words(buffers)
        return cls(entries, held)

    @classmethod
    def after_buffers(
        cls, buffers: Sequence[Buffer], entries: kernels.Words, *, steady: bool
    ) -> IoVector:
        """The bytes of plain buffers, then those of entries, in memory that is `steady` or not."""
        head, held = _buffer_words(buffers)
        entries = np.concatenate((head, entries)) if len(head) else entries
        return cls(entries, held, steady=steady)

    @property
    def remaining(self) -> int:
        """Bytes that have not been moved yet."""
        return self._remaining

    def window(self, max_bytes: int) -> tuple[int, int, int]:
        """(address of the next entries, their number, their bytes), to be offered to one system
        call.

        At most IOV_MAX entries and at most `max_bytes`, but always one entry while bytes remain.
        The address is good until the next `advance` and as long as the IoVector lives.
        """
        count, size = kernels.window(
            self._entries, self._begin, IOV_MAX, np.uint64(max(0, max_bytes))
        )
        return self._address + 16 * self._begin, count, size

    def advance(self, nbytes: int) -> None:
        """Take off what a system call has moved; ValueError for more bytes than remain."""
        if not 0 <= nbytes <= self._remaining:
            raise ValueError(f"{nbytes} bytes moved of {self._remaining}")
        self._begin = kernels.advance(self._entries, self._begin, np.uint64(nbytes))
        self._remaining -= nbytes

    def through(self, function: int, handle: int, max_bytes: int, piece: int) -> tuple[int, int]:
        """Have a C function at an address move what remains, until it has moved `max_bytes` (or a
        little more): (bytes moved, 0 or why no more: an errno, or -1 for what is none).

        The function is `int f(void *handle, void *address, int length)`, and gets at most `piece`
        bytes a call. It runs without the GIL; only for memory that is `steady`.
        """
        moved, self._begin, code = call_kernels.move(
            np.uint64(function),
            np.uint64(handle),
            self._entries,
            self._begin,
            np.uint64(max_bytes),
            np.uint64(piece),
        )
        self._remaining -= moved
        return moved, code

    def __repr__(self) -> str:
        return f"<IoVector {self._remaining} bytes in {len(self._entries) - self._begin} entries>"
