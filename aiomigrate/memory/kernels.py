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
"""

from __future__ import annotations

import errno
import os
from importlib import import_module
from typing import Final

import numpy as np
import numpy.typing as npt

from aiomigrate.memory.numba_cache import compiled

__all__ = [
    "CROSSES",
    "EMPTY",
    "FINE",
    "OUTSIDE",
    "TOO_MUCH",
    "WRAPS",
    "Words",
    "advance",
    "advise",
    "allocate",
    "check",
    "chunk",
    "clip",
    "extents",
    "fill",
    "merge",
    "resident",
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

_types = import_module("numba").types
_carray = import_module("numba").carray

_TABLE = _types.Array(_types.uint64, 2, "C", readonly=True)
_OUT = _types.Array(_types.uint64, 2, "C")
_U64S = _types.Array(_types.uint64, 1, "C", readonly=True)
_I64S = _types.Array(_types.int64, 1, "C", readonly=True)
_BYTES = _types.Array(_types.uint8, 1, "C")
_I64 = _types.int64
_U64 = _types.uint64

# From libc, by name, so that compiled kernels can be cached (an address could not). They run
# without the GIL, and errno belongs to the calling thread.
_madvise = _types.ExternalFunction("madvise", _types.int32(_U64, _U64, _types.int32))
_mincore = _types.ExternalFunction("mincore", _types.int32(_U64, _U64, _U64))
_fallocate = _types.ExternalFunction(
    "fallocate", _types.int32(_types.int32, _types.int32, _I64, _I64)
)
_lseek = _types.ExternalFunction("lseek", _I64(_types.int32, _I64, _types.int32))
_errno_location = _types.ExternalFunction("__errno_location", _types.CPointer(_types.int32)())

_ZERO: Final = np.uint64(0)
_ONE: Final = np.uint64(1)
# Sums of lengths stay below 2^63, so that they are exact as signed numbers (off_t, ssize_t)
# everywhere after.
_MAX_TOTAL: Final = np.uint64(2**63 - 1)
_EINTR: Final = errno.EINTR
_ENXIO: Final = errno.ENXIO
_SEEK_DATA: Final = os.SEEK_DATA
_SEEK_HOLE: Final = os.SEEK_HOLE


@compiled(_I64(_U64S, _U64S, _U64, _I64))
def _locate(firsts: Words, lasts: Words, gpa: np.uint64, hint: int) -> int:
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


@compiled(_types.UniTuple(_I64, 3)(_TABLE, _U64S, _U64S), nogil=False)
def check(table: Words, firsts: Words, lasts: Words) -> tuple[int, int, int]:
    """(index of the first bad range or -1, reason, bytes of all ranges before it)."""
    total = _ZERO
    mapping = 0
    for i in range(table.shape[0]):
        gpa = table[i, 0]
        length = table[i, 1]
        if length == _ZERO:
            return i, EMPTY, int(total)
        last = gpa + (length - _ONE)
        if last < gpa:
            return i, WRAPS, int(total)
        mapping = _locate(firsts, lasts, gpa, mapping)
        if mapping < 0:
            return i, OUTSIDE, int(total)
        if last > lasts[mapping]:
            return i, CROSSES, int(total)
        if length > _MAX_TOTAL - total:
            return i, TOO_MUCH, int(total)
        total += length
    return -1, FINE, int(total)


@compiled(_I64(_TABLE, _U64S, _OUT))
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
            if end == gpa and end > start and length > _ZERO and end + (length - _ONE) >= end:
                place = np.searchsorted(firsts, gpa)
                if place == firsts.shape[0] or firsts[place] != gpa:
                    out[count - 1, 1] += length
                    continue
        out[count, 0] = gpa
        out[count, 1] = length
        count += 1
    return count


@compiled(_I64(_TABLE, _U64, _OUT))
def split(table: Words, limit: np.uint64, out: Words) -> int:
    """Cut ranges into pieces of at most `limit` (> 0) bytes; rows written. Stops where `out` is
    full.
    """
    count = 0
    for i in range(table.shape[0]):
        gpa = table[i, 0]
        left = table[i, 1]
        while left > _ZERO:
            if count == out.shape[0]:
                return count
            piece = min(left, limit)
            out[count, 0] = gpa
            out[count, 1] = piece
            count += 1
            gpa += piece
            left -= piece
    return count


@compiled(_I64(_TABLE, _U64, _U64, _OUT))
def clip(table: Words, first: np.uint64, last: np.uint64, out: Words) -> int:
    """What of each range lies in [first, last] (inclusive); rows written. Ranges must not wrap or
    be empty.
    """
    count = 0
    for i in range(table.shape[0]):
        start = table[i, 0]
        if table[i, 1] == _ZERO:
            continue
        end = start + (table[i, 1] - _ONE)
        low = max(start, first)
        high = min(end, last)
        if low <= high:
            out[count, 0] = low
            out[count, 1] = high - low + _ONE
            count += 1
    return count


@compiled(_I64(_TABLE, _U64, _I64, _OUT))
def chunk(table: Words, max_bytes: np.uint64, max_ranges: int, out: Words) -> int:
    """Cut the table into slices of at most `max_bytes` and `max_ranges`; number of slices.

    Row k of `out` is (end of slice k in the table, its bytes). A longer single range makes a slice
    of its own.
    """
    count = 0
    begin = 0
    size = _ZERO
    for i in range(table.shape[0]):
        length = table[i, 1]
        if i > begin and (
            i - begin >= max_ranges or size >= max_bytes or length > max_bytes - size
        ):
            out[count, 0] = np.uint64(i)
            out[count, 1] = size
            count += 1
            begin = i
            size = _ZERO
        size += length
    if begin < table.shape[0]:
        out[count, 0] = np.uint64(table.shape[0])
        out[count, 1] = size
        count += 1
    return count


@compiled(_I64(_TABLE, _U64S, _U64S, _U64S, _U64, _OUT), nogil=False)
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
        mapping = _locate(firsts, lasts, gpa, mapping)
        if mapping < 0 or left == _ZERO or left - _ONE > lasts[mapping] - gpa:
            return i
        address = bases[mapping] + (gpa - firsts[mapping])
        while left > _ZERO:
            if count == out.shape[0]:
                return i
            size = min(left, piece)
            out[count, 0] = address
            out[count, 1] = size
            count += 1
            address += size
            left -= size
    return -1


@compiled(_types.UniTuple(_I64, 2)(_TABLE, _I64, _I64, _U64), nogil=False)
def window(entries: Words, begin: int, max_entries: int, max_bytes: np.uint64) -> tuple[int, int]:
    """(entries, bytes) from `begin` on that fit both limits; one entry at least if there is one."""
    size = _ZERO
    end = min(entries.shape[0], begin + max_entries)
    i = begin
    while i < end:
        length = entries[i, 1]
        if i > begin and (size >= max_bytes or length > max_bytes - size):
            break
        size += length
        i += 1
    return i - begin, int(size)


@compiled(_I64(_OUT, _I64, _U64), nogil=False)
def advance(entries: Words, begin: int, moved: np.uint64) -> int:
    """Take `moved` bytes off the front, cutting an entry in place; the new `begin`."""
    while begin < entries.shape[0] and moved >= entries[begin, 1]:
        moved -= entries[begin, 1]
        begin += 1
    if begin < entries.shape[0]:
        entries[begin, 0] += moved
        entries[begin, 1] -= moved
    return begin


@compiled(_types.UniTuple(_I64, 2)(_TABLE, _U64S, _U64S, _U64S, _U64, _types.int32))
def advise(
    table: Words, firsts: Words, lasts: Words, bases: Words, page: np.uint64, advice: int
) -> tuple[int, int]:
    """madvise() the pages that a table touches; (-1, 0) or (index of the range, errno; 0 for a bad
    range).

    Ranges are widened to whole pages, and neighbours of the same pages or adjoining ones share a
    call.
    """
    mask = ~(page - _ONE)
    mapping = 0
    start = _ZERO
    end = _ZERO
    for i in range(table.shape[0] + 1):
        low = _ZERO
        high = _ZERO
        if i < table.shape[0]:
            gpa = table[i, 0]
            length = table[i, 1]
            mapping = _locate(firsts, lasts, gpa, mapping)
            if mapping < 0 or length == _ZERO or length - _ONE > lasts[mapping] - gpa:
                return i, 0
            address = bases[mapping] + (gpa - firsts[mapping])
            low = address & mask
            high = (address + length + (page - _ONE)) & mask
            if start <= low <= end and end > start:
                end = max(end, high)
                continue
        while end > start and _madvise(start, end - start, advice) != 0:
            code = _carray(_errno_location(), 1)[0]
            if code != _EINTR:
                return max(i - 1, 0), int(code)
        start = low
        end = high
    return -1, 0


@compiled(_types.boolean(_TABLE, _U64S, _U64S, _U64S, _U64, _BYTES), nogil=False)
def resident(
    table: Words,
    firsts: Words,
    lasts: Words,
    bases: Words,
    page: np.uint64,
    scratch: npt.NDArray[np.uint8],
) -> bool:
    """Whether mincore() finds every page that a table touches in memory.

    False, too, for a range outside the mappings or of more pages than `scratch` has bytes.
    """
    mask = ~(page - _ONE)
    mapping = 0
    for i in range(table.shape[0]):
        gpa = table[i, 0]
        length = table[i, 1]
        mapping = _locate(firsts, lasts, gpa, mapping)
        if mapping < 0 or length == _ZERO or length - _ONE > lasts[mapping] - gpa:
            return False
        address = bases[mapping] + (gpa - firsts[mapping])
        low = address & mask
        pages = (((address + length + (page - _ONE)) & mask) - low) // page
        if pages > np.uint64(scratch.shape[0]):
            return False
        if _mincore(low, np.uint64(pages * page), np.uint64(scratch.ctypes.data)) != 0:
            return False
        for at in range(pages):
            if not scratch[at] & 1:
                return False
    return True


@compiled(_types.UniTuple(_I64, 2)(_TABLE, _U64S, _U64S, _I64S, _I64S))
def allocate(
    table: Words, firsts: Words, lasts: Words, fds: Numbers, offsets: Numbers
) -> tuple[int, int]:
    """fallocate() what a table touches; (-1, 0) or (index of the range, errno; 0 for a bad range).

    `fds` and `offsets` are of each mapping: its file (-1: none) and where in it the mapping begins.
    """
    mapping = 0
    held = -1
    start = _ZERO
    end = _ZERO
    for i in range(table.shape[0] + 1):
        low = _ZERO
        high = _ZERO
        here = -1
        if i < table.shape[0]:
            gpa = table[i, 0]
            length = table[i, 1]
            here = _locate(firsts, lasts, gpa, mapping)
            if here < 0 or length == _ZERO or length - _ONE > lasts[here] - gpa:
                return i, 0
            mapping = here
            low = gpa - firsts[here]
            high = low + length
            if here == held and start <= low <= end:
                end = max(end, high)
                continue
        while (
            held >= 0
            and fds[held] >= 0
            and _fallocate(fds[held], 0, offsets[held] + np.int64(start), np.int64(end - start))
            != 0
        ):
            code = _carray(_errno_location(), 1)[0]
            if code != _EINTR:
                return max(i - 1, 0), int(code)
        held = here
        start = low
        end = high
    return -1, 0


@compiled(_types.UniTuple(_I64, 3)(_types.int32, _I64, _I64, _I64, _I64, _U64, _OUT))
def extents(
    fd: int, offset: int, size: int, at: int, grain: int, gpa: np.uint64, out: Words
) -> tuple[int, int, int]:
    """The parts of a mapping that its file holds data for: (rows written, where to go on, errno).

    The mapping is `size` bytes of the file from `offset` on and begins at `gpa`; the search begins
    `at` bytes into it. Parts are widened to multiples of `grain` and joined where they meet. A file
    that ends early has holes there.
    """
    count = 0
    while at < size and count < out.shape[0]:
        data = _lseek(fd, offset + at, _SEEK_DATA)
        if data < 0:
            code = _carray(_errno_location(), 1)[0]
            if code == _ENXIO:
                return count, size, 0
            return count, at, int(code)
        data -= offset
        if data >= size:
            return count, size, 0
        hole = _lseek(fd, offset + data, _SEEK_HOLE)
        if hole < 0:
            code = _carray(_errno_location(), 1)[0]
            # The file was cut between the two calls.
            if code == _ENXIO:
                return count, size, 0
            return count, at, int(code)
        hole -= offset
        low = max(at, data - data % grain)
        high = min(size, hole + (grain - 1) - (hole + (grain - 1)) % grain)
        at = high
        start = gpa + np.uint64(low)
        length = np.uint64(high - low)
        if count > 0 and out[count - 1, 0] + out[count - 1, 1] == start:
            out[count - 1, 1] += length
        else:
            out[count, 0] = start
            out[count, 1] = length
            count += 1
    return count, at, 0
