"""Served pages against a model: every page is written once, and then it is the guest's."""

from __future__ import annotations

import os
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from aiomigrate.memory.blocks import BLOCK_BYTES, Block, BlockSource, FilePart, new_buffer
from aiomigrate.memory.frames import FrameSource, FrameTarget
from aiomigrate.memory.map import PAGE_BYTES
from aiomigrate.memory.pages import BLOCK_PAGES, ServedPages

PAGES = 2 * BLOCK_PAGES + 3
SIZE = PAGES * PAGE_BYTES


def stored_memory() -> bytes:
    """Every third page is zero, and a whole block is."""
    chance = random.Random(7)
    content = bytearray()
    for page in range(PAGES):
        blank = page % 3 == 0 or BLOCK_PAGES <= page < BLOCK_PAGES + 200
        content += bytes(PAGE_BYTES) if blank else chance.randbytes(8) * (PAGE_BYTES // 8)
    return bytes(content)


CONTENT = stored_memory()


def page_of(content: bytes, page: int) -> bytes:
    return content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]


def allocated(fd: int, page: int) -> bool:
    """Whether a page of a memfd is there."""
    try:
        return os.lseek(fd, page * PAGE_BYTES, os.SEEK_DATA) == page * PAGE_BYTES
    except OSError:
        return False


def source_in(fd: int, *, compressed: bool) -> BlockSource:
    part = FilePart(fd, 0, SIZE)
    if not compressed:
        os.pwrite(fd, CONTENT, 0)
        return part
    plain = os.memfd_create("plain")
    os.pwrite(plain, CONTENT, 0)
    target = FrameTarget(fd, SIZE)
    for block in range(-(-SIZE // BLOCK_BYTES)):
        content = FilePart(plain, 0, SIZE).read(block, new_buffer())
        target.append(block, target.write(block, content))
    target.finish()
    os.close(plain)
    return FrameSource(fd, SIZE)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("fault"), st.integers(0, PAGES - 1), st.integers(1, 40)),
        st.tuples(st.just("fill"), st.integers(0, 2), st.just(0)),
        # The guest writes to a page that it has.
        st.tuples(st.just("guest"), st.integers(0, PAGES - 1), st.integers(1, 40)),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(steps, st.booleans())
def test_against_a_model(moves: list[tuple[str, int, int]], compressed: bool) -> None:
    fd, target = os.memfd_create("stored"), os.memfd_create("guest")
    try:
        os.ftruncate(target, SIZE)
        pages = ServedPages(source_in(fd, compressed=compressed), FilePart(target, 0, SIZE))
        expected: dict[int, bytes] = {}
        asked_for: set[int] = set()
        for what, where, count in moves:
            touched = range(where, min(where + count, PAGES))
            if what == "guest":
                for page in touched:
                    if page in asked_for:
                        expected[page] = b"guest" + bytes(PAGE_BYTES - 5)
                        os.pwrite(target, expected[page], page * PAGE_BYTES)
                continue
            if what == "fill":
                block = where
                written = pages.fill(block, pages.pages(block))
                pages.note(block, written)
                continue
            for block in {page // BLOCK_PAGES for page in touched}:
                mask = sum(
                    1 << page % BLOCK_PAGES for page in touched if page // BLOCK_PAGES == block
                )
                written = pages.serve(block, mask)
                pages.note(block, written)
                assert pages.missing(block, mask) == 0
            for page in touched:
                asked_for.add(page)
                assert allocated(target, page)
                expected.setdefault(page, page_of(CONTENT, page))
                assert os.pread(target, PAGE_BYTES, page * PAGE_BYTES) == expected[page]
        for block in range(pages.blocks):
            pages.note(block, pages.fill(block, pages.pages(block)))
        for page in range(PAGES):
            wanted = expected.get(page, page_of(CONTENT, page))
            assert os.pread(target, PAGE_BYTES, page * PAGE_BYTES) == wanted
            # Background pages that are zero take no memory.
            assert allocated(target, page) == (page in asked_for or any(page_of(CONTENT, page)))
        assert pages.served_bytes == os.fstat(target).st_blocks * 512
    finally:
        os.close(fd)
        os.close(target)


def test_only_pages_that_are_asked_for_are_read() -> None:
    read: list[tuple[int, int, int]] = []

    class Recording(FilePart):
        def read_pages(self, index: int, first: int, last: int, buffer: Block) -> Block:
            read.append((index, first, last))
            return super().read_pages(index, first, last, buffer)

    fd, target = os.memfd_create("stored"), os.memfd_create("guest")
    try:
        os.ftruncate(target, SIZE)
        source_in(fd, compressed=False)
        pages = ServedPages(Recording(fd, 0, SIZE), FilePart(target, 0, SIZE))
        pages.note(1, pages.serve(1, 0b1100))
        assert pages.serve(1, 0b1000) == 0
        assert read == [(1, 2, 3)]
        assert os.fstat(target).st_blocks * 512 == 2 * PAGE_BYTES
        # All but the second page are missing, and what lies between is read with them.
        pages.note(1, pages.serve(1, 0b11111))
        assert read == [(1, 2, 3), (1, 0, 4)]
    finally:
        os.close(fd)
        os.close(target)
