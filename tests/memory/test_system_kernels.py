"""Kernels that make system calls, on real memory and memfds, against plain Python integers."""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.memory import system_kernels
from tests.support.tables import TOP, as_map, as_words, holders_of_the_gil, naive_split, pairs_of


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


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12), st.integers(1, 4)), max_size=6),
    st.booleans(),
)
def test_allocate_reserves_just_what_is_touched(
    touched: list[tuple[int, int, int]], second_has_file: bool
) -> None:
    page = 4096
    size = 16 * page
    fds = [os.memfd_create("one"), os.memfd_create("two")]
    try:
        for fd in fds:
            os.ftruncate(fd, 2 * size)
        mappings = [(0, size - 1), (size, 2 * size - 1)]
        table = [(slot * size + at * page, pages * page) for slot, at, pages in touched]
        given_fds = np.array([fds[0], fds[1] if second_has_file else -1], np.int64)
        offsets = np.array([0, size], np.int64)
        assert system_kernels.allocate(as_words(table), *as_map(mappings), given_fds, offsets) == (
            -1,
            0,
        )
        wanted: list[set[int]] = [set(), set()]
        for slot, at, pages in touched:
            if slot == 0 or second_has_file:
                wanted[slot].update(slot * 16 + at + k for k in range(pages))
        for fd, pages_of in zip(fds, wanted, strict=True):
            assert os.fstat(fd).st_blocks * 512 == len(pages_of) * page
            # The right ones: writing there takes no further block.
            for number in pages_of:
                os.pwrite(fd, b"x", number * page)
            assert os.fstat(fd).st_blocks * 512 == len(pages_of) * page
    finally:
        for fd in fds:
            os.close(fd)


def test_allocate_gives_errno_and_the_range() -> None:
    firsts, lasts = as_map([(0, 4095)])
    closed, zero = np.array([12345], np.int64), np.array([0], np.int64)
    answer = system_kernels.allocate(as_words([(0, 1)]), firsts, lasts, closed, zero)
    assert answer == (0, errno.EBADF)
    assert system_kernels.allocate(as_words([(4096, 1)]), firsts, lasts, closed, zero) == (0, 0)


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
