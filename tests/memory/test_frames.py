"""Compressed memory, read by us, by a plain zstd, and by a naive reader of the seek table."""

from __future__ import annotations

import io
import os
import random
import struct
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomigrate.memory.blocks import BLOCK_BYTES, new_buffer
from aiomigrate.memory.errors import FramesError
from aiomigrate.memory.frames import FrameSource, FrameTarget

MakeMemfd = Callable[[int], int]
PAGE = 4096
SIZE = 3 * BLOCK_BYTES + 2 * PAGE


def packed(fd: int, content: bytes, *, skipping: bool = True) -> int:
    """Write memory as frames; with `skipping` zero blocks are left out, as copying does it."""
    target = FrameTarget(fd, len(content))
    for index in range(-(-len(content) // BLOCK_BYTES)):
        block = content[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        if any(block) or not skipping:
            target.append(index, target.write(index, np.frombuffer(block, np.uint8)))
    return target.finish()


def naive_sizes(raw: bytes) -> list[tuple[int, int]]:
    """(compressed, plain) of each frame, by the format's own description."""
    count, descriptor, magic = struct.unpack("<IBI", raw[-9:])
    assert (descriptor, magic) == (0, 0x8F92EAB1)
    table = raw[-9 - 8 * count : -9]
    assert struct.unpack("<II", raw[-17 - 8 * count : -9 - 8 * count]) == (
        0x184D2A5E,
        8 * count + 9,
    )
    return list(struct.iter_unpack("<II", table))


def some_memory(size: int = SIZE) -> bytes:
    """A block of text, one of zeros, one that cannot be compressed, and the beginning of one."""
    noise = random.Random(1).randbytes(BLOCK_BYTES)
    return ((b"text " * BLOCK_BYTES)[:BLOCK_BYTES] + bytes(BLOCK_BYTES) + noise + noise)[:size]


@settings(max_examples=20)
@given(
    st.integers(1, 3 * 256 + 3),
    st.dictionaries(st.integers(0, 3 * 256), st.binary(min_size=1, max_size=9), max_size=4),
    st.booleans(),
)
def test_round_trip(pages: int, writes: dict[int, bytes], skipping: bool) -> None:
    content = bytearray(pages * PAGE)
    for page, piece in writes.items():
        if page < pages:
            content[page * PAGE : page * PAGE + len(piece)] = piece
    fd = os.memfd_create("frames")
    try:
        size = packed(fd, bytes(content), skipping=skipping)
        assert size == os.fstat(fd).st_size
        source = FrameSource(fd, len(content))
        count = -(-len(content) // BLOCK_BYTES)
        found, end = source.find(0)
        assert end == count
        blocks = [content[at : at + BLOCK_BYTES] for at in range(0, len(content), BLOCK_BYTES)]
        assert list(found) == [index for index, block in enumerate(blocks) if any(block)]
        for index, block in enumerate(blocks):
            assert source.read(index, new_buffer()).tobytes() == block
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            raw = file.read()
        reader = zstandard.ZstdDecompressor().stream_reader(
            io.BytesIO(raw), read_across_frames=True
        )
        assert reader.read() == content
        sizes = naive_sizes(raw)
        assert [plain for _, plain in sizes] == [len(block) for block in blocks]
        assert sum(length for length, _ in sizes) == size - 8 * count - 17
    finally:
        os.close(fd)


def test_many_zeros_take_little_and_are_found_in_turns(memfds: Callable[[int], int]) -> None:
    fd = memfds(0)
    target = FrameTarget(fd, 1 << 40)
    last = np.ones(BLOCK_BYTES, np.uint8)
    target.append((1 << 20) - 1, target.write((1 << 20) - 1, last))
    assert target.finish() < 100 << 20
    source = FrameSource(fd, 1 << 40)
    assert source.find(0) == ([], 4096)
    assert source.find((1 << 20) - 9) == ([(1 << 20) - 1], 1 << 20)


def test_only_the_frame_that_is_wanted_is_read(
    memfds: MakeMemfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = memfds(0)
    packed(fd, some_memory())
    source = FrameSource(fd, SIZE)
    read: list[int] = []
    pread = os.pread

    def counting(fd: int, length: int, offset: int) -> bytes:
        read.append(length)
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", counting)
    content = source.read_pages(0, 5, 5, new_buffer())
    assert content.tobytes() == some_memory()[:BLOCK_BYTES]
    assert sum(read) < 1000  # text; the noise behind it is longer


def damaged(fd: int, at: int, piece: bytes) -> None:
    os.pwrite(fd, piece, at if at >= 0 else os.fstat(fd).st_size + at)


@pytest.mark.parametrize(
    ("at", "piece", "why"),
    [
        (-1, b"\0", "no seek table of 4 frames"),
        (-5, b"\x80", "no seek table of 4 frames"),
        (-9, b"\5", "no seek table of 4 frames"),
        (-17 - 32, b"\0", "no seek table of 4 frames"),
        (-13, b"\1", "not blocks of 1048576 bytes"),
        (-9 - 32 + 4, b"\1", "not blocks"),
        (-9 - 32 + 3, b"\xff", "not blocks"),
        (-9 - 32, b"\1", "do not end where"),
    ],
)
def test_a_seek_table_that_does_not_fit(memfds: MakeMemfd, at: int, piece: bytes, why: str) -> None:
    fd = memfds(0)
    packed(fd, some_memory())
    damaged(fd, at, piece)
    with pytest.raises(FramesError, match=why):
        FrameSource(fd, SIZE)


@pytest.mark.parametrize("size", [0, 16, 48])
def test_a_file_without_a_whole_table(memfds: MakeMemfd, size: int) -> None:
    with pytest.raises(FramesError, match="no whole seek table"):
        FrameSource(memfds(size), SIZE)


def test_other_memory_than_expected(memfds: MakeMemfd) -> None:
    fd = memfds(0)
    packed(fd, some_memory())
    for size in (SIZE - PAGE, SIZE + PAGE, SIZE + BLOCK_BYTES):
        with pytest.raises(FramesError):
            FrameSource(fd, size)


def test_a_damaged_frame_is_noticed_when_it_is_read(memfds: MakeMemfd) -> None:
    fd = memfds(0)
    packed(fd, some_memory())
    lengths = [length for length, _ in naive_sizes(os.pread(fd, 1 << 30, 0))]
    damaged(fd, lengths[0] + lengths[1] + lengths[2] // 2, b"\xaa\xbb\xcc\xdd")
    source = FrameSource(fd, SIZE)
    assert source.read(0, new_buffer()).tobytes() == some_memory()[:BLOCK_BYTES]
    with pytest.raises(FramesError, match="frame 2 is damaged"):
        source.read(2, new_buffer())


def test_a_frame_that_claims_another_size_is_not_decompressed(memfds: MakeMemfd) -> None:
    fd = memfds(0)
    target = FrameTarget(fd, PAGE)
    target.append(0, zstandard.ZstdCompressor().compress(bytes(1 << 24)))
    target.finish()
    with pytest.raises(FramesError, match="frame 0 does not hold 4096 bytes"):
        FrameSource(fd, PAGE).read(0, new_buffer())


def test_a_file_cut_while_it_is_read(memfds: MakeMemfd) -> None:
    fd = memfds(0)
    packed(fd, some_memory())
    source = FrameSource(fd, SIZE)
    os.ftruncate(fd, 10)
    with pytest.raises(OSError, match="cut while"):
        source.read(0, new_buffer())
