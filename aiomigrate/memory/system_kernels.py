"""System calls for whole range tables, compiled: madvise, mincore, fallocate, lseek, read, pwrite.

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
from aiomigrate.memory.zero_kernels import CONTENT, run

__all__ = ["advise", "extents", "fallocate", "read_into", "resident", "store"]

_types = import_module("numba").types
_carray = import_module("numba").carray

_BYTES = _types.Array(_types.uint8, 1, "C")
_I32 = _types.int32

# From libc, by name, so that compiled kernels can be cached (an address could not). They run
# without the GIL, and errno belongs to the calling thread.
_madvise = _types.ExternalFunction("madvise", _I32(U64, U64, _I32))
_mincore = _types.ExternalFunction("mincore", _I32(U64, U64, U64))
_libc_fallocate = _types.ExternalFunction("fallocate", _I32(_I32, _I32, I64, I64))
_read = _types.ExternalFunction("read", I64(_I32, U64, U64))
_pwrite = _types.ExternalFunction("pwrite", I64(_I32, U64, U64, I64))
_lseek = _types.ExternalFunction("lseek", I64(_I32, I64, _I32))
_errno_location = _types.ExternalFunction("__errno_location", _types.CPointer(_I32)())

_EINTR: Final = errno.EINTR
_EIO: Final = errno.EIO
_ENODATA: Final = errno.ENODATA
_ENOSYS: Final = errno.ENOSYS
_ENXIO: Final = errno.ENXIO
_EOPNOTSUPP: Final = errno.EOPNOTSUPP
_PUNCH_HOLE: Final = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, linux/falloc.h
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


@compiled(I64(I64, I64, I64, I64))
def _fallocate(fd: np.int64, mode: int, at: np.int64, length: np.int64) -> int:
    """One fallocate(); 0, or an errno, of which ENOSYS is told as EOPNOTSUPP."""
    while _libc_fallocate(fd, mode, at, length) != 0:
        code = int(_carray(_errno_location(), 1)[0])
        if code == _ENOSYS:
            return _EOPNOTSUPP
        if code != _EINTR:
            return code
    return 0


@compiled(I64(I64, I64, I64))
def _make_hole(fd: np.int64, at: np.int64, end: np.int64) -> int:
    """Make [at, end) of a file a hole; 0 or an errno (EOPNOTSUPP: it cannot).

    Where it is one already nothing is done: punching costs the file system a transaction.
    """
    data = _lseek(fd, at, _SEEK_DATA)
    if data >= end or (data < 0 and _carray(_errno_location(), 1)[0] == _ENXIO):
        return 0
    at = max(at, data)
    return _fallocate(fd, _PUNCH_HOLE, at, end - at)


@compiled(_types.UniTuple(I64, 3)(TABLE, U64S, U64S, I64S, I64S, _types.boolean, OUT))
def fallocate(
    table: Words,
    firsts: Words,
    lasts: Words,
    fds: Numbers,
    offsets: Numbers,
    hole: bool,
    rest: Words,
) -> tuple[int, int, int]:
    """Have space allocated for what a table touches, or, if `hole`, make just that a hole.

    (rows of `rest`, -1, 0), or (rows of `rest`, index of the range, errno; 0 for a bad range).
    `fds` and `offsets` are of each mapping: its file (-1: none) and where in it the mapping begins.
    Neighbours share a call. What has no file, or one that cannot (EOPNOTSUPP), goes into `rest`,
    which has room for the whole table.
    """
    mapping = 0
    held = -1
    start = ZERO
    end = ZERO
    refused = 0
    for i in range(table.shape[0] + 1):
        low = ZERO
        high = ZERO
        here = -1
        if i < table.shape[0]:
            gpa = table[i, 0]
            length = table[i, 1]
            here = locate(firsts, lasts, gpa, mapping)
            if here < 0 or length == ZERO or length - ONE > lasts[here] - gpa:
                return refused, i, 0
            mapping = here
            low = gpa - firsts[here]
            high = low + length
            if here == held and start <= low <= end:
                end = max(end, high)
                continue
        if held >= 0:
            code = _EOPNOTSUPP
            if fds[held] >= 0:
                at = offsets[held] + np.int64(start)
                size = np.int64(end - start)
                if hole:
                    code = _make_hole(fds[held], at, at + size)
                else:
                    code = _fallocate(fds[held], 0, at, size)
            if code == _EOPNOTSUPP:
                rest[refused, 0] = firsts[held] + start
                rest[refused, 1] = end - start
                refused += 1
            elif code != 0:
                return refused, max(i - 1, 0), code
        held = here
        start = low
        end = high
    return refused, -1, 0


@compiled(_types.UniTuple(I64, 2)(TABLE, U64S, U64S, U64S, _I32))
def read_into(table: Words, firsts: Words, lasts: Words, bases: Words, fd: int) -> tuple[int, int]:
    """read() from `fd` into the memory of a table; (-1, 0) or (index of the range, errno; 0 for a
    bad range).

    ENODATA where the file ends.
    """
    mapping = 0
    for i in range(table.shape[0]):
        gpa = table[i, 0]
        left = table[i, 1]
        mapping = locate(firsts, lasts, gpa, mapping)
        if mapping < 0 or left == ZERO or left - ONE > lasts[mapping] - gpa:
            return i, 0
        address = bases[mapping] + (gpa - firsts[mapping])
        while left > ZERO:
            moved = _read(fd, address, left)
            if moved > 0:
                address += np.uint64(moved)
                left -= np.uint64(moved)
            elif moved == 0:
                return i, _ENODATA
            else:
                code = int(_carray(_errno_location(), 1)[0])
                if code != _EINTR:
                    return i, code
    return -1, 0


@compiled(I64(I64, U64, I64, I64))
def _write(fd: np.int64, source: np.uint64, length: np.int64, at: np.int64) -> int:
    """pwrite() all of `length` bytes; 0 or an errno."""
    while length > 0:
        moved = _pwrite(fd, source, np.uint64(length), at)
        if moved > 0:
            source += np.uint64(moved)
            at += moved
            length -= moved
        elif moved == 0:
            return _EIO
        else:
            code = int(_carray(_errno_location(), 1)[0])
            if code != _EINTR:
                return code
    return 0


@compiled(_types.UniTuple(I64, 2)(TABLE, U64S, U64S, I64S, I64S, CONTENT))
def store(
    table: Words,
    firsts: Words,
    lasts: Words,
    fds: Numbers,
    offsets: Numbers,
    content: npt.NDArray[np.uint8],
) -> tuple[int, int]:
    """Write a table's content into its files; (-1, 0) or (index of the range, errno; 0 for a bad
    range, or one that has no content).

    Whole pages (by guest address) that are zero become holes.
    """
    mapping = 0
    source = np.uint64(content.ctypes.data)
    end = source + np.uint64(content.shape[0])
    for i in range(table.shape[0]):
        gpa = table[i, 0]
        left = table[i, 1]
        mapping = locate(firsts, lasts, gpa, mapping)
        if mapping < 0 or left == ZERO or left - ONE > lasts[mapping] - gpa or left > end - source:
            return i, 0
        at = offsets[mapping] + np.int64(gpa - firsts[mapping])
        while left > ZERO:
            length, zero = run(source, gpa, left, False)
            code = _EOPNOTSUPP
            if zero:
                code = _make_hole(fds[mapping], at, at + np.int64(length))
            if code == _EOPNOTSUPP:
                code = _write(fds[mapping], source, np.int64(length), at)
            if code != 0:
                return i, code
            source += length
            gpa += length
            at += np.int64(length)
            left -= length
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
