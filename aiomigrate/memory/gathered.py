"""Memory that lies in pieces of other sources, as one row of blocks.

Cloud Hypervisor's `memory-ranges` holds pieces of mappings in any order, and is made of pieces of
memory files. Neither begins where a block of the other does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from aiomigrate.memory.blocks import BLOCK_BYTES, Block, BlockSource, new_buffer

__all__ = ["GatheredSource", "Piece"]

_FIND_BLOCKS = 4096


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes that are `at` bytes into a source, and belong `start` bytes into the whole."""

    start: int
    length: int
    source: BlockSource
    at: int


class GatheredSource:
    """`size` bytes, made of pieces that do not overlap; what lies between them is zero."""

    in_pages = False

    def __init__(self, size: int, pieces: Iterable[Piece]) -> None:
        """Looks once for the holes of all sources. OSError."""
        self.size = size
        self._pieces = sorted(pieces, key=lambda piece: piece.start)
        self._starts = [piece.start for piece in self._pieces]
        # A byte for a MiB of memory.
        self._data = {id(source): _data_of(source) for source in self._sources()}

    def _sources(self) -> Iterator[BlockSource]:
        return iter({id(piece.source): piece.source for piece in self._pieces}.values())

    def find(self, index: int) -> tuple[Sequence[int], int]:
        """Blocks of which a piece has data. OSError."""
        for source in self._sources():
            source.find(-(-source.size // BLOCK_BYTES))  # still whole
        end = min(index + _FIND_BLOCKS, -(-self.size // BLOCK_BYTES))
        return [block for block in range(index, end) if any(self._parts(block))], end

    def read(self, index: int, buffer: Block) -> Block:
        """Put a block together in `buffer`. OSError, FramesError."""
        content = buffer[: min(BLOCK_BYTES, self.size - index * BLOCK_BYTES)]
        content[:] = 0
        part = new_buffer()
        for piece, start, end in self._parts(index):
            for block in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
                first = block * BLOCK_BYTES
                low, high = max(start, first), min(end, first + BLOCK_BYTES)
                into = low - piece.at + piece.start - index * BLOCK_BYTES
                found = piece.source.read(block, part)[low - first : high - first]
                content[into : into + found.size] = found
        return content

    def read_pages(self, index: int, first: int, last: int, buffer: Block) -> Block:  # noqa: ARG002
        """A whole block."""
        return self.read(index, buffer)

    def _parts(self, index: int) -> Iterator[tuple[Piece, int, int]]:
        """What pieces have of a block, where it may be data: (piece, from and to in its source)."""
        start, end = index * BLOCK_BYTES, min((index + 1) * BLOCK_BYTES, self.size)
        at = max(0, bisect_right(self._starts, start) - 1)
        while at < len(self._pieces) and self._pieces[at].start < end:
            piece = self._pieces[at]
            low, high = max(start, piece.start), min(end, piece.start + piece.length)
            first, last = low - piece.start + piece.at, high - piece.start + piece.at
            data = self._data[id(piece.source)]
            if low < high and data[first // BLOCK_BYTES : -(-last // BLOCK_BYTES)].any():
                yield piece, first, last
            at += 1


def _data_of(source: BlockSource) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which blocks may be other than zero."""
    count = -(-source.size // BLOCK_BYTES)
    data = np.zeros(count, np.bool_)
    index = 0
    while index < count:
        found, index = source.find(index)
        data[list(found)] = True
    return data
