"""The checksum does not see holes, and sees everything else."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomigrate.memory.blocks import BLOCK_BYTES, Block, FilePart
from aiomigrate.memory.checksum import checksum, checksum_of


def naive(data: bytes) -> str:
    outer = b""
    for index in range((len(data) + BLOCK_BYTES - 1) // BLOCK_BYTES):
        block = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        if any(block):
            outer += struct.pack("<Q", index) + xxhash.xxh3_128(block).digest()
    return "xxh3-128-1m:" + xxhash.xxh3_128(outer).hexdigest()


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("checksum")
    yield fd
    os.close(fd)


@settings(max_examples=20)
@given(
    st.integers(0, 5 * BLOCK_BYTES),
    st.lists(
        st.tuples(st.integers(0, 5 * BLOCK_BYTES), st.binary(min_size=1, max_size=9)), max_size=4
    ),
    st.booleans(),
)
def test_against_a_naive_one(size: int, writes: list[tuple[int, bytes]], filled: bool) -> None:
    data = bytearray(size)
    fd = os.memfd_create("checksum")
    try:
        os.ftruncate(fd, size)
        if filled:
            os.pwrite(fd, bytes(size), 0)
        for at, whole in writes:
            piece = whole[: max(0, size - at)]
            os.pwrite(fd, piece, at)
            data[at : at + len(piece)] = piece
        assert checksum(fd, size) == naive(bytes(data))
    finally:
        os.close(fd)


def test_holes_and_written_zeros_are_the_same_but_places_are_not(fd: int) -> None:
    os.ftruncate(fd, 3 * BLOCK_BYTES)
    os.pwrite(fd, b"x", BLOCK_BYTES)
    sparse = checksum(fd, 3 * BLOCK_BYTES)
    os.pwrite(fd, bytes(BLOCK_BYTES), 0)
    assert checksum(fd, 3 * BLOCK_BYTES) == sparse
    os.pwrite(fd, b"\0", BLOCK_BYTES)
    os.pwrite(fd, b"x", 2 * BLOCK_BYTES)
    assert checksum(fd, 3 * BLOCK_BYTES) != sparse


def test_a_short_file_is_an_error(fd: int) -> None:
    os.ftruncate(fd, 4095)
    with pytest.raises(OSError, match="shorter") as caught:
        checksum(fd, 4096)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("left", [0, 4096])
def test_a_file_cut_while_it_is_read_is_an_error(fd: int, left: int) -> None:
    os.pwrite(fd, b"x" * 8192, 0)

    class Cut(FilePart):
        def read(self, index: int, buffer: Block) -> Block:
            os.ftruncate(fd, left)
            return super().read(index, buffer)

    with pytest.raises(OSError, match="shorter" if left == 0 else "reading memory") as caught:
        checksum_of(Cut(fd, 0, 8192))
    assert caught.value.errno == errno.EIO
