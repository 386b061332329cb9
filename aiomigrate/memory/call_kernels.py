"""A C function called for one piece of scattered memory after the other, compiled.

The function is given by its address, and is one that moves bytes as read(2) does, like OpenSSL's
`SSL_read` and `SSL_write`: `int f(void *handle, void *address, int length)`, the number of bytes
moved, or 0 or less. It runs without the GIL.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import numpy as np

from aiomigrate.memory.kernels import I64, OUT, U64, ZERO, Words
from aiomigrate.memory.numba_cache import compiled

__all__ = ["STOPPED", "move"]

_types = import_module("numba").types
_carray = import_module("numba").carray
_intrinsic = import_module("numba.extending").intrinsic
_ir = import_module("llvmlite.ir")

_I32 = _types.int32
_errno_location = _types.ExternalFunction("__errno_location", _types.CPointer(_I32)())

STOPPED: Final = -1
"""In the place of an errno: the function moved nothing, and not because of a system call."""


@_intrinsic  # type: ignore[untyped-decorator]
def _call(typing: Any, function: Any, handle: Any, address: Any, length: Any) -> Any:  # noqa: ARG001
    """Call the C function at an address: a kernel in which the address is fixed has no cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        i32, i64 = _ir.IntType(32), _ir.IntType(64)
        kind = _ir.FunctionType(i32, (i64, i64, i32))
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return _I32(U64, U64, U64, _I32), generate


@compiled(_types.UniTuple(I64, 3)(U64, U64, OUT, I64, U64, U64))
def move(
    function: np.uint64,
    handle: np.uint64,
    entries: Words,
    begin: int,
    max_bytes: np.uint64,
    piece: np.uint64,
) -> tuple[int, int, int]:
    """Call the function until `max_bytes` or a little more are moved, at most `piece` at a time:
    (bytes moved, the new `begin`, 0 or the errno or STOPPED of the call that moved nothing).

    What is moved is taken off the front of the entries, as `kernels.advance` does it.
    """
    errno = _carray(_errno_location(), 1)
    moved = ZERO
    while begin < entries.shape[0] and moved < max_bytes:
        address, length = entries[begin, 0], entries[begin, 1]
        errno[0] = _I32(0)
        now = _call(function, handle, address, _I32(min(length, piece)))
        if now <= 0:
            return int(moved), begin, int(errno[0] or STOPPED)
        taken = np.uint64(now)
        moved += taken
        if taken == length:
            begin += 1
        else:
            entries[begin, 0] += taken
            entries[begin, 1] -= taken
    return int(moved), begin, 0
