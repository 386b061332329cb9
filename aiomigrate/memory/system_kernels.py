"""System calls for whole range tables, compiled: madvise, mincore, fallocate and lseek.

One call of a kernel makes as many system calls as its table needs, all without the GIL; tables, the
memory map and arithmetic are as `kernels` describes them. What the system refuses comes back as an
errno with the index of the range it belongs to. Nothing here reads or writes guest memory itself:
the system does, and a page that cannot be had is an errno, not a signal.
"""

from __future__ import annotations

import errno
import os
from importlib import import_module
from typing import Final

import numpy as np
import numpy.typing as npt

from aiomigrate.memory.kernels import (
    I64,
    I64S,
    ONE,
    OUT,
    TABLE,
    U64,
    U64S,
    ZERO,
    Numbers,
    Words,
    locate,
)
from aiomigrate.memory.numba_cache import compiled

__all__ = ["advise", "allocate", "extents", "resident"]

_types = import_module("numba").types
_carray = import_module("numba").carray

_BYTES = _types.Array(_types.uint8, 1, "C")
_I32 = _types.int32

# From libc, by name, so that compiled kernels can be cached (an address could not). They run
# without the GIL, and errno belongs to the calling thread.
_madvise = _types.ExternalFunction("madvise", _I32(U64, U64, _I32))
_mincore = _types.ExternalFunction("mincore", _I32(U64, U64, U64))
_fallocate = _types.ExternalFunction("fallocate", _I32(_I32, _I32, I64, I64))
_lseek = _types.ExternalFunction("lseek", I64(_I32, I64, _I32))
_errno_location = _types.ExternalFunction("__errno_location", _types.CPointer(_I32)())

_EINTR: Final = errno.EINTR
_ENXIO: Final = errno.ENXIO
_SEEK_DATA: Final = os.SEEK_DATA
_SEEK_HOLE: Final = os.SEEK_HOLE


@compiled(_types.UniTuple(I64, 2)(TABLE, U64S, U64S, U64S, U64, _I32))
def advise(
    table: Words, firsts: Words, lasts: Words, bases: Words, page: np.uint64, advice: int
) -> tuple[int, int]:
    """madvise() the pages that a table touches; (-1, 0) or (index of the range, errno; 0 for a bad
    range).

    Ranges are widened to whole pages, and neighbours of the same pages or adjoining ones share a
    call.
    """
    mask = ~(page - ONE)
    mapping = 0
    start = ZERO
    end = ZERO
    for i in range(table.shape[0] + 1):
        low = ZERO
        high = ZERO
        if i < table.shape[0]:
            gpa = table[i, 0]
            length = table[i, 1]
            mapping = locate(firsts, lasts, gpa, mapping)
            if mapping < 0 or length == ZERO or length - ONE > lasts[mapping] - gpa:
                return i, 0
            address = bases[mapping] + (gpa - firsts[mapping])
            low = address & mask
            high = (address + length + (page - ONE)) & mask
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


@compiled(_types.boolean(TABLE, U64S, U64S, U64S, U64, _BYTES), nogil=False)
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
    mask = ~(page - ONE)
    mapping = 0
    for i in range(table.shape[0]):
        gpa = table[i, 0]
        length = table[i, 1]
        mapping = locate(firsts, lasts, gpa, mapping)
        if mapping < 0 or length == ZERO or length - ONE > lasts[mapping] - gpa:
            return False
        address = bases[mapping] + (gpa - firsts[mapping])
        low = address & mask
        pages = (((address + length + (page - ONE)) & mask) - low) // page
        if pages > np.uint64(scratch.shape[0]):
            return False
        if _mincore(low, np.uint64(pages * page), np.uint64(scratch.ctypes.data)) != 0:
            return False
        for at in range(pages):
            if not scratch[at] & 1:
                return False
    return True


@compiled(_types.UniTuple(I64, 2)(TABLE, U64S, U64S, I64S, I64S))
def allocate(
    table: Words, firsts: Words, lasts: Words, fds: Numbers, offsets: Numbers
) -> tuple[int, int]:
    """fallocate() what a table touches; (-1, 0) or (index of the range, errno; 0 for a bad range).

    `fds` and `offsets` are of each mapping: its file (-1: none) and where in it the mapping begins.
    """
    mapping = 0
    held = -1
    start = ZERO
    end = ZERO
    for i in range(table.shape[0] + 1):
        low = ZERO
        high = ZERO
        here = -1
        if i < table.shape[0]:
            gpa = table[i, 0]
            length = table[i, 1]
            here = locate(firsts, lasts, gpa, mapping)
            if here < 0 or length == ZERO or length - ONE > lasts[here] - gpa:
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


@compiled(_types.UniTuple(I64, 3)(_I32, I64, I64, I64, I64, U64, OUT))
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
