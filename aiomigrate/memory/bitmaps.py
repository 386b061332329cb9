"""Dirty bitmaps: how much they mark, their union, and the ranges that they stand for.

A bitmap belongs to one mapping: shape (ceil(pages / 64),), dtype uint64, bit i of word w for the
page of 4096 bytes numbered 64 * w + i. Bits behind the last page are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from aiomigrate.memory.map import PAGE_BYTES, Mapping, MemoryMap
from aiomigrate.memory.ranges import RANGE, Table

__all__ = ["Bitmap", "check_bitmaps", "dirty_bytes", "dirty_tables", "union"]

Bitmap = NDArray[np.uint64]
_WORD_BITS = 64
_SLICE_WORDS = 4096
"""Words turned into ranges at a time: 1 GiB of guest, at most 128 Ki ranges (2 MiB)."""


def check_bitmaps(memory_map: MemoryMap, bitmaps: Sequence[Bitmap]) -> None:
    """ValueError unless there is a bitmap of the right shape and dtype for each mapping, or none.

    No bitmaps at all mean that nothing is dirty.
    """
    if not bitmaps:
        return
    if len(bitmaps) != len(memory_map.mappings):
        raise ValueError(
            f"the dirty log gave {len(bitmaps)} bitmaps for {len(memory_map.mappings)} mappings"
        )
    for mapping, bitmap in zip(memory_map.mappings, bitmaps, strict=True):
        words = -(-_pages(mapping) // _WORD_BITS)
        if bitmap.dtype != np.uint64 or bitmap.shape != (words,):
            raise ValueError(
                f"the dirty bitmap of slot {mapping.slot} must be uint64 of shape ({words},), "
                f"not {bitmap.dtype} of shape {bitmap.shape}"
            )


def _pages(mapping: Mapping) -> int:
    return -(-mapping.size // PAGE_BYTES)


def dirty_bytes(memory_map: MemoryMap, bitmaps: Sequence[Bitmap]) -> int:
    """Bytes of the pages that are marked."""
    if not bitmaps:
        return 0
    marked = 0
    for mapping, bitmap in zip(memory_map.mappings, bitmaps, strict=True):
        marked += int(np.bitwise_count(bitmap).sum())
        if behind := _pages(mapping) % _WORD_BITS:
            marked -= (int(bitmap[-1]) >> behind).bit_count()
    return PAGE_BYTES * marked


def union(first: Sequence[Bitmap], second: Sequence[Bitmap]) -> Sequence[Bitmap]:
    """What either marks; the arguments stay as they are."""
    if not first or not second:
        return first or second
    return [a | b for a, b in zip(first, second, strict=True)]


def dirty_tables(memory_map: MemoryMap, bitmaps: Sequence[Bitmap]) -> Iterator[Table]:
    """Range tables of what is marked, in order of address, a slice of the bitmap at a time.

    Neighbouring pages of a slice are one range; no range crosses a mapping's end.
    """
    if not bitmaps:
        return
    for mapping, bitmap in zip(memory_map.mappings, bitmaps, strict=True):
        pages = _pages(mapping)
        for start in range(0, len(bitmap), _SLICE_WORDS):
            words = bitmap[start : start + _SLICE_WORDS]
            if words.any():
                first = start * _WORD_BITS
                count = min(pages - first, words.size * _WORD_BITS)
                table = _runs(words, count)
                table["gpa"] += np.uint64(mapping.gpa + first * PAGE_BYTES)
                if len(table):
                    yield table


def _runs(words: Bitmap, pages: int) -> Table:
    """Runs of set bits among the first `pages`, as ranges from address 0."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=pages)
    edges = np.flatnonzero(np.diff(bits, prepend=0, append=0))
    table = np.empty(len(edges) // 2, RANGE)
    table["gpa"] = edges[0::2] * PAGE_BYTES
    table["length"] = (edges[1::2] - edges[0::2]) * PAGE_BYTES
    return table
