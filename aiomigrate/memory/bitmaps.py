"""Dirty bitmaps: how much they mark, their union, and the ranges that they stand for.

A bitmap belongs to one mapping: shape (ceil(pages / 64),), dtype uint64, C-contiguous, bit i of
word w for page 64 * w + i. A page is 4096 bytes unless `page_bytes` says another power of two, up
to 1 GiB; bits behind the last page are ignored. Bitmaps are gone over without the GIL, in steps of
some milliseconds however large the guest is (docs/figures.md): the engine makes each step a
job of its executor.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from aiomigrate.memory import bitmap_kernels
from aiomigrate.memory.map import PAGE_BYTES, Mapping, MemoryMap
from aiomigrate.memory.ranges import RANGE, Table, make_table

__all__ = [
    "Bitmap",
    "check_bitmaps",
    "count_steps",
    "dirty_bytes",
    "dirty_tables",
    "union",
    "union_steps",
]

T = TypeVar("T")

Bitmap = NDArray[np.uint64]
_WORD_BITS = 64
_SLICE_RANGES = 64 * 1024
"""Ranges of a table at the most: 1 MiB."""
_FIRST_SLICE_WORDS = 16 * 1024
_SLICE_WORDS = 512 * 1024
"""Words looked at for a table at the most: 128 GiB of guest in 4 KiB pages, under a millisecond if
little is marked. So a table of a sparse bitmap need not wait until it is full; and the first one,
for which lanes wait, comes after 4 GiB of guest, each further one after twice as much.
"""

_STEP_WORDS = 4 << 20
"""Of a bitmap that is counted or joined in one step: 32 MiB, 1 TiB of guest."""

_NOTHING = "the dirty log gave None instead of a sequence of bitmaps"


def check_bitmaps(memory_map: MemoryMap, bitmaps: Sequence[Bitmap] | None) -> None:
    """ValueError unless there is a bitmap of the right shape and dtype for each mapping, or none.

    No bitmaps at all mean that nothing is dirty; None means that somebody forgot to return them.
    """
    if bitmaps is None:
        raise ValueError(_NOTHING)
    if not bitmaps:
        return
    if len(bitmaps) != len(memory_map.mappings):
        raise ValueError(
            f"the dirty log gave {len(bitmaps)} bitmaps for {len(memory_map.mappings)} mappings"
        )
    for mapping, bitmap in zip(memory_map.mappings, bitmaps, strict=True):
        words = -(-_pages(mapping, PAGE_BYTES) // _WORD_BITS)
        if bitmap.dtype != np.uint64 or bitmap.shape != (words,):
            raise ValueError(
                f"the dirty bitmap of slot {mapping.slot} must be uint64 of shape ({words},), "
                f"not {bitmap.dtype} of shape {bitmap.shape}"
            )
        if not (bitmap.flags.c_contiguous and bitmap.flags.aligned):
            raise ValueError(
                f"the dirty bitmap of slot {mapping.slot} must be contiguous and aligned"
            )


def _pages(mapping: Mapping, page_bytes: int) -> int:
    return -(-mapping.size // page_bytes)


def dirty_bytes(
    memory_map: MemoryMap, bitmaps: Sequence[Bitmap], page_bytes: int = PAGE_BYTES
) -> int:
    """Bytes of the pages that are marked: of the ranges that `dirty_tables` gives."""
    return _result(count_steps(memory_map, bitmaps, page_bytes))


def count_steps(
    memory_map: MemoryMap, bitmaps: Sequence[Bitmap], page_bytes: int = PAGE_BYTES
) -> Generator[None, None, int]:
    """`dirty_bytes` in steps."""
    if not bitmaps:
        return 0
    total = 0
    for mapping, bitmap in zip(memory_map.mappings, bitmaps, strict=True):
        pages = _pages(mapping, page_bytes)
        last_bit = (pages - 1) % _WORD_BITS
        last_word = int(bitmap[-1]) >> last_bit
        total -= page_bytes * (last_word >> 1).bit_count()
        if last_word & 1:  # a page that the end of the mapping may cut
            total -= page_bytes * pages - mapping.size
        for part in _parts(bitmap):
            total += page_bytes * bitmap_kernels.count(bitmap[part])
            yield
    return total


def union(first: Sequence[Bitmap], second: Sequence[Bitmap] | None) -> Sequence[Bitmap]:
    """What either marks, written into the bitmaps of `first`; those that are read-only are copied.

    ValueError if the two are not of the same shapes, or `second` is None.
    """
    return _result(union_steps(first, second))


def union_steps(
    first: Sequence[Bitmap], second: Sequence[Bitmap] | None
) -> Generator[None, None, Sequence[Bitmap]]:
    """`union` in steps; before the last one the bitmaps of `first` are joined in part."""
    if second is None:
        raise ValueError(_NOTHING)
    if not first or not second:
        return first or second
    if [bitmap.shape for bitmap in first] != [bitmap.shape for bitmap in second]:
        ours, theirs = ([bitmap.size for bitmap in bitmaps] for bitmaps in (first, second))
        raise ValueError(
            f"dirty bitmaps of two different memory maps have no union: of {ours} and of {theirs} "
            "words"
        )
    joined = []
    for one, other in zip(first, second, strict=True):
        target = one if one.flags.writeable else np.empty_like(one)
        for part in _parts(target):
            if target is not one:
                target[part] = one[part]
            bitmap_kernels.unite(target[part], other[part])
            yield
        joined.append(target)
    return joined


def _parts(bitmap: Bitmap) -> Iterator[slice]:
    for begin in range(0, len(bitmap), _STEP_WORDS):
        yield slice(begin, begin + _STEP_WORDS)


def _result(steps: Generator[None, None, T]) -> T:
    """Make all steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def dirty_tables(
    memory_map: MemoryMap, bitmaps: Sequence[Bitmap], page_bytes: int = PAGE_BYTES
) -> Iterator[Table]:
    """Range tables of what is marked, in order of address, at most 64 Ki ranges each.

    Neighbouring pages of a mapping are one range, and no range crosses a mapping's end; only a run
    that goes on for all that is looked at for a table (4 to 128 GiB of guest) comes in several, so
    that nobody waits for its end. Memory use does not grow with the bitmaps: a table is made when
    it is asked for.
    """
    if not bitmaps:
        return
    page_shift = np.uint64(page_bytes.bit_length() - 1)
    rows = np.empty((_SLICE_RANGES, 2), np.uint64)
    slice_words = _FIRST_SLICE_WORDS
    for mapping, bitmap in zip(memory_map.mappings, bitmaps, strict=True):
        pages = _pages(mapping, page_bytes)
        at, begun = 0, -1
        while at < pages:
            before = begun
            found, at, begun = bitmap_kernels.ranges(
                bitmap,
                pages,
                page_shift,
                np.uint64(mapping.gpa),
                np.uint64(mapping.size),
                at,
                begun,
                slice_words,
                rows,
            )
            slice_words = min(2 * slice_words, _SLICE_WORDS)
            if not found and begun == before >= 0:
                start = mapping.gpa + begun * page_bytes
                yield make_table([(start, (at - begun) * page_bytes)])
                begun = -1
            if found == _SLICE_RANGES:
                yield rows.reshape(-1).view(RANGE)
                rows = np.empty((_SLICE_RANGES, 2), np.uint64)
            elif found:
                yield rows[:found].copy().reshape(-1).view(RANGE)
