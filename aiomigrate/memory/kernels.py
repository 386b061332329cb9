"""The loops over ranges, compiled: nothing in Python runs once per range.

Importing this module loads numba and compiles the kernels or loads them from the cache, which can
take seconds: it is imported by what handles memory, never by the package itself, and never first in
the middle of a migration.

A range table comes as its *words*: an (n, 2) C-contiguous uint64 array of (gpa, length). The memory
map comes as two uint64 arrays, sorted by address: the `firsts` and the `lasts` (inclusive, so that
a mapping can end at 2^64) of its mappings. Kernels are memory-safe for any table; those that look
up addresses report a range that is not inside one mapping, they never read beyond their arrays.

All arithmetic is in uint64. numba turns uint64 with a plain integer into float64, which loses bits:
so every constant that meets an address or a length is a typed one.

These kernels touch nothing but their arrays. `system_kernels` has those that make system calls for
a table; both look ranges up with `locate`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

import numpy as np
import numpy.typing as npt

from aiomigrate.memory.numba_cache import compiled

__all__ = [
    "CROSSES",
    "EMPTY",
    "FINE",
    "I64",
    "I64S",
    "ONE",
    "OUT",
    "OUTSIDE",
    "TABLE",
    "TOO_MUCH",
    "U64",
    "U64S",
    "WRAPS",
    "ZERO",
    "Numbers",
    "Words",
    "advance",
    "check",
    "chunk",
    "clip",
    "fill",
    "locate",
    "merge",
    "split",
    "window",
]

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

FINE: Final = 0
EMPTY: Final = 1
WRAPS: Final = 2
OUTSIDE: Final = 3
CROSSES: Final = 4
TOO_MUCH: Final = 5

types = import_module("numba").types

# Of kernels' arguments: a table that is read, one that is written, the memory map's columns.
TABLE = types.Array(types.uint64, 2, "C", readonly=True)
OUT = types.Array(types.uint64, 2, "C")
U64S = types.Array(types.uint64, 1, "C", readonly=True)
I64S = types.Array(types.int64, 1, "C", readonly=True)
I64 = types.int64
U64 = types.uint64

ZERO: Final = np.uint64(0)
ONE: Final = np.uint64(1)
# Sums of lengths stay below 2^63, so that they are exact as signed numbers (off_t, ssize_t)
# everywhere after.
_MAX_TOTAL: Final = np.uint64(2**63 - 1)


@compiled(I64(U64S, U64S, U64, I64))
def locate(firsts: Words, lasts: Words, gpa: np.uint64, hint: int) -> int:
    """The mapping that holds `gpa`, or -1; `hint` is tried first, since tables mostly stay in one
    mapping.
    """
    if 0 <= hint < firsts.shape[0] and firsts[hint] <= gpa <= lasts[hint]:
        return hint
    low = 0
    high = firsts.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if firsts[middle] <= gpa:
            low = middle + 1
        else:
            high = middle
    if low > 0 and gpa <= lasts[low - 1]:
        return low - 1
    return -1


@compiled(types.UniTuple(I64, 3)(TABLE, U64S, U64S), nogil=False)
def check(table: Words, firsts: Words, lasts: Words) -> tuple[int, int, int]:
    """(index of the first bad range or -1, reason, bytes of all ranges before it)."""
    total = ZERO
    mapping = 0
    for i in range(table.shape[0]):
        gpa = table[i, 0]
        length = table[i, 1]
        if length == ZERO:
            return i, EMPTY, int(total)
        last = gpa + (length - ONE)
        if last < gpa:
            return i, WRAPS, int(total)
        mapping = locate(firsts, lasts, gpa, mapping)
        if mapping < 0:
            return i, OUTSIDE, int(total)
        if last > lasts[mapping]:
            return i, CROSSES, int(total)
        if length > _MAX_TOTAL - total:
            return i, TOO_MUCH, int(total)
        total += length
    return -1, FINE, int(total)


@compiled(I64(TABLE, U64S, OUT))
def merge(table: Words, firsts: Words, out: Words) -> int:
    """Join each range with the one before it where it begins at that one's end and not at a
    mapping's start.

    Order is kept. `out` has room for the whole table; the number of rows written.
    """
    count = 0
    for i in range(table.shape[0]):
        gpa = table[i, 0]
        length = table[i, 1]
        if count > 0:
            start = out[count - 1, 0]
            end = start + out[count - 1, 1]
            if end == gpa and end > start and length > ZERO and end + (length - ONE) >= end:
                place = np.searchsorted(firsts, gpa)
                if place == firsts.shape[0] or firsts[place] != gpa:
                    out[count - 1, 1] += length
                    continue
        out[count, 0] = gpa
        out[count, 1] = length
        count += 1
    return count


@compiled(I64(TABLE, U64, OUT))
def split(table: Words, limit: np.uint64, out: Words) -> int:
    """Cut ranges into pieces of at most `limit` (> 0) bytes; rows written. Stops where `out` is
    full.
    """
    count = 0
    for i in range(table.shape[0]):
        gpa = table[i, 0]
        left = table[i, 1]
        while left > ZERO:
            if count == out.shape[0]:
                return count
            piece = min(left, limit)
            out[count, 0] = gpa
            out[count, 1] = piece
            count += 1
            gpa += piece
            left -= piece
    return count


@compiled(I64(TABLE, U64, U64, OUT))
def clip(table: Words, first: np.uint64, last: np.uint64, out: Words) -> int:
    """What of each range lies in [first, last] (inclusive); rows written. Ranges must not wrap or
    be empty.
    """
    count = 0
    for i in range(table.shape[0]):
        start = table[i, 0]
        if table[i, 1] == ZERO:
            continue
        end = start + (table[i, 1] - ONE)
        low = max(start, first)
        high = min(end, last)
        if low <= high:
            out[count, 0] = low
            out[count, 1] = high - low + ONE
            count += 1
    return count


@compiled(I64(TABLE, U64, I64, OUT))
def chunk(table: Words, max_bytes: np.uint64, max_ranges: int, out: Words) -> int:
    """Cut the table into slices of at most `max_bytes` and `max_ranges`; number of slices.

    Row k of `out` is (end of slice k in the table, its bytes). A longer single range makes a slice
    of its own.
    """
    count = 0
    begin = 0
    size = ZERO
    for i in range(table.shape[0]):
        length = table[i, 1]
        if i > begin and (
            i - begin >= max_ranges or size >= max_bytes or length > max_bytes - size
        ):
            out[count, 0] = np.uint64(i)
            out[count, 1] = size
            count += 1
            begin = i
            size = ZERO
        size += length
    if begin < table.shape[0]:
        out[count, 0] = np.uint64(table.shape[0])
        out[count, 1] = size
        count += 1
    return count


@compiled(I64(TABLE, U64S, U64S, U64S, U64, OUT), nogil=False)
def fill(
    table: Words, firsts: Words, lasts: Words, bases: Words, piece: np.uint64, out: Words
) -> int:
    """Write the iovec entries (host address, length <= piece) of a table; -1, or the index of a bad
    range.

    `bases` are the host addresses of the mappings. `out` has exactly as many rows as there are
    pieces.
    """
    count = 0
    mapping = 0
    for i in range(table.shape[0]):
        gpa = table[i, 0]
        left = table[i, 1]
        mapping = locate(firsts, lasts, gpa, mapping)
        if mapping < 0 or left == ZERO or left - ONE > lasts[mapping] - gpa:
            return i
        address = bases[mapping] + (gpa - firsts[mapping])
        while left > ZERO:
            if count == out.shape[0]:
                return i
            size = min(left, piece)
            out[count, 0] = address
            out[count, 1] = size
            count += 1
            address += size
            left -= size
    return -1


@compiled(types.UniTuple(I64, 2)(TABLE, I64, I64, U64), nogil=False)
def window(entries: Words, begin: int, max_entries: int, max_bytes: np.uint64) -> tuple[int, int]:
    """(entries, bytes) from `begin` on that fit both limits; one entry at least if there is one."""
    size = ZERO
    end = min(entries.shape[0], begin + max_entries)
    i = begin
    while i < end:
        length = entries[i, 1]
        if i > begin and (size >= max_bytes or length > max_bytes - size):
            break
        size += length
        i += 1
    return i - begin, int(size)


@compiled(I64(OUT, I64, U64), nogil=False)
def advance(entries: Words, begin: int, moved: np.uint64) -> int:
    """Take `moved` bytes off the front, cutting an entry in place; the new `begin`."""
    while begin < entries.shape[0] and moved >= entries[begin, 1]:
        moved -= entries[begin, 1]
        begin += 1
    if begin < entries.shape[0]:
        entries[begin, 0] += moved
        entries[begin, 1] -= moved
    return begin
