"""Guest memory in files, a block of 1 MiB at a time.

A *block* is the unit of checksums, of compressed frames and of copying: it is read into a private
buffer, and what becomes of it (a digest, holes for zero pages, a frame) is decided on that copy.
Blocks are numbered from the beginning of a mapping; the last one may be shorter. All here is for
jobs of an executor: the calls release the GIL, and one of them takes about a millisecond.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping as ByKey
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from aiomigrate.memory import file_kernels, system_kernels
from aiomigrate.memory.directory import write_all
from aiomigrate.memory.map import PAGE_BYTES, MemoryMap

__all__ = [
    "BLOCK_BYTES",
    "Block",
    "BlockSource",
    "BlockTarget",
    "FilePart",
    "allocated_bytes",
    "needed_bytes",
    "new_buffer",
]

BLOCK_BYTES = 1 << 20

_FIND_BLOCKS = 4096
"""Looked for at once: 4 GiB of memory in some milliseconds."""
_STAT_BLOCK_BYTES = 512  # st_blocks, stat(2)

Block = npt.NDArray[np.uint8]


class BlockSource(Protocol):
    """Where blocks come from."""

    size: int
    """Bytes in all."""
    in_pages: bool
    """Whether `read_pages` reads less than a whole block."""

    def find(self, index: int) -> tuple[Sequence[int], int]:
        """Blocks from `index` on that may be other than zero, in order, and where to go on; some
        thousand at the most. It is over when that is behind the last block. OSError.
        """
        ...

    def read(self, index: int, buffer: Block) -> Block:
        """A block's content, in `buffer` or elsewhere. OSError."""
        ...

    def read_pages(self, index: int, first: int, last: int, buffer: Block) -> Block:
        """A block's content of which only the pages `first` to `last` are right, if the source is
        `in_pages`. OSError.
        """
        ...


class BlockTarget(Protocol):
    """Where blocks go."""

    job_blocks: int
    """How many of them to write in one job of some milliseconds."""

    def write(self, index: int, content: Block) -> bytes:
        """Write a block, or make what `append` is to write of it; blocks in any order. OSError."""
        ...

    def append(self, index: int, made: bytes) -> None:
        """Write what `write` has made; in order. Not called where it made nothing. OSError."""
        ...


def new_buffer() -> Block:
    """Room for one block."""
    return np.empty(BLOCK_BYTES, np.uint8)


class FilePart:
    """`size` bytes of a file from `offset` on, as blocks; the descriptor stays the caller's.

    A source and a target: as the latter it is taken to be all holes, and pages of 4096 bytes that
    are zero stay so.
    """

    in_pages = True
    job_blocks = 4

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self.size = size
        self._fd = fd
        self._offset = offset
        self._first = np.zeros(1, np.uint64)
        self._last = np.array([max(size, 1) - 1], np.uint64)
        self._fds = np.array([fd], np.int64)
        self._offsets = np.array([offset], np.int64)

    def find(self, index: int) -> tuple[Sequence[int], int]:
        """Blocks with data. OSError, EIO if the file is shorter than it should be."""
        # What was cut off would read as a hole. So this is asked before the first block is read,
        # and again behind the last one.
        if os.fstat(self._fd).st_size < self._offset + self.size:
            raise OSError(errno.EIO, "the file is shorter than it should be")
        found = np.empty(_FIND_BLOCKS, np.int64)
        count, following, code = file_kernels.data_blocks(
            self._fd, self._offset, self.size, index, BLOCK_BYTES, found
        )
        if code:
            raise OSError(code, f"finding data: {os.strerror(code)}")
        return found[:count].tolist(), following

    def read(self, index: int, buffer: Block) -> Block:
        """Read a block into `buffer`."""
        start = index * BLOCK_BYTES
        content = buffer[: min(BLOCK_BYTES, self.size - start)]
        code = file_kernels.read_block(self._fd, self._offset + start, content)
        if code:
            raise OSError(code, f"reading memory: {os.strerror(code)}")
        return content

    def read_pages(self, index: int, first: int, last: int, buffer: Block) -> Block:
        """Read some pages of a block into their places in `buffer`, and nothing else."""
        start = first * PAGE_BYTES
        content = buffer[start : (last + 1) * PAGE_BYTES]
        code = file_kernels.read_block(
            self._fd, self._offset + index * BLOCK_BYTES + start, content
        )
        if code:
            raise OSError(code, f"reading memory: {os.strerror(code)}")
        return buffer

    def write(self, index: int, content: Block) -> bytes:
        """Write a block's pages that are not zero; there is nothing to append."""
        table = np.array([[index * BLOCK_BYTES, content.size]], np.uint64)
        _, code = system_kernels.store(
            table, self._first, self._last, self._fds, self._offsets, content
        )
        if code:
            raise OSError(code, f"writing memory: {os.strerror(code)}")
        return b""

    def append(self, index: int, made: bytes) -> None:
        """Never called: `write` makes nothing."""
        raise NotImplementedError

    def write_pages(self, index: int, first: int, last: int, content: Block) -> None:
        """Write the pages `first` to `last` of a block, zeros too, so that they are allocated."""
        start = first * PAGE_BYTES
        piece = content[start : (last + 1) * PAGE_BYTES]
        write_all(self._fd, piece.data, self._offset + index * BLOCK_BYTES + start)


def allocated_bytes(fd: int) -> int:
    """What a file takes, beside what its file system needs for itself. OSError."""
    return os.fstat(fd).st_blocks * _STAT_BLOCK_BYTES


def needed_bytes(memory_map: MemoryMap, fds: ByKey[int, int]) -> int:
    """How much the memory in `fds` (by slot) can take at the most where holes take nothing: what is
    allocated in its files. OSError.
    """
    allocated: dict[tuple[int, int], int] = {}
    mapped: dict[tuple[int, int], int] = {}
    for mapping in memory_map.mappings:
        held = os.fstat(fds[mapping.slot])
        file = held.st_dev, held.st_ino
        allocated[file] = allocated_bytes(fds[mapping.slot])
        mapped[file] = mapped.get(file, 0) + mapping.size
    return sum(min(allocated[file], mapped[file]) for file in mapped)
