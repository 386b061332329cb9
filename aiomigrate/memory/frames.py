"""Memory in compressed frames that can be read one by one: Zstandard's seekable format.

A file is one frame a block, in order, and then the seek table: a skippable frame with the sizes of
all others, so that any zstd reads the file whole. (Format: zstd's contrib/seekable_format.) A block
of zeros has the same frame of some 40 bytes everywhere: it is found without being read, and written
many at a time. Each frame has zstd's own checksum, since one that is read alone can be compared
with no other. `zstandard` comes with the extra `zstd`.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import numpy as np

from aiomigrate.memory.blocks import BLOCK_BYTES, Block
from aiomigrate.memory.directory import write_all
from aiomigrate.memory.errors import FramesError

__all__ = ["FrameSource", "FrameTarget"]

_LEVEL = 1
"""Compresses some 500 MiB/s a core, so that disks wait for it rarely; higher levels of zstd gain
little on the memory of guests."""
_SKIPPABLE = 0x184D2A5E
_SEEKABLE = 0x8F92EAB1
_HEADER = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
_ENTRY_BYTES = 8
_MAX_FRAME_BYTES = BLOCK_BYTES + BLOCK_BYTES // 64
"""zstd's own bound for a block that cannot be compressed is less (1/256 more)."""
_FIND_BLOCKS = 4096
_ZEROS_AT_ONCE = 1 << 15
"""Frames of zeros in one write: some MiB."""


@cache
def _zero_frame(length: int) -> bytes:
    return _compress(bytes(length))


def _require_zstandard() -> None:
    if find_spec("zstandard") is None:
        raise FramesError("zstandard is not installed: pip install 'aiomigrate[zstd]'")


def _compress(content: bytes | memoryview) -> bytes:
    import zstandard

    # One each time: a compressor is used by one thread, and making one costs microseconds.
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(content)


class FrameTarget:
    """`size` bytes of memory as frames in a new file; the descriptor stays the caller's.

    FramesError if there is nothing to make them with.
    """

    job_blocks = 1
    """Compressing one takes 2 ms, and what is made waits in memory for its turn."""

    def __init__(self, fd: int, size: int) -> None:
        _require_zstandard()
        self._fd = fd
        self._size = size
        self._at = 0
        self._lengths = array("I")

    def write(self, index: int, content: Block) -> bytes:  # noqa: ARG002  # a frame has no number
        """The frame of a block, for `append`."""
        return _compress(content.data)

    def append(self, index: int, made: bytes) -> None:
        """Write a block's frame, and those of the zeros before it. OSError."""
        self._fill(index)
        self._put(made, 1)

    def finish(self) -> int:
        """Write what is missing, and the seek table; the bytes of the file. OSError."""
        self._fill(self._size // BLOCK_BYTES)
        tail = self._size % BLOCK_BYTES
        if tail and len(self._lengths) * BLOCK_BYTES < self._size:
            self._put(_zero_frame(tail), 1)
        count = len(self._lengths)
        table = np.empty((count, 2), "<u4")
        table[:, 0] = self._lengths
        table[:, 1] = BLOCK_BYTES
        if tail:
            table[-1, 1] = tail
        header = _HEADER.pack(_SKIPPABLE, count * _ENTRY_BYTES + _FOOTER.size)
        end = header + table.tobytes() + _FOOTER.pack(count, 0, _SEEKABLE)
        write_all(self._fd, end, self._at)
        return self._at + len(end)

    def _fill(self, index: int) -> None:
        while (missing := index - len(self._lengths)) > 0:
            self._put(_zero_frame(BLOCK_BYTES), min(missing, _ZEROS_AT_ONCE))

    def _put(self, frame: bytes, times: int) -> None:
        write_all(self._fd, frame * times, self._at)
        self._at += len(frame) * times
        self._lengths.extend(array("I", [len(frame)]) * times)


class FrameSource:
    """The memory in a file of frames; the descriptor stays the caller's.

    FramesError for a file that does not hold just `size` bytes in blocks as `FrameTarget` makes
    them, or if there is nothing to read them with; OSError.
    """

    in_pages = False

    def __init__(self, fd: int, size: int) -> None:
        _require_zstandard()  # before a guest depends on it
        self.size = size
        self._fd = fd
        self._ends = _read_table(fd, size)

    def find(self, index: int) -> tuple[Sequence[int], int]:
        """Blocks whose frames are not those of zeros."""
        end = min(index + _FIND_BLOCKS, len(self._ends))
        return [block for block in range(index, end) if not self._is_zero(block)], end

    def _is_zero(self, index: int) -> bool:
        zeros = _zero_frame(self._length(index))
        start, end = self._place(index)
        return end - start == len(zeros) and self._frame(index) == zeros

    def read(self, index: int, buffer: Block) -> Block:  # noqa: ARG002  # zstd makes its own
        """Read and decompress a block's frame. FramesError, OSError."""
        import zstandard

        frame = self._frame(index)
        length = self._length(index)
        try:
            # Before anything of that size is allocated.
            if zstandard.frame_content_size(frame) != length:
                raise FramesError(f"frame {index} does not hold {length} bytes")
            content = zstandard.ZstdDecompressor().decompress(frame, max_output_size=length)
        except zstandard.ZstdError as error:
            raise FramesError(f"frame {index} is damaged: {error}") from error
        return np.frombuffer(content, np.uint8)

    def read_pages(self, index: int, first: int, last: int, buffer: Block) -> Block:  # noqa: ARG002
        """A whole block: a frame cannot be read in part."""
        return self.read(index, buffer)

    def _length(self, index: int) -> int:
        return min(BLOCK_BYTES, self.size - index * BLOCK_BYTES)

    def _place(self, index: int) -> tuple[int, int]:
        return (int(self._ends[index - 1]) if index else 0), int(self._ends[index])

    def _frame(self, index: int) -> bytes:
        start, end = self._place(index)
        return _read(self._fd, end - start, start)


def _read_table(fd: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where each frame ends."""
    count = -(-size // BLOCK_BYTES)
    whole = os.fstat(fd).st_size
    table_bytes = _HEADER.size + count * _ENTRY_BYTES + _FOOTER.size
    if whole < table_bytes:
        raise FramesError("it has no whole seek table")
    raw = _read(fd, table_bytes, whole - table_bytes)
    expected = _HEADER.pack(_SKIPPABLE, table_bytes - _HEADER.size)
    footer = _FOOTER.pack(count, 0, _SEEKABLE)
    if not raw.startswith(expected) or not raw.endswith(footer):
        raise FramesError(f"it has no seek table of {count} frames")
    table = np.frombuffer(raw, "<u4", 2 * count, _HEADER.size).reshape(count, 2)
    lengths = np.full(count, BLOCK_BYTES)
    lengths[-1:] = size - (count - 1) * BLOCK_BYTES
    if (table[:, 1] != lengths).any() or (table[:, 0] > _MAX_FRAME_BYTES).any():
        raise FramesError(f"its frames are not blocks of {BLOCK_BYTES} bytes")
    ends = np.cumsum(table[:, 0], dtype=np.int64)
    if count and ends[-1] != whole - table_bytes:
        raise FramesError("its frames do not end where its seek table begins")
    return ends


def _read(fd: int, length: int, at: int) -> bytes:
    piece = os.pread(fd, length, at)
    while len(piece) < length:
        more = os.pread(fd, length - len(piece), at + len(piece))
        if not more:
            raise OSError(errno.EIO, "the file was cut while it was read")
        piece += more
    return piece
