from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomigrate.memory import bitmaps as bitmaps_module
from aiomigrate.memory.bitmaps import (
    Bitmap,
    check_bitmaps,
    count_steps,
    dirty_bytes,
    dirty_tables,
    union,
    union_steps,
)
from aiomigrate.memory.map import Mapping, MemoryMap

_PAGE = 4096
_SLICE_PAGES = 64 * 16 * 1024
"""Of the first slice; each further one is twice as long."""


def _map(*mappings: tuple[int, int]) -> MemoryMap:
    """A memory map of (gpa in pages, pages); slots count from 10."""
    return MemoryMap(
        Mapping(10 + slot, gpa * _PAGE, pages * _PAGE, "mem0", False, 0)
        for slot, (gpa, pages) in enumerate(mappings)
    )


def _bitmap(pages: int, marked: set[int], tail: int = 0) -> Bitmap:
    """The naive way: one page after the other; `tail` is or-ed into the last word."""
    words = [0] * (-(-pages // 64))
    for page in marked:
        words[page // 64] |= 1 << page % 64
    words[-1] |= tail
    return np.array(words, np.uint64)


def _pages_of(tables: Sequence[Any]) -> list[int]:
    return [
        page
        for table in tables
        for gpa, length in table.tolist()
        for page in range(gpa // _PAGE, (gpa + length) // _PAGE)
    ]


@st.composite
def _dirt(draw: st.DrawFn) -> tuple[MemoryMap, list[set[int]], list[Bitmap]]:
    sizes = draw(st.lists(st.integers(1, 200), min_size=1, max_size=3))
    gaps = [draw(st.integers(0, 1)) for _ in sizes]
    gpas = [sum(sizes[:index]) + sum(gaps[: index + 1]) for index in range(len(sizes))]
    marked = [draw(st.sets(st.integers(0, size - 1))) for size in sizes]
    bitmaps = []
    for size, pages in zip(sizes, marked, strict=True):
        behind = size % 64
        tail = draw(st.integers(0, 2 ** (64 - behind) - 1)) << behind if behind else 0
        bitmaps.append(_bitmap(size, pages, tail))
    return _map(*zip(gpas, sizes, strict=True)), marked, bitmaps


@given(_dirt())
@settings(max_examples=200)
def test_tables_and_bytes_are_those_of_the_marked_pages(
    dirt: tuple[MemoryMap, list[set[int]], list[Bitmap]],
) -> None:
    memory_map, marked, bitmaps = dirt
    before = [bitmap.copy() for bitmap in bitmaps]
    check_bitmaps(memory_map, bitmaps)
    expected = [
        mapping.gpa // _PAGE + page
        for mapping, pages in zip(memory_map.mappings, marked, strict=True)
        for page in sorted(pages)
    ]
    tables = list(dirty_tables(memory_map, bitmaps))
    assert _pages_of(tables) == expected
    assert dirty_bytes(memory_map, bitmaps) == len(expected) * _PAGE
    for table in tables:
        assert memory_map.check(table) == int(table["length"].sum())
        # Neighbouring pages of a mapping are one range.
        ends = (table["gpa"] + table["length"])[:-1]
        assert not (ends == table["gpa"][1:]).any()
    assert all(np.array_equal(a, b) for a, b in zip(before, bitmaps, strict=True))


@given(_dirt(), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_a_union_marks_what_either_marks(
    dirt: tuple[MemoryMap, list[set[int]], list[Bitmap]], chance: Any
) -> None:
    memory_map, marked, bitmaps = dirt
    sizes = [mapping.size // _PAGE for mapping in memory_map.mappings]
    others = [{page for page in range(size) if chance.random() < 0.2} for size in sizes]
    other = [_bitmap(size, pages) for size, pages in zip(sizes, others, strict=True)]
    before = [bitmap.copy() for bitmap in other]
    both = union(bitmaps, other)
    expected = [
        mapping.gpa // _PAGE + page
        for mapping, a, b in zip(memory_map.mappings, marked, others, strict=True)
        for page in sorted(a | b)
    ]
    assert _pages_of(list(dirty_tables(memory_map, both))) == expected
    assert all(a is b for a, b in zip(both, bitmaps, strict=True))  # in place
    assert all(np.array_equal(a, b) for a, b in zip(before, other, strict=True))


def test_a_union_leaves_read_only_bitmaps_as_they_are() -> None:
    first, second = _bitmap(128, {3}), _bitmap(128, {100})
    first.flags.writeable = False
    (both,) = union([first], [second])
    assert both.tolist() == [1 << 3, 1 << 36]
    assert first.tolist() == [1 << 3, 0]


def test_long_bitmaps_are_gone_over_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two words here; the last step ends with the bitmap."""
    monkeypatch.setattr(bitmaps_module, "_STEP_WORDS", 2)
    pages = 64 * 7 - 5
    memory_map = _map((0, pages), (1000, 64))
    first = [_bitmap(pages, {0, 130, pages - 1}), _bitmap(64, {5})]
    second = [_bitmap(pages, {0, 64, 300}), _bitmap(64, {6})]
    first[0].flags.writeable = False
    assert len(list(count_steps(memory_map, first))) == 4 + 1
    assert dirty_bytes(memory_map, first) == 4 * _PAGE
    assert len(list(union_steps(first, second))) == 4 + 1
    both = union([first[0], _bitmap(64, {5})], second)
    assert both[0].tolist() == _bitmap(pages, {0, 64, 130, 300, pages - 1}).tolist()
    assert both[1].tolist() == _bitmap(64, {5, 6}).tolist()
    assert first[0].tolist() == _bitmap(pages, {0, 130, pages - 1}).tolist()


def test_bitmaps_of_two_memory_maps_have_no_union() -> None:
    with pytest.raises(ValueError, match="two different memory maps"):
        union([_bitmap(64, {1})], [_bitmap(65, {1})])
    with pytest.raises(ValueError, match="two different memory maps"):
        union([_bitmap(64, {1})], [_bitmap(64, {1})] * 2)


def test_no_bitmaps_mean_that_nothing_is_dirty() -> None:
    memory_map = _map((0, 65))
    some = [_bitmap(65, {1, 64})]
    check_bitmaps(memory_map, ())
    assert dirty_bytes(memory_map, ()) == 0
    assert list(dirty_tables(memory_map, ())) == []
    assert union((), some) is some
    assert union(some, ()) is some
    assert list(union((), ())) == []


def test_a_sparse_bitmap_does_not_wait_for_a_full_table() -> None:
    pages = 3 * _SLICE_PAGES + 70
    memory_map = _map((1 << 20, pages))
    # The second range crosses the end of the first slice: it is whole, in the second table.
    marked = {0, _SLICE_PAGES - 1, _SLICE_PAGES, 3 * _SLICE_PAGES, pages - 1}
    tables = list(dirty_tables(memory_map, [_bitmap(pages, marked)]))
    assert [len(table) for table in tables] == [1, 1, 2]
    assert _pages_of(tables) == [(1 << 20) + page for page in sorted(marked)]


@pytest.mark.parametrize("ends", [0, 1, 70])
def test_nobody_waits_for_the_end_of_a_long_run(ends: int) -> None:
    """It comes in parts where it goes on for a whole slice: here for the second one, and `ends`
    pages more.
    """
    pages = 7 * _SLICE_PAGES + 70
    bitmap = np.zeros(-(-pages // 64), np.uint64)
    end = 3 * _SLICE_PAGES + ends
    bitmap[: end // 64] = 2**64 - 1
    bitmap[end // 64] |= np.uint64(2 ** (end % 64) - 1)
    bitmap[-1] = 1 << 5
    tables = [table.tolist() for table in dirty_tables(_map((7, pages)), [bitmap])]
    assert tables[0] == [(7 * _PAGE, 3 * _SLICE_PAGES * _PAGE)]
    rest = [((7 + 3 * _SLICE_PAGES) * _PAGE, ends * _PAGE)] if ends else []
    rest += [((7 + pages - 1) * _PAGE, _PAGE)]
    assert [row for table in tables[1:] for row in table] == rest


def test_a_dense_bitmap_comes_in_tables_of_64_ki_ranges() -> None:
    bitmap = np.full(3 << 10, 0x5555555555555555, np.uint64)
    tables = list(dirty_tables(_map((0, 64 * len(bitmap))), [bitmap]))
    assert [len(table) for table in tables] == [1 << 16, (3 << 15) - (1 << 16)]
    gpas = np.concatenate([table["gpa"] for table in tables])
    assert np.array_equal(gpas, np.arange(0, 128 * _PAGE * len(bitmap) // 2, 2 * _PAGE))
    assert all((table["length"] == _PAGE).all() for table in tables)
    # A table is its holder's: the next one is not written over it.
    assert not np.shares_memory(tables[0], tables[1])


@pytest.mark.parametrize("page_bytes", [1 << 14, 1 << 16, 1 << 21, 1 << 30])
def test_pages_of_other_sizes_end_with_their_mapping(page_bytes: int) -> None:
    size = 65 * page_bytes + 3 * _PAGE
    memory_map = MemoryMap(
        Mapping(slot, gpa, size, "mem0", False, 0) for slot, gpa in enumerate((0, size))
    )
    bitmaps = [_bitmap(66, {0, 2, 3, 65}, 1 << 2), _bitmap(66, {1, 64}, 1 << 63)]
    tables = list(dirty_tables(memory_map, bitmaps, page_bytes))
    assert [table.tolist() for table in tables] == [
        [(0, page_bytes), (2 * page_bytes, 2 * page_bytes), (65 * page_bytes, 3 * _PAGE)],
        [(size + page_bytes, page_bytes), (size + 64 * page_bytes, page_bytes)],
    ]
    assert dirty_bytes(memory_map, bitmaps, page_bytes) == 5 * page_bytes + 3 * _PAGE


def test_addresses_up_to_the_end_of_64_bits() -> None:
    memory_map = _map(((1 << 52) - 128, 128))
    (table,) = dirty_tables(memory_map, [_bitmap(128, {0, 127})])
    assert table.tolist() == [(2**64 - 128 * _PAGE, _PAGE), (2**64 - _PAGE, _PAGE)]


@pytest.mark.parametrize(
    ("bitmaps", "message"),
    [
        ([np.zeros(2, np.uint64)], "gave 1 bitmaps for 2 mappings"),
        ([np.zeros(2, np.uint64)] * 3, "gave 3 bitmaps for 2 mappings"),
        ([np.zeros(1, np.uint64), np.zeros(1, np.uint64)], r"slot 10 .*\(2,\), not .*\(1,\)"),
        ([np.zeros(2, np.uint64), np.zeros(2, np.uint64)], r"slot 11 .*\(1,\), not .*\(2,\)"),
        ([np.zeros(2, np.int64), np.zeros(1, np.uint64)], "slot 10 must be uint64 .* not int64"),
        ([np.zeros((2, 1), np.uint64), np.zeros(1, np.uint64)], r"of shape \(2, 1\)"),
        ([np.zeros(4, np.uint64)[::2], np.zeros(1, np.uint64)], "slot 10 must be contiguous"),
        (
            [np.zeros(2, np.uint64), np.frombuffer(bytes(9), np.uint64, offset=1)],
            "slot 11 must be contiguous and aligned",
        ),
    ],
)
def test_what_fits_no_memory_map(bitmaps: list[Bitmap], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_bitmaps(_map((0, 65), (100, 64)), bitmaps)
