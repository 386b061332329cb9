"""The loops over dirty bitmaps, compiled: bitmap to ranges, counting, joining, marking.

A bitmap is a C-contiguous uint64 array, bit i of word w for page 64 * w + i; what the bits behind
the last page hold means nothing. Kernels are memory-safe whatever a bitmap holds, even if somebody
writes to it meanwhile, and run without the GIL: they are called in jobs of an executor.

Ranges are found by their *edges*, the pages at which the bits change: in `x ^ (x << 1 | before)`,
where `before` is the last bit of the word before, each set bit is one, by turns the first page of a
run of marked pages and the page behind it. Eight words without an edge (all zeros, or all ones in
the middle of a run) are passed over at once, in vector registers. In a word with edges four
positions are written without asking how many there are, then eight at a time, and the surplus is
written over; and which words of eight have edges is found without asking each. A branch that
depends on the data costs more than that (benchmarks/bitmap_scan.py: in 1 % of bits set at random
60 % more, in all).

All arithmetic is in uint64. numba turns uint64 with a plain integer into float64, which loses bits:
so every constant that meets a word or a page is a typed one.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aiomigrate.memory.numba_cache import compiled

__all__ = ["Words", "count", "mark", "ranges", "subtract", "unite"]

Words = npt.NDArray[np.uint64]

_types = import_module("numba").types
_intrinsic = import_module("numba.extending").intrinsic
_ir = import_module("llvmlite.ir")

_I64 = _types.int64
_U64 = _types.uint64
_BITMAP = _types.Array(_U64, 1, "C", readonly=True)
_TARGET = _types.Array(_U64, 1, "C")
_REGIONS = _types.Array(_U64, 2, "C", readonly=True)
_OUT = _types.Array(_U64, 2, "C")

_ZERO: Final = np.uint64(0)
_ONE: Final = np.uint64(1)
_ALL: Final = np.uint64(2**64 - 1)
_TOP: Final = np.uint64(63)
_WORD_SHIFT: Final = np.uint64(6)  # 64 pages a word
_BLOCK: Final = 8
"""Words passed over, and positions written, at once: 64 bytes are a cache line and an AVX-512
register. 16 and 64 words were no faster over all densities.
"""
_BLOCK_U64: Final = np.uint64(_BLOCK)
_AT_FIRST: Final = 4
"""Positions written of each word. 8 cost 10 % at 0.1 and 1 % of bits set, and gained 15 at 5 %."""
_BLOCK_EDGES: Final = np.uint64(64 * _BLOCK + _AT_FIRST + _BLOCK)
"""Positions that are written for a block at the most, the surplus included."""


@_intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def _trailing_zeros(_context: Any, word: Any) -> Any:
    """Zeros below the lowest set bit of a word; 64 for 0 (LLVM: llvm.cttz, x86: tzcnt)."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], _ir.Constant(_ir.IntType(1), 0))

    return _U64(word), generate


@_intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def _popcount(_context: Any, word: Any) -> Any:
    """Set bits of a word (LLVM: llvm.ctpop, x86: popcnt)."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return _U64(word), generate


@compiled(_types.UniTuple(_I64, 3)(_BITMAP, _I64, _U64, _U64, _U64, _I64, _I64, _I64, _OUT))
def ranges(
    bitmap: Words,
    pages: int,
    page_shift: np.uint64,
    gpa: np.uint64,
    size: np.uint64,
    at: int,
    begun: int,
    max_words: int,
    out: Words,
) -> tuple[int, int, int]:
    """Turn marked pages into ranges: (rows written to `out`, `at` and `begun` for the next call).

    `bitmap` has ceil(pages / 64) words for the `pages` pages of 2 ** page_shift bytes of a mapping
    of `size` bytes that begins at `gpa`. The first call gets 0 and -1 for `at`, the page from which
    to go on, and `begun`, the first page of a run whose end was not yet seen; at == pages is the
    end. A call stops where `out` is full, or at the latest after `max_words` words: a run that is
    not over there goes into a later call's rows, so that every row is a run from its first page to
    its last. No range passes the end of the mapping.
    """
    edges = out.reshape(-1)
    room = np.uint64(edges.shape[0])
    words = np.uint64(bitmap.shape[0])
    last = words - _ONE
    behind = np.uint64(pages) & _TOP
    last_mask = _ALL if behind == _ZERO else (_ONE << behind) - _ONE
    found = _ZERO
    before = _ZERO  # all ones in a run, so that it serves as a mask
    if begun >= 0:
        edges[0] = np.uint64(begun)
        found = _ONE
        before = _ALL
    # A call ends in the middle of a word only where `out` is full: at the first page of a run.
    first_mask = _ALL << (np.uint64(at) & _TOP)
    word = np.uint64(at) >> _WORD_SHIFT
    end = min(words, word + np.uint64(max_words))
    cut = _ALL
    while word < end and cut == _ALL:
        block_end = min(end, word + _BLOCK_U64)
        if block_end - word == _BLOCK_U64:
            differs = _ZERO
            for i in range(_BLOCK):
                differs |= bitmap[word + np.uint64(i)] ^ before
            if differs == _ZERO:
                word = block_end
                continue
            # Not where a word is taken in part, or `out` may be full in the middle.
            if first_mask == _ALL and block_end <= last and found + _BLOCK_EDGES <= room:
                carry = before & _ONE
                changing = _ZERO
                for i in range(_BLOCK):
                    marked = bitmap[word + np.uint64(i)]
                    edged = (marked ^ ((marked << _ONE) | carry)) != _ZERO
                    changing |= np.uint64(edged) << np.uint64(i)
                    carry = marked >> _TOP
                while changing != _ZERO:
                    here = word + _trailing_zeros(changing)
                    changing &= changing - _ONE
                    marked = bitmap[here]
                    if here == word:
                        left = marked ^ ((marked << _ONE) | (before & _ONE))
                    else:
                        left = marked ^ ((marked << _ONE) | (bitmap[here - _ONE] >> _TOP))
                    base = here << _WORD_SHIFT
                    place = found
                    found += _popcount(left)
                    for _ in range(_AT_FIRST):
                        edges[place] = base + _trailing_zeros(left)
                        left &= left - _ONE
                        place += _ONE
                    while place < found:
                        for i in range(_BLOCK):
                            edges[place + np.uint64(i)] = base + _trailing_zeros(left)
                            left &= left - _ONE
                        place += _BLOCK_U64
                before = _ALL if bitmap[block_end - _ONE] >> _TOP else _ZERO
                word = block_end
                continue
        while word < block_end:
            marked = bitmap[word] & first_mask
            first_mask = _ALL
            if word == last:
                marked &= last_mask
            left = marked ^ ((marked << _ONE) | (before & _ONE))
            base = word << _WORD_SHIFT
            if left != _ZERO:
                while left != _ZERO and found < room:
                    edges[found] = base + _trailing_zeros(left)
                    left &= left - _ONE
                    found += _ONE
                if left != _ZERO:
                    cut = base + _trailing_zeros(left)
                    break
            before = _ALL if marked >> _TOP else _ZERO
            word += _ONE
    reached = np.uint64(pages) if word == words else word << _WORD_SHIFT
    if cut != _ALL:
        reached = cut
    going_on = _ALL  # none: -1, as a signed number
    if found & _ONE:
        # `room` is even: there is a place for the end of a run that has begun.
        if reached == np.uint64(pages):
            edges[found] = reached
            found += _ONE
        else:
            found -= _ONE
            going_on = edges[found]
    rows = found >> _ONE
    for row in range(rows):
        start = out[row, 0]
        out[row, 0] = gpa + (start << page_shift)
        out[row, 1] = (out[row, 1] - start) << page_shift
    if rows > _ZERO:
        last_row = rows - _ONE
        out[last_row, 1] = min(out[last_row, 1], size - (out[last_row, 0] - gpa))
    return int(rows), int(reached), int(going_on)


@compiled(_I64(_BITMAP))
def count(bitmap: Words) -> int:
    """Set bits."""
    total = _ZERO
    for word in bitmap:
        total += _popcount(word)
    return int(total)


@compiled(_types.void(_TARGET, _BITMAP))
def unite(target: Words, other: Words) -> None:
    """Target |= other; both have the same length."""
    for i in range(min(target.shape[0], other.shape[0])):
        target[i] |= other[i]


@compiled(_types.void(_TARGET, _BITMAP))
def subtract(target: Words, other: Words) -> None:
    """Target &= ~other; both have the same length."""
    for i in range(min(target.shape[0], other.shape[0])):
        target[i] &= ~other[i]


@compiled(_types.void(_REGIONS, _U64, _U64, _TARGET))
def mark(regions: Words, base: np.uint64, page_shift: np.uint64, target: Words) -> None:
    """Mark the pages of `regions`: rows of (first byte, end, ignored), multiples of the page size.

    `base` is the address of the bitmap's first page. What lies outside of the bitmap is left out.
    """
    pages = np.uint64(target.shape[0]) << _WORD_SHIFT
    for i in range(regions.shape[0]):
        if regions[i, 0] < base or regions[i, 1] <= regions[i, 0]:
            continue
        page = (regions[i, 0] - base) >> page_shift
        end = min((regions[i, 1] - base) >> page_shift, pages)
        while page < end:
            low = page & _TOP
            length = min(end - page, np.uint64(64) - low)
            target[page >> _WORD_SHIFT] |= (_ALL >> (np.uint64(64) - length)) << low
            page += length
