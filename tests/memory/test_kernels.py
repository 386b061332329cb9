"""Every kernel against a naive loop in plain Python integers."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.memory import kernels
from tests.support.tables import (
    TOP,
    Pairs,
    as_map,
    as_words,
    holders_of_the_gil,
    naive_split,
    pairs_of,
)

EDGES = [0, 1, 4095, 4096, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, TOP - 1]
u64 = st.one_of(st.sampled_from(EDGES), st.integers(0, 64), st.integers(0, TOP - 1))
hostile_tables = st.lists(st.tuples(u64, u64), max_size=12)


@st.composite
def maps(draw: st.DrawFn) -> Pairs:
    """Disjoint (first, last), sorted; some touch each other, one may end at 2^64."""
    edges = sorted(draw(st.sets(u64, min_size=2, max_size=8)))
    found = []
    for low, high in zip(edges[::2], edges[1::2], strict=False):
        found.append((low, high))
    if draw(st.booleans()) and found[-1][1] < TOP - 1:
        found.append((found[-1][1] + 1, TOP - 1))
    return found


@st.composite
def maps_and_good_tables(draw: st.DrawFn) -> tuple[Pairs, Pairs]:
    """A map, and ranges that lie in it."""
    mappings = draw(maps())
    table = []
    for _ in range(draw(st.integers(0, 10))):
        first, last = draw(st.sampled_from(mappings))
        low = draw(st.integers(first, last))
        high = draw(st.one_of(st.integers(low, last), st.just(min(last, low + 5))))
        if high - low < 2**64 - 1:
            table.append((low, high - low + 1))
    return mappings, table


def naive_check(table: Pairs, mappings: Pairs) -> tuple[int, int, int]:
    total = 0
    for i, (gpa, length) in enumerate(table):
        if length == 0:
            return i, kernels.EMPTY, total
        if gpa + length > TOP:
            return i, kernels.WRAPS, total
        holder = [last for first, last in mappings if first <= gpa <= last]
        if not holder:
            return i, kernels.OUTSIDE, total
        if gpa + length - 1 > holder[0]:
            return i, kernels.CROSSES, total
        if total + length >= 2**63:
            return i, kernels.TOO_MUCH, total
        total += length
    return -1, kernels.FINE, total


@given(hostile_tables, maps())
def test_check_says_what_plain_integers_say(table: Pairs, mappings: Pairs) -> None:
    assert kernels.check(as_words(table), *as_map(mappings)) == naive_check(table, mappings)


@given(maps_and_good_tables())
def test_check_of_ranges_that_lie_inside(case: tuple[Pairs, Pairs]) -> None:
    mappings, table = case
    answer = kernels.check(as_words(table), *as_map(mappings))
    assert answer == naive_check(table, mappings)
    assert answer[1] in (kernels.FINE, kernels.TOO_MUCH)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ([(0x1000, 0)], kernels.EMPTY),
        ([(TOP - 1, 2)], kernels.WRAPS),
        ([(0x1000, TOP - 1)], kernels.WRAPS),
        ([(0, 1)], kernels.OUTSIDE),
        ([(0x3000, 1)], kernels.OUTSIDE),
        ([(0x1FFF, 2)], kernels.CROSSES),
        ([(0x1000, 0x2000)], kernels.CROSSES),
        ([(0x1000, 0x1000), (0x1000, 0x1000), (0x1800, 0x800)], kernels.FINE),
    ],
)
def test_check_names_the_reason(table: Pairs, reason: int) -> None:
    touching = [(0x1000, 0x1FFF), (0x2000, 0x2FFF)]
    assert kernels.check(as_words(table), *as_map(touching))[1] == reason


def naive_merge(table: Pairs, starts: set[int]) -> Pairs:
    out: Pairs = []
    for gpa, length in table:
        if out and sum(out[-1]) == gpa and gpa not in starts:
            out[-1] = (out[-1][0], out[-1][1] + length)
        else:
            out.append((gpa, length))
    return out


@st.composite
def runs(draw: st.DrawFn) -> Pairs:
    """Ranges of which many follow each other, up to the end of the address space."""
    at = draw(st.sampled_from([0, 4096, 2**63, TOP - 20]))
    table = []
    for _ in range(draw(st.integers(0, 12))):
        if at >= TOP:
            break
        length = min(draw(st.integers(1, 5)), TOP - at)
        table.append((at, length))
        at += length + draw(st.sampled_from([0, 0, 0, 1, -1]))
    return table


@given(runs(), st.data())
def test_merge_joins_neighbours_but_not_across_a_start(table: Pairs, data: st.DataObject) -> None:
    candidates = sorted({gpa for gpa, _ in table})
    starts = set(data.draw(st.lists(st.sampled_from(candidates)))) if candidates else set()
    out = np.zeros((len(table), 2), np.uint64)
    count = kernels.merge(as_words(table), np.array(sorted(starts), np.uint64), out)
    assert pairs_of(out[:count]) == naive_merge(table, starts)


@given(runs(), st.one_of(st.integers(1, 6), st.just(TOP - 1)))
def test_split_cuts_at_the_limit(table: Pairs, limit: int) -> None:
    expected = naive_split(table, limit)
    out = np.zeros((len(expected), 2), np.uint64)
    assert kernels.split(as_words(table), np.uint64(limit), out) == len(expected)
    assert pairs_of(out) == expected


def test_split_stops_where_its_room_ends() -> None:
    out = np.zeros((2, 2), np.uint64)
    assert kernels.split(as_words([(0, TOP - 1)]), np.uint64(1), out) == 2


@given(maps_and_good_tables(), u64, u64)
def test_clip_keeps_what_is_inside(case: tuple[Pairs, Pairs], one: int, other: int) -> None:
    table = case[1]
    first, last = sorted((one, other))
    expected = [
        (max(gpa, first), min(gpa + length - 1, last) - max(gpa, first) + 1)
        for gpa, length in table
        if max(gpa, first) <= min(gpa + length - 1, last)
    ]
    out = np.zeros((len(table), 2), np.uint64)
    count = kernels.clip(as_words([*table, (5, 0)]), np.uint64(first), np.uint64(last), out)
    assert pairs_of(out[:count]) == expected


def naive_chunk(table: Pairs, max_bytes: int, max_ranges: int) -> Pairs:
    cuts: Pairs = []
    begin = size = 0
    for i, (_, length) in enumerate(table):
        if i > begin and (i - begin >= max_ranges or size + length > max_bytes):
            cuts.append((i, size))
            begin, size = i, 0
        size += length
    return [*cuts, (len(table), size)] if begin < len(table) else cuts


@given(runs(), st.integers(1, 20), st.integers(1, 5))
def test_chunk_cuts_within_both_limits(table: Pairs, max_bytes: int, max_ranges: int) -> None:
    out = np.zeros((len(table), 2), np.uint64)
    count = kernels.chunk(as_words(table), np.uint64(max_bytes), max_ranges, out)
    assert pairs_of(out[:count]) == naive_chunk(table, max_bytes, max_ranges)


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[Pairs, list[int], Pairs]:
    """Small mappings anywhere in the address space, their host addresses, and ranges inside."""
    mappings = []
    at = draw(st.sampled_from([0, 100, TOP - 200]))
    for _ in range(draw(st.integers(1, 3))):
        at += draw(st.integers(0, 10))
        size = draw(st.integers(1, 40))
        mappings.append((at, at + size - 1))
        at += size
    bases = [draw(st.integers(1 << 40, 1 << 47)) for _ in mappings]
    table = []
    for _ in range(draw(st.integers(0, 8))):
        first, last = draw(st.sampled_from(mappings))
        low = draw(st.integers(first, last))
        table.append((low, draw(st.integers(1, last - low + 1))))
    return mappings, bases, table


@given(small_cases(), st.integers(1, 12))
def test_fill_gives_host_addresses(case: tuple[Pairs, list[int], Pairs], piece: int) -> None:
    mappings, bases, table = case
    expected = []
    for gpa, length in table:
        k = next(k for k, (first, last) in enumerate(mappings) if first <= gpa <= last)
        expected += naive_split([(bases[k] + gpa - mappings[k][0], length)], piece)
    out = np.zeros((len(expected), 2), np.uint64)
    bases_array = np.array(bases, np.uint64)
    filled = kernels.fill(as_words(table), *as_map(mappings), bases_array, np.uint64(piece), out)
    assert filled == -1
    assert pairs_of(out) == expected


@given(hostile_tables, maps())
def test_fill_stays_in_its_room_and_in_the_map(table: Pairs, mappings: Pairs) -> None:
    out = np.full((4, 2), 99, np.uint64)
    bases = np.zeros(len(mappings), np.uint64)
    bad = kernels.fill(as_words(table), *as_map(mappings), bases, np.uint64(TOP - 1), out[:3])
    index, reason, _ = naive_check(table, mappings)
    if reason in (kernels.EMPTY, kernels.WRAPS, kernels.OUTSIDE, kernels.CROSSES) and index < 3:
        assert bad == index
    assert pairs_of(out[3:]) == [(99, 99)]


@given(
    st.lists(st.integers(1, 9), max_size=10),
    st.integers(0, 10),
    st.integers(1, 5),
    st.integers(0, 30),
)
def test_window_is_the_longest_that_fits(
    lengths: list[int], begin: int, max_entries: int, max_bytes: int
) -> None:
    rest = lengths[begin:]
    fitting = [
        k for k in range(1, min(len(rest), max_entries) + 1) if k == 1 or sum(rest[:k]) <= max_bytes
    ]
    count = max(fitting, default=0)
    entries = as_words([(0, length) for length in lengths])
    answer = kernels.window(entries, begin, max_entries, np.uint64(max_bytes))
    assert answer == (count, sum(rest[:count]))


@given(st.lists(st.integers(1, 9), max_size=10), st.data())
def test_advance_takes_bytes_off_the_front(lengths: list[int], data: st.DataObject) -> None:
    expected = [
        byte for i, length in enumerate(lengths) for byte in range(1000 * i, 1000 * i + length)
    ]
    entries = as_words([(1000 * i, length) for i, length in enumerate(lengths)])
    begin = 0
    while expected:
        moved = data.draw(st.integers(1, len(expected)))
        begin = kernels.advance(entries, begin, np.uint64(moved))
        expected = expected[moved:]
        left = [
            byte
            for start, length in pairs_of(entries[begin:])
            for byte in range(start, start + length)
        ]
        assert left == expected


def test_kernels_take_read_only_tables() -> None:
    table = np.frombuffer(bytes(16), np.uint64).reshape(-1, 2)
    assert not table.flags.writeable
    assert kernels.check(table, *as_map([(0, 1)])) == (0, kernels.EMPTY, 0)


def test_kernels_release_the_gil_but_for_those_that_the_event_loop_calls() -> None:
    """As the dispatchers say themselves."""
    assert holders_of_the_gil(kernels) == {"check", "fill", "window", "advance"}


def test_the_package_loads_no_numba() -> None:
    code = "import aiomigrate.memory, sys; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_libc_and_kernel_agree_on_iovec() -> None:
    """The (address, length) rows are `struct iovec`: libc's writev takes them as they are."""
    data = ctypes.create_string_buffer(b"abcdef", 6)
    start = ctypes.addressof(data)
    rows = as_words([(start + 4, 2), (start, 3)])
    reading, writing = os.pipe()
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.c_void_p(rows.__array_interface__["data"][0])
        assert libc.writev(writing, address, 2) == 5
        assert os.read(reading, 9) == b"efabc"
    finally:
        os.close(reading)
        os.close(writing)
