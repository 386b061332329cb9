"""Kernels that make system calls, on real memory and memfds, against plain Python integers."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.memory import system_kernels
from tests.support.tables import (
    TOP,
    Pairs,
    as_map,
    as_words,
    holders_of_the_gil,
    naive_split,
    pairs_of,
)


def resident(memory: mmap.mmap, pages: int) -> list[bool]:
    """Which pages this process has in its page table, from /proc/self/pagemap (bit 63)."""
    address = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // mmap.PAGESIZE * 8)
        entries = np.frombuffer(pagemap.read(pages * 8), np.uint64)
    return [bool(entry >> np.uint64(63)) for entry in entries]


@given(st.lists(st.tuples(st.integers(0, 31), st.integers(1, 3), st.integers(0, 4095)), max_size=6))
def test_advise_populates_just_the_pages_touched(touched: list[tuple[int, int, int]]) -> None:
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 36 * page) as memory:
        gpa = 0x10_0000
        table = [(gpa + at * page + skew, pages * page) for at, pages, skew in touched]
        firsts, lasts = as_map([(gpa, gpa + 36 * page - 1)])
        base = np.array([np.frombuffer(memory, np.uint8).__array_interface__["data"][0]], np.uint64)
        answer = system_kernels.advise(as_words(table), firsts, lasts, base, np.uint64(page), 23)
        if answer[1] == errno.EINVAL:
            pytest.skip("this kernel has no MADV_POPULATE_WRITE")
        expected = {
            at + k for at, pages, skew in touched for k in range(pages + (1 if skew else 0))
        }
        assert answer == (-1, 0)
        assert [k for k, there in enumerate(resident(memory, 36)) if there] == sorted(expected)


def test_advise_gives_errno_and_the_range() -> None:
    with mmap.mmap(-1, 1 << 16) as memory:
        base = np.array([np.frombuffer(memory, np.uint8).__array_interface__["data"][0]], np.uint64)
        firsts, lasts = as_map([(0, (1 << 16) - 1)])
        table = as_words([(0, 4096), (0x8000, 1)])
        page = np.uint64(4096)
        assert system_kernels.advise(table, firsts, lasts, base, page, 9999) == (0, errno.EINVAL)
        outside = as_words([(0, 4096), (1 << 16, 1)])
        assert system_kernels.advise(outside, firsts, lasts, base, page, 22) == (1, 0)


@contextmanager
def memfds(count: int, size: int) -> Iterator[list[int]]:
    """Descriptors of new memfds of a size."""
    fds = [os.memfd_create("test") for _ in range(count)]
    try:
        for fd in fds:
            os.ftruncate(fd, size)
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def holds_data(fd: int, offset: int) -> bool:
    """Whether the page at an offset is no hole."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) == offset
    except OSError:
        return False


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12), st.integers(1, 4)), max_size=6),
    st.booleans(),
)
def test_fallocate_reserves_just_what_is_touched(
    touched: list[tuple[int, int, int]], second_has_file: bool
) -> None:
    page = 4096
    size = 16 * page
    with memfds(2, 2 * size) as fds:
        mappings = [(0, size - 1), (size, 2 * size - 1)]
        table = [(slot * size + at * page, pages * page) for slot, at, pages in touched]
        given_fds = np.array([fds[0], fds[1] if second_has_file else -1], np.int64)
        rest = np.zeros((len(table), 2), np.uint64)
        count, *answer = system_kernels.fallocate(
            as_words(table), *as_map(mappings), given_fds, np.array([0, size]), False, rest
        )
        assert answer == [-1, 0]
        wanted: list[set[int]] = [set(), set()]
        left: set[int] = set()
        for slot, at, pages in touched:
            numbers = {slot * 16 + at + k for k in range(pages)}
            if slot == 0 or second_has_file:
                wanted[slot] |= numbers
            else:
                left |= numbers
        for fd, pages_of in zip(fds, wanted, strict=True):
            assert os.fstat(fd).st_blocks * 512 == len(pages_of) * page
            # The right ones: writing there takes no further block.
            for number in pages_of:
                os.pwrite(fd, b"x", number * page)
            assert os.fstat(fd).st_blocks * 512 == len(pages_of) * page
        assert {gpa // page for gpa, _ in naive_split(pairs_of(rest[:count]), page)} == left


@given(
    st.lists(st.tuples(st.integers(0, 60_000), st.integers(1, 30_000)), max_size=6),
    st.sets(st.integers(0, 15)),
)
def test_fallocate_makes_holes_of_just_what_is_touched(
    touched: list[tuple[int, int]], written: set[int]
) -> None:
    size = 16 * 4096
    model = bytearray(size)
    with memfds(1, 2 * size) as fds:
        for page in written:
            model[page * 4096 : page * 4096 + 4096] = b"x" * 4096
            os.pwrite(fds[0], b"x" * 4096, size + page * 4096)
        table = [(7 + at, min(length, size - at)) for at, length in touched]
        for gpa, length in table:
            model[gpa - 7 : gpa - 7 + length] = bytes(length)
        answer = system_kernels.fallocate(
            as_words(table),
            *as_map([(7, 7 + size - 1)]),
            np.array(fds),
            np.array([size]),
            True,
            np.zeros((len(table), 2), np.uint64),
        )
        assert answer == (0, -1, 0)
        assert os.pread(fds[0], size, size) == model
        assert os.fstat(fds[0]).st_size == 2 * size
        for page in written:
            if not any(model[page * 4096 : page * 4096 + 4096]) and whole_page(page, table):
                assert not holds_data(fds[0], size + page * 4096)


def whole_page(page: int, table: Pairs) -> bool:
    """Whether one range covers all of a page of a mapping that begins at 7."""
    first = 7 + page * 4096
    return any(gpa <= first and first + 4096 <= gpa + length for gpa, length in table)


@pytest.mark.parametrize("hole", [False, True])
def test_fallocate_gives_errno_and_the_range(hole: bool) -> None:
    firsts, lasts = as_map([(0, 4095)])
    closed, zero = np.array([12345], np.int64), np.array([0], np.int64)
    rest = np.zeros((2, 2), np.uint64)
    use = system_kernels.fallocate
    assert use(as_words([(0, 1)]), firsts, lasts, closed, zero, hole, rest) == (0, 0, errno.EBADF)
    assert use(as_words([(4096, 1)]), firsts, lasts, closed, zero, hole, rest) == (0, 0, 0)


@pytest.mark.parametrize("hole", [False, True])
def test_what_a_file_system_cannot_is_the_rest(hole: bool) -> None:
    """Files of procfs are regular, can be written to, and have no fallocate()."""
    rest = np.zeros((3, 2), np.uint64)
    table = as_words([(0, 4096), (4096, 4096), (16384, 100)])
    with open("/proc/self/comm", "r+b", buffering=0) as file:
        fds = np.array([file.fileno()], np.int64)
        answer = system_kernels.fallocate(
            table, *as_map([(0, 65535)]), fds, np.array([0]), hole, rest
        )
    assert answer == (2, -1, 0)
    assert pairs_of(rest[:2]) == [(0, 8192), (16384, 100)]


def test_read_into_fills_a_table_and_gives_errno() -> None:
    with mmap.mmap(-1, 8192) as memory, memfds(1, 0) as fds:
        memory[:] = b"x" * 8192
        os.write(fds[0], b"abcdef")
        os.lseek(fds[0], 0, os.SEEK_SET)
        base = np.array([np.frombuffer(memory, np.uint8).__array_interface__["data"][0]], np.uint64)
        use = system_kernels.read_into
        firsts, lasts = as_map([(100, 8291)])
        assert use(as_words([(8290, 2), (100, 4)]), firsts, lasts, base, fds[0]) == (-1, 0)
        assert memory[-2:] + memory[:5] == b"abcdefx"
        assert use(as_words([(100, 4)]), firsts, lasts, base, fds[0]) == (0, errno.ENODATA)
        assert use(as_words([(100, 4)]), firsts, lasts, base, 12345) == (0, errno.EBADF)
        assert use(as_words([(99, 4)]), firsts, lasts, base, fds[0]) == (0, 0)


@st.composite
def writes(draw: st.DrawFn) -> tuple[Pairs, bytes]:
    """A table of two mappings of 64 KiB, and its content: pages of zeros and of other bytes."""
    table = []
    content = bytearray()
    for _ in range(draw(st.integers(1, 4))):
        slot = draw(st.integers(0, 1))
        low = draw(st.one_of(st.integers(0, 15).map(lambda p: p * 4096), st.integers(0, 65535)))
        length = draw(st.integers(1, 65536 - low))
        if draw(st.booleans()):
            length = max(1, length - length % 4096)
        table.append((slot * 65536 + low, length))
        piece = bytearray(length)
        for at in draw(st.lists(st.integers(0, length - 1), max_size=3)):
            piece[at] = 7
        content += piece
    return table, bytes(content)


@given(st.lists(writes(), min_size=1, max_size=3))
def test_store_writes_content_and_leaves_holes(requests: list[tuple[Pairs, bytes]]) -> None:
    model = bytearray(2 * 65536)
    with memfds(2, 2 * 65536) as fds:
        for table, content in requests:
            answer = system_kernels.store(
                as_words(table),
                *as_map([(0, 65535), (65536, 131071)]),
                np.array(fds),
                np.array([4096, 65536]),
                np.frombuffer(content, np.uint8),
            )
            assert answer == (-1, 0)
            at = 0
            for gpa, length in table:
                model[gpa : gpa + length] = content[at : at + length]
                at += length
        assert os.pread(fds[0], 65536, 4096) + os.pread(fds[1], 65536, 65536) == model
        # Pages that were never written in part are there only if they hold something.
        parts = {
            page
            for table, _ in requests
            for gpa, length in table
            for page in (gpa // 4096, (gpa + length - 1) // 4096)
        }
        for page in set(range(32)) - parts:
            offset = page % 16 * 4096 + (65536 if page >= 16 else 4096)
            there = holds_data(fds[page // 16], offset)
            assert there is any(model[page * 4096 : page * 4096 + 4096])


def test_store_gives_errno_and_the_range() -> None:
    ones, zeros = np.ones(4096, np.uint8), np.zeros(4096, np.uint8)
    firsts, lasts = as_map([(0, 65535)])
    closed, start = np.array([12345], np.int64), np.array([0], np.int64)
    for content in (ones, zeros):
        answer = system_kernels.store(as_words([(0, 4096)]), firsts, lasts, closed, start, content)
        assert answer == (0, errno.EBADF)
    for table in ([(65535, 2)], [(0, 4097)], [(0, 0)]):
        answer = system_kernels.store(as_words(table), firsts, lasts, closed, start, ones)
        assert answer == (0, 0)


@given(st.sets(st.integers(0, 31)), st.integers(0, 8), st.integers(1, 24), st.integers(1, 6))
def test_extents_finds_just_the_data(written: set[int], offset: int, pages: int, rows: int) -> None:
    gpa = TOP - pages * 4096
    fd = os.memfd_create("sparse")
    try:
        os.ftruncate(fd, 32 * 4096)
        for page in written:
            os.pwrite(fd, b"x", page * 4096 + 100)
        found = []
        at = 0
        while at < pages * 4096:
            out = np.zeros((rows, 2), np.uint64)
            count, at, code = system_kernels.extents(
                fd, offset * 4096, pages * 4096, at, 4096, np.uint64(gpa), out
            )
            assert code == 0
            found += pairs_of(out[:count])
        singles = naive_split(found, 4096)
        expected = [
            gpa + (p - offset) * 4096 for p in range(offset, offset + pages) if p in written
        ]
        assert singles == [(start, 4096) for start in expected]
    finally:
        os.close(fd)


def test_extents_widens_to_the_grain_and_gives_errno() -> None:
    fd = os.memfd_create("sparse")
    out = np.zeros((4, 2), np.uint64)
    try:
        os.ftruncate(fd, 1 << 20)
        os.pwrite(fd, b"x", 5 * 4096)
        os.pwrite(fd, b"x", 15 * 4096)
        os.pwrite(fd, b"x", 17 * 4096)
        answer = system_kernels.extents(fd, 0, 1 << 20, 0, 65536, np.uint64(0), out)
        assert answer == (1, 1 << 20, 0)
        assert pairs_of(out[:1]) == [(0, 2 * 65536)]
    finally:
        os.close(fd)
    assert system_kernels.extents(fd, 0, 4096, 0, 4096, np.uint64(0), out) == (0, 0, errno.EBADF)


def test_only_what_the_event_loop_calls_keeps_the_gil() -> None:
    assert holders_of_the_gil(system_kernels) == {"resident"}
    assert system_kernels.advise.targetoptions["nogil"] is True  # type: ignore[attr-defined]
