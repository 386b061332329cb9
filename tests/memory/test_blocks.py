"""Blocks against plain bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomigrate.memory.blocks import BLOCK_BYTES, FilePart, needed_bytes, new_buffer
from aiomigrate.memory.map import PAGE_BYTES, Mapping, MemoryMap

MakeMemfd = Callable[[int], int]
BLOCK_PAGES = BLOCK_BYTES // PAGE_BYTES

pages = st.integers(0, 3 * BLOCK_PAGES)


def blocks_of(part: FilePart) -> dict[int, bytes]:
    """All that is found, as bytes."""
    found: dict[int, bytes] = {}
    index = 0
    while index * BLOCK_BYTES < part.size:
        blocks, index = part.find(index)
        for block in blocks:
            found[block] = part.read(block, new_buffer()).tobytes()
    return found


def content_of(part: FilePart) -> bytes:
    """All of it, as far as it is found."""
    content = bytearray(part.size)
    for block, piece in blocks_of(part).items():
        content[block * BLOCK_BYTES : block * BLOCK_BYTES + len(piece)] = piece
    return bytes(content)


def data_pages(fd: int) -> set[int]:
    """The pages of a file that are no holes."""
    found = set()
    size = os.fstat(fd).st_size
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            break
        end = os.lseek(fd, at, os.SEEK_HOLE)
        found |= set(range(at // PAGE_BYTES, -(-end // PAGE_BYTES)))
        at = end
    return found


@settings(max_examples=25)
@given(
    st.integers(1, 3 * BLOCK_PAGES),
    st.integers(0, 2 * BLOCK_PAGES),
    st.integers(0, 2 * BLOCK_PAGES),
    st.dictionaries(pages, st.sampled_from([b"\0" * 9, b"content"]), max_size=9),
)
def test_a_part_is_read_and_written_as_it_is(
    length: int, source_page: int, target_page: int, writes: dict[int, bytes]
) -> None:
    size = length * PAGE_BYTES
    source, target = os.memfd_create("source"), os.memfd_create("target")
    try:
        os.ftruncate(source, source_page * PAGE_BYTES + size + BLOCK_BYTES)
        os.ftruncate(target, target_page * PAGE_BYTES + size)
        for page, content in writes.items():
            os.pwrite(source, content, page * PAGE_BYTES + 77)
        whole = os.pread(source, size, source_page * PAGE_BYTES)
        part = FilePart(source, source_page * PAGE_BYTES, size)
        copy = FilePart(target, target_page * PAGE_BYTES, size)

        assert content_of(part) == whole
        for block, content in blocks_of(part).items():
            assert copy.write(block, np.frombuffer(content, np.uint8)) == b""
        assert os.pread(target, size, target_page * PAGE_BYTES) == whole
        # What is zero takes no space.
        assert data_pages(target) == {
            target_page + page
            for page in range(length)
            if any(whole[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
        }
    finally:
        os.close(source)
        os.close(target)


def test_holes_are_not_found_and_many_blocks_are_found_in_turns(memfds: MakeMemfd) -> None:
    fd = memfds(9000 * BLOCK_BYTES)
    written = [*range(4098), 8999]
    for block in written:
        os.pwrite(fd, b"x", block * BLOCK_BYTES + 5000)
    part = FilePart(fd, 0, 9000 * BLOCK_BYTES)
    first, following = part.find(0)
    assert (len(first), following) == (4096, 4096)
    second, end = part.find(following)
    assert [*first, *second] == written
    assert end == 9000
    assert part.find(4098) == ([8999], 9000)


def test_some_pages_of_a_block(memfds: MakeMemfd) -> None:
    fd = memfds(2 * BLOCK_BYTES)
    for page in range(BLOCK_PAGES):
        os.pwrite(fd, bytes([page + 1 & 255]) * PAGE_BYTES, BLOCK_BYTES + page * PAGE_BYTES)
    part = FilePart(fd, PAGE_BYTES, BLOCK_BYTES)
    buffer = new_buffer()
    buffer[:] = 0xEE
    content = part.read_pages(0, 3, 4, buffer)
    # The part begins a page after the file, and the file's second block holds its numbers.
    assert content[: 3 * PAGE_BYTES].tobytes() == b"\xee" * 3 * PAGE_BYTES
    assert content[3 * PAGE_BYTES : 5 * PAGE_BYTES].tobytes() == bytes(2 * PAGE_BYTES)
    assert content[5 * PAGE_BYTES :].tobytes() == b"\xee" * (BLOCK_BYTES - 5 * PAGE_BYTES)
    content = FilePart(fd, BLOCK_BYTES, BLOCK_BYTES).read_pages(0, 3, 4, buffer)
    assert content[3 * PAGE_BYTES : 5 * PAGE_BYTES].tobytes() == b"\4" * 4096 + b"\5" * 4096

    target = memfds(2 * BLOCK_BYTES)
    content[4 * PAGE_BYTES : 5 * PAGE_BYTES] = 0
    FilePart(target, PAGE_BYTES, BLOCK_BYTES).write_pages(0, 3, 4, content)
    assert os.pread(target, 2 * PAGE_BYTES, 4 * PAGE_BYTES) == b"\4" * 4096 + bytes(4096)
    assert data_pages(target) == {4, 5}


def test_a_file_that_is_too_short(memfds: MakeMemfd) -> None:
    part = FilePart(memfds(2 * PAGE_BYTES), PAGE_BYTES, 2 * PAGE_BYTES)
    with pytest.raises(OSError, match="shorter than it should be") as caught:
        part.find(0)
    assert caught.value.errno == errno.EIO


def test_what_the_system_refuses(memfds: MakeMemfd) -> None:
    fd = memfds(BLOCK_BYTES)
    os.pwrite(fd, b"x", 0)
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    write_only = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    first, second = os.pipe()
    try:
        with pytest.raises(OSError, match="writing memory") as caught:
            FilePart(read_only, 0, BLOCK_BYTES).write(0, np.ones(BLOCK_BYTES, np.uint8))
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError, match="reading memory") as caught:
            FilePart(write_only, 0, BLOCK_BYTES).read(0, new_buffer())
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError, match="reading memory") as caught:
            FilePart(write_only, 0, BLOCK_BYTES).read_pages(0, 0, 0, new_buffer())
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError, match="finding data") as caught:
            FilePart(first, -BLOCK_BYTES, BLOCK_BYTES).find(0)
        assert caught.value.errno == errno.ESPIPE
    finally:
        for opened in (read_only, write_only, first, second):
            os.close(opened)


def test_needed_is_what_is_allocated_once_a_file(memfds: MakeMemfd) -> None:
    shared, alone = memfds(8 * BLOCK_BYTES), memfds(4 * BLOCK_BYTES)
    os.pwrite(shared, b"x" * 3 * PAGE_BYTES, 0)
    os.pwrite(alone, b"x" * 4 * BLOCK_BYTES, 0)
    memory_map = MemoryMap(
        [
            Mapping(0, 0, 2 * BLOCK_BYTES, "a", False, 0),
            Mapping(1, 1 << 32, 2 * BLOCK_BYTES, "a", False, 2 * BLOCK_BYTES),
            # A quarter of its file, which is all data.
            Mapping(2, 1 << 33, BLOCK_BYTES, "b", False, BLOCK_BYTES),
        ]
    )
    needed = needed_bytes(memory_map, {0: shared, 1: shared, 2: alone})
    assert needed == 3 * PAGE_BYTES + BLOCK_BYTES
