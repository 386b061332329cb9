"""The checksum of a stored file, the same whether its zeros are holes or written out.

The file is taken in blocks of 1 MiB (the last one as long as it is). For each block that is not all
zero, its index (u64 little-endian) and its xxh3-128 digest go into an outer xxh3-128. So trailing
zeros do not count: the size is kept beside the checksum. Holes are skipped, and the file is read,
not mapped: one that is cut meanwhile is an error, not a SIGBUS.
"""

from __future__ import annotations

import errno
import os

import xxhash

__all__ = ["BLOCK_BYTES", "checksum"]

BLOCK_BYTES = 1 << 20

_PREFIX = "xxh3-128-1m:"
_ZEROS = bytes(BLOCK_BYTES)


def checksum(fd: int, size: int) -> str:
    """The checksum of the first `size` bytes of a file, as text; OSError (EIO if the file is
    shorter).
    """
    if os.fstat(fd).st_size < size:
        raise OSError(errno.EIO, "the file is shorter than it should be")
    outer = xxhash.xxh3_128()
    at = 0
    while (at := _next_data(fd, at, size)) < size:
        start = at - at % BLOCK_BYTES
        block = _read(fd, start, min(BLOCK_BYTES, size - start))
        if block != _ZEROS[: len(block)]:
            outer.update((start // BLOCK_BYTES).to_bytes(8, "little"))
            outer.update(xxhash.xxh3_128_digest(block))
        at = start + BLOCK_BYTES
    return _PREFIX + outer.hexdigest()


def _next_data(fd: int, at: int, size: int) -> int:
    """Where data follows at or after `at`; `size` if none does before it."""
    if at >= size:
        return size
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def _read(fd: int, start: int, length: int) -> bytes:
    block = os.pread(fd, length, start)
    while len(block) < length:
        more = os.pread(fd, length - len(block), start + len(block))
        if not more:
            raise OSError(errno.EIO, "the file was cut while it was read")
        block += more
    return block
