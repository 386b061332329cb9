"""Reading a file that has holes, compiled: where its data is, and blocks of it.

Without the GIL, like `system_kernels`, whose conventions hold here. SEEK_HOLE is not used: in a
memfd the kernel walks page by page to the next hole, which takes a second for 256 GiB of data.
SEEK_DATA from a place that has data answers at once.
"""

from __future__ import annotations

import errno
import os
from importlib import import_module
from typing import Final

import numpy as np
import numpy.typing as npt

from aiomigrate.memory.kernels import I64, U64, Numbers
from aiomigrate.memory.numba_cache import compiled

__all__ = ["data_blocks", "read_block"]

_types = import_module("numba").types
_carray = import_module("numba").carray

_BYTES = _types.Array(_types.uint8, 1, "C")
_INDICES = _types.Array(_types.int64, 1, "C")
_I32 = _types.int32

_pread = _types.ExternalFunction("pread", I64(_I32, U64, U64, I64))
_lseek = _types.ExternalFunction("lseek", I64(_I32, I64, _I32))
_errno_location = _types.ExternalFunction("__errno_location", _types.CPointer(_I32)())

_EINTR: Final = errno.EINTR
_EIO: Final = errno.EIO
_ENXIO: Final = errno.ENXIO
_SEEK_DATA: Final = os.SEEK_DATA
_STEP: Final = 1 << 16
"""Holes are looked for once in so many bytes: a look costs a microsecond, reading them five."""


@compiled(_types.UniTuple(I64, 3)(I64, I64, I64, I64, I64, _INDICES))
def data_blocks(
    fd: int, offset: int, size: int, index: int, block: int, out: Numbers
) -> tuple[int, int, int]:
    """Which blocks of `block` bytes hold data: (indices written, where to go on, errno).

    Blocks are counted in the `size` bytes of the file from `offset` on; the search begins at block
    `index`. It is over when the place to go on is behind the last block.
    """
    count = 0
    end = (size + block - 1) // block
    while index < end and count < out.shape[0]:
        data = _lseek(fd, offset + index * block, _SEEK_DATA)
        if data < 0:
            code = int(_carray(_errno_location(), 1)[0])
            if code == _ENXIO:
                return count, end, 0
            return count, index, code
        if data - offset >= size:
            return count, end, 0
        index = (data - offset) // block
        out[count] = index
        count += 1
        index += 1
    return count, index, 0


@compiled(I64(I64, I64, _BYTES))
def read_block(fd: int, at: int, out: npt.NDArray[np.uint8]) -> int:
    """Read a file from `at` on into all of `out`, holes as zeros; 0 or an errno.

    EIO where data ends early, which it does only if the file is cut meanwhile.
    """
    done = 0
    length = out.shape[0]
    while done < length:
        data = _lseek(fd, at + done, _SEEK_DATA)
        if data < 0:
            code = int(_carray(_errno_location(), 1)[0])
            if code != _ENXIO:
                return code
            data = at + length
        data = min(data - at, length)
        out[done:data] = 0
        done = data
        end = min(length, done + _STEP - (at + done) % _STEP)
        while done < end:
            moved = _pread(fd, np.uint64(out.ctypes.data + done), np.uint64(end - done), at + done)
            if moved > 0:
                done += moved
            elif moved == 0:
                return _EIO
            else:
                code = int(_carray(_errno_location(), 1)[0])
                if code != _EINTR:
                    return code
    return 0
