"""The checksum of stored memory or a document, the same whether its zeros are holes or written out.

It is taken in blocks of 1 MiB (the last one as long as it is). For each block that is not all zero,
its index (u64 little-endian) and its xxh3-128 digest go into an outer xxh3-128. So trailing zeros
do not count: the size is kept beside the checksum. Holes are skipped, and files are read, not
mapped: one that is cut meanwhile is an error, not a SIGBUS. Digests may be made in any order and by
several threads; they are added in order.
"""

from __future__ import annotations

import xxhash

from aiomigrate.memory.blocks import BLOCK_BYTES, Block, BlockSource, FilePart, new_buffer
from aiomigrate.memory.zero_kernels import is_zero

__all__ = ["Checksum", "block_digest", "checksum", "checksum_of"]

_PREFIX = "xxh3-128-1m:"


class Checksum:
    """A checksum in the making."""

    def __init__(self) -> None:
        self._outer = xxhash.xxh3_128()

    def add(self, index: int, digest: bytes | None) -> None:
        """Add a block's digest (None: it is zero); blocks in ascending order."""
        if digest is not None:
            self._outer.update(index.to_bytes(8, "little"))
            self._outer.update(digest)

    @property
    def text(self) -> str:
        """The checksum of what was added so far."""
        return _PREFIX + self._outer.hexdigest()


def block_digest(content: Block) -> bytes | None:
    """What `Checksum.add` takes of a block: None if it is all zero."""
    if is_zero(content):
        return None
    return xxhash.xxh3_128_digest(content.data)


def checksum(fd: int, size: int) -> str:
    """The checksum of the first `size` bytes of a file; OSError (EIO if it is shorter)."""
    return checksum_of(FilePart(fd, 0, size))


def checksum_of(source: BlockSource) -> str:
    """The checksum of all blocks; OSError."""
    whole = Checksum()
    buffer = new_buffer()
    index, end = 0, -(-source.size // BLOCK_BYTES)
    while index < end:
        found, index = source.find(index)
        for block in found:
            whole.add(block, block_digest(source.read(block, buffer)))
    source.find(end)  # still whole
    return whole.text
