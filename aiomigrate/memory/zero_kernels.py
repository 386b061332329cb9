"""What of guest memory is zero, compiled: the only kernels that read memory by its bare address.

Memory is looked at a page of 4096 bytes (by guest address) at a time, and a page only until its
first word that is not zero. Every word is read once and decided on: memory may change meanwhile,
and then the answer is what it was at some time of the call. A page that cannot be read is a signal
that ends the process, so whoever calls knows that the memory is there (`GuestMemory.split_zeros`).

Tables, the memory map and arithmetic are as `kernels` describes them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aiomigrate.memory.kernels import I64, ONE, OUT, TABLE, U64, U64S, ZERO, Words, locate
from aiomigrate.memory.numba_cache import compiled

__all__ = ["CONTENT", "FLAGS", "is_zero", "run", "split_zeros"]

_types = import_module("numba").types
_carray = import_module("numba").carray
_intrinsic = import_module("numba.extending").intrinsic

FLAGS = _types.Array(_types.boolean, 1, "C", readonly=True)
CONTENT = _types.Array(_types.uint8, 1, "C", readonly=True)

_PAGE: Final = np.uint64(4096)
"""As in `map.PAGE_BYTES`, typed."""
_WORD: Final = np.uint64(8)


def _pointer_to(kind: Any) -> Any:
    """An intrinsic that makes a pointer of an address: numba itself has none."""

    def make(context: object, address: object) -> tuple[Any, Any]:  # noqa: ARG001  # numba's form
        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], target.get_value_type(signature.return_type))

        return _types.CPointer(kind)(_types.uint64), generate

    return _intrinsic(make)


_bytes_at = _pointer_to(_types.uint8)
_words_at = _pointer_to(_types.uint64)


@compiled(_types.boolean(U64, U64))
def _is_zero(address: np.uint64, length: np.uint64) -> bool:
    """Whether `length` bytes at a host address are zero: byte by byte up to whole words."""
    head = min(length, (ZERO - address) % _WORD)
    body = (length - head) // _WORD
    tail = length - head - body * _WORD
    one_by_one = _carray(_bytes_at(address), head)
    for i in range(head):
        if one_by_one[i] != 0:
            return False
    words = _carray(_words_at(address + head), body)
    for i in range(body):
        if words[i] != ZERO:
            return False
    one_by_one = _carray(_bytes_at(address + head + body * _WORD), tail)
    for i in range(tail):  # noqa: SIM110  # numba has no all()
        if one_by_one[i] != 0:
            return False
    return True


@compiled(_types.boolean(CONTENT))
def is_zero(content: npt.NDArray[np.uint8]) -> bool:
    """Whether all of a buffer is zero."""
    return _is_zero(np.uint64(content.ctypes.data), np.uint64(content.shape[0]))


@compiled(_types.Tuple((U64, _types.boolean))(U64, U64, U64, _types.boolean))
def run(
    address: np.uint64, gpa: np.uint64, length: np.uint64, parts: bool
) -> tuple[np.uint64, bool]:
    """(bytes, whether they are zero): the first run of a range whose content is at `address`.

    Parts of pages, at the ends of a range, are looked at only if `parts`; else they count as data.
    """
    done = ZERO
    zero = False
    while done < length:
        piece = min(length - done, _PAGE - (gpa + done) % _PAGE)
        blank = (parts or piece == _PAGE) and _is_zero(address + done, piece)
        if done == ZERO:
            zero = blank
        elif blank != zero:
            break
        done += piece
    return done, zero


@compiled(I64(OUT, I64, U64, U64, _types.boolean))
def _append(out: Words, count: int, gpa: np.uint64, length: np.uint64, apart: bool) -> int:
    """Add a range, joined with the last one where it begins at its end unless `apart`; rows."""
    if count > 0 and not apart and out[count - 1, 0] + out[count - 1, 1] == gpa:
        out[count - 1, 1] += length
        return count
    out[count, 0] = gpa
    out[count, 1] = length
    return count + 1


@compiled(
    _types.UniTuple(I64, 2)(TABLE, U64S, U64S, U64S, FLAGS, _types.boolean, OUT, OUT),
)
def split_zeros(
    table: Words,
    firsts: Words,
    lasts: Words,
    bases: Words,
    steady: npt.NDArray[np.bool_],
    parts: bool,
    data: Words,
    zeros: Words,
) -> tuple[int, int]:
    """Sort what a table covers into `data` and `zeros`; (rows of data, rows of zeros).

    `bases` are the host addresses of the mappings; only those that are `steady` are looked at, all
    of the others is data. Order is kept, neighbours are joined but not across a mapping's start.
    Stops at a range outside the mappings, and where one of the outputs is full: half as many rows
    as the table touches pages and one for each range are enough for either.
    """
    data_rows = 0
    zero_rows = 0
    mapping = 0
    for i in range(table.shape[0]):
        gpa = table[i, 0]
        left = table[i, 1]
        mapping = locate(firsts, lasts, gpa, mapping)
        if mapping < 0 or left == ZERO or left - ONE > lasts[mapping] - gpa:
            break
        apart = gpa == firsts[mapping]
        address = bases[mapping] + (gpa - firsts[mapping])
        while left > ZERO:
            if data_rows == data.shape[0] or zero_rows == zeros.shape[0]:
                return data_rows, zero_rows
            length = left
            zero = False
            if steady[mapping]:
                length, zero = run(address, gpa, left, parts)
            if zero:
                zero_rows = _append(zeros, zero_rows, gpa, length, apart)
            else:
                data_rows = _append(data, data_rows, gpa, length, apart)
            apart = False
            gpa += length
            address += length
            left -= length
    return data_rows, zero_rows
