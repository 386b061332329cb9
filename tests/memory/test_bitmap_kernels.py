"""Every kernel against plain numpy or Python integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiomigrate.memory import bitmap_kernels as kernels

Words = kernels.Words
Rows = list[tuple[int, int]]

_ALL = 2**64 - 1
# Words as they come: nothing, everything, runs at the edges and in the middle, noise.
some_words = st.lists(
    st.one_of(
        st.sampled_from(
            [0, _ALL, 1, 1 << 63, (1 << 63) | 1, 0x5555555555555555, 0xAAAAAAAAAAAAAAAA]
        ),
        st.sampled_from([0, _ALL]),
        st.integers(0, _ALL),
        st.builds(
            lambda low, length: (_ALL >> (64 - length)) << low & _ALL,
            st.integers(0, 63),
            st.integers(1, 64),
        ),
    ),
    min_size=1,
    max_size=40,
)
page_shifts = st.sampled_from([12, 14, 16, 21, 25, 30])


@st.composite
def mappings(draw: st.DrawFn) -> tuple[Words, int, int, int, int]:
    """(bitmap, pages, page shift, gpa, size): the last word may be partial, with garbage behind the
    pages, the last page may be cut by the mapping's end, which may be 2^64.
    """
    bitmap = np.array(draw(some_words), np.uint64)
    pages = 64 * len(bitmap) - draw(st.integers(0, 63))
    shift = draw(page_shifts)
    cut = draw(st.integers(0, 2 ** (shift - 12) - 1))
    size = (pages << shift) - (cut << 12)
    gpa = draw(st.sampled_from([0, 1 << 32, 2**64 - size]))
    return bitmap, pages, shift, gpa, size


def bits_of(bitmap: Words, pages: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.unpackbits(bitmap.view(np.uint8), bitorder="little", count=pages)


def naive_ranges(bitmap: Words, pages: int, shift: int, gpa: int, size: int) -> Rows:
    edges = np.flatnonzero(np.diff(bits_of(bitmap, pages), prepend=0, append=0)).tolist()
    return [
        (gpa + (start << shift), min(end << shift, size) - (start << shift))
        for start, end in zip(edges[0::2], edges[1::2], strict=True)
    ]


def scan(
    case: tuple[Words, int, int, int, int], room: int, max_words: int
) -> list[tuple[Rows, int, int]]:
    """(rows, at, begun) of each call until the end."""
    bitmap, pages, shift, gpa, size = case
    at, begun = 0, -1
    calls = []
    while at < pages:
        out = np.full((room + 1, 2), 77, np.uint64)
        rows, after, begun = kernels.ranges(
            bitmap,
            pages,
            np.uint64(shift),
            np.uint64(gpa),
            np.uint64(size),
            at,
            begun,
            max_words,
            out[:room],
        )
        assert (out[room] == 77).all(), "it wrote behind its room"
        assert at < after <= pages
        at = after
        calls.append(([(int(a), int(b)) for a, b in out[:rows]], at, begun))
    return calls


@given(mappings(), st.integers(1, 600), st.integers(1, 50))
@settings(max_examples=1000)
def test_ranges_are_the_runs_of_marked_pages(
    case: tuple[Words, int, int, int, int], room: int, max_words: int
) -> None:
    before = case[0].copy()
    calls = scan(case, room, max_words)
    assert [row for rows, _, _ in calls for row in rows] == naive_ranges(*case)
    assert (case[0] == before).all()
    position = 0
    for rows, at, begun in calls:
        # It stopped because it was full, or had looked at its share, or at the end.
        looked = -(-at // 64) - position // 64
        assert len(rows) == room or looked == max_words or at == case[1]
        # What it left open is a run that goes on: its first page was seen, its end was not.
        if begun >= 0:
            assert bits_of(case[0], case[1])[begun:at].all()
            assert begun == 0 or not bits_of(case[0], case[1])[begun - 1]
        position = at


@given(st.floats(0, 1), st.integers(0, 2**32), st.integers(1, 64), st.integers(1, 1000))
@settings(max_examples=150)
def test_ranges_at_any_density(density: float, seed: int, behind: int, room: int) -> None:
    generator = np.random.default_rng(seed)
    bits = (generator.random(64 * 96) < density).astype(np.uint8)
    bitmap = np.packbits(bits, bitorder="little").view(np.uint64)
    pages = bits.size - 64 + behind
    case = (bitmap, pages, 12, 0, pages << 12)
    calls = scan(case, room, 1 << 20)
    assert [row for rows, _, _ in calls for row in rows] == naive_ranges(*case)
    assert all(len(rows) == room for rows, _, _ in calls[:-1])


def test_a_run_is_one_range_over_words_blocks_and_calls() -> None:
    bitmap = np.full(64, _ALL, np.uint64)
    bitmap[0] = 1 << 63
    bitmap[63] = 1
    pages = 64 * 64
    calls = scan((bitmap, pages, 12, 0, pages << 12), 1, 7)
    assert len(calls) == 10  # 64 words, 7 a call
    assert [begun for _, _, begun in calls] == [63] * 9 + [-1]
    assert calls[-1][0] == [(63 << 12, (62 * 64 + 2) << 12)]


def test_marked_behind_the_last_page() -> None:
    bitmap = np.array([0, _ALL << 3 & _ALL], np.uint64)
    assert scan((bitmap, 67, 12, 0, 67 << 12), 4, 4) == [([], 67, -1)]
    assert scan((bitmap, 68, 12, 0, 68 << 12), 4, 4) == [([(67 << 12, 4096)], 68, -1)]


def test_a_bitmap_that_changes_between_calls_gives_ranges_of_the_mapping_all_the_same() -> None:
    """Nobody may do that, and what it marks is undefined; no range is made up of it."""
    bitmap = np.full(16, _ALL, np.uint64)
    out = np.empty((4, 2), np.uint64)
    numbers = (1024, np.uint64(12), np.uint64(0), np.uint64(1024 << 12))
    rows, at, begun = kernels.ranges(bitmap, *numbers, 0, -1, 8, out)
    assert (rows, at, begun) == (0, 512, 0)
    bitmap[:] = 0
    rows, at, begun = kernels.ranges(bitmap, *numbers, at, begun, 8, out)
    assert (rows, at, begun) == (1, 1024, -1)
    assert out[0].tolist() == [0, 512 << 12]


@given(some_words)
def test_count_is_the_number_of_set_bits(words: list[int]) -> None:
    assert kernels.count(np.array(words, np.uint64)) == sum(word.bit_count() for word in words)


@given(st.lists(st.tuples(st.integers(0, _ALL), st.integers(0, _ALL)), max_size=20))
def test_unite_and_subtract_work_in_place(pairs: list[tuple[int, int]]) -> None:
    target, other = np.array(pairs, np.uint64).reshape(-1, 2).T.copy()
    other.flags.writeable = False
    joined, less = target.copy(), target.copy()
    kernels.unite(joined, other)
    kernels.subtract(less, other)
    assert joined.tolist() == (target | other).tolist()
    assert less.tolist() == (target & ~other).tolist()


@pytest.mark.parametrize("kernel", [kernels.unite, kernels.subtract])
@pytest.mark.parametrize(("long", "short"), [(9, 4), (4, 9)])
def test_bitmaps_of_two_lengths_are_not_read_beyond_their_ends(
    kernel: object, long: int, short: int
) -> None:
    assert callable(kernel)
    target, other = np.full(long, 6, np.uint64), np.full(short, 3, np.uint64)
    kernel(target, other)
    changed = {kernels.unite: 7, kernels.subtract: 4}[kernel]
    both = min(long, short)
    assert target.tolist() == [changed] * both + [6] * (long - both)


@given(
    st.lists(st.tuples(st.integers(-3, 300), st.integers(-3, 300)), max_size=8),
    st.integers(1, 4),
    page_shifts,
    st.integers(0, _ALL),
)
@example([(0, 64), (64, 128), (100, 257)], 4, 12, 0)
@example([(5, 5), (9, 2), (250, 300)], 4, 12, 0)
def test_mark_sets_the_pages_of_regions(
    pairs: list[tuple[int, int]], words: int, shift: int, held: int
) -> None:
    base = 3 << shift
    regions = np.array([(base + (a << shift), base + (b << shift), 2) for a, b in pairs], np.uint64)
    target = np.full(words, held, np.uint64)
    expected = sum(held << 64 * word for word in range(words))
    for first, end in pairs:
        for page in range(first, end) if first >= 0 else ():
            expected |= 1 << page
    kernels.mark(regions.reshape(-1, 3), np.uint64(base), np.uint64(shift), target)
    assert target.tolist() == [expected >> 64 * word & _ALL for word in range(words)]
