"""Gathered memory against plain bytes."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomigrate.memory.blocks import BLOCK_BYTES, FilePart, new_buffer
from aiomigrate.memory.gathered import GatheredSource, Piece
from aiomigrate.memory.map import PAGE_BYTES

PAGES = 2 * BLOCK_BYTES // PAGE_BYTES + 5
pieces_of_pages = st.lists(
    # gap before it, length, which file, where in it
    st.tuples(
        st.integers(0, 300), st.integers(1, 300), st.integers(0, 1), st.integers(0, PAGES - 300)
    ),
    max_size=5,
)


@settings(max_examples=30)
@given(pieces_of_pages, st.integers(0, 300), st.sets(st.integers(0, PAGES - 1), max_size=6))
def test_against_plain_bytes(
    laid_out: list[tuple[int, int, int, int]], rest: int, written: set[int]
) -> None:
    with ExitStack() as stack:
        files = []
        for number in range(2):
            fd = os.memfd_create("part")
            stack.callback(os.close, fd)
            os.ftruncate(fd, PAGES * PAGE_BYTES)
            for page in written:
                os.pwrite(fd, bytes([number + 1]) * PAGE_BYTES, page * PAGE_BYTES)
            files.append(fd)
        sources = [FilePart(fd, 0, PAGES * PAGE_BYTES) for fd in files]
        expected = b""
        pieces = []
        for gap, length, number, at in laid_out:
            expected += bytes(gap * PAGE_BYTES)
            start = len(expected)
            pieces.append(Piece(start, length * PAGE_BYTES, sources[number], at * PAGE_BYTES))
            expected += os.pread(files[number], length * PAGE_BYTES, at * PAGE_BYTES)
        expected += bytes(rest * PAGE_BYTES)
        whole = GatheredSource(len(expected), reversed(pieces))
        blocks = -(-len(expected) // BLOCK_BYTES)
        found, end = whole.find(0)
        assert end == blocks
        for block in range(blocks):
            content = expected[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            assert whole.read(block, new_buffer()).tobytes() == content
            assert whole.read_pages(block, 0, 0, new_buffer()).tobytes() == content
            assert block in found or not any(content)


def test_holes_are_not_found_and_a_file_that_was_cut_is_an_error() -> None:
    fd = os.memfd_create("part")
    try:
        os.ftruncate(fd, 9 * BLOCK_BYTES)
        os.pwrite(fd, b"x", 7 * BLOCK_BYTES)
        part = FilePart(fd, 0, 9 * BLOCK_BYTES)
        # Begins in the middle of a block.
        start = BLOCK_BYTES // 2
        whole = GatheredSource(9 * BLOCK_BYTES, [Piece(start, 8 * BLOCK_BYTES, part, BLOCK_BYTES)])
        assert whole.find(0) == ([6, 7], 9)
        assert whole.find(7) == ([7], 9)
        os.ftruncate(fd, 0)
        with pytest.raises(OSError, match="shorter"):
            whole.find(7)
    finally:
        os.close(fd)
