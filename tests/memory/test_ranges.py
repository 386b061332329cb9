"""Range tables: the wrappers, their argument checks and the limits of u64."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.memory.ranges import (
    RANGE,
    Table,
    chunk,
    clip,
    fragments,
    make_table,
    merge,
    split,
    total_bytes,
    words,
)

TOP = 2**64
u64 = st.integers(0, TOP - 1)


def pairs_of(table: Table) -> list[tuple[int, int]]:
    return [(int(gpa), int(length)) for gpa, length in table.tolist()]


@given(st.lists(st.tuples(u64, u64), max_size=5))
def test_a_table_is_the_wire_s_bytes(pairs: list[tuple[int, int]]) -> None:
    table = make_table(pairs)
    assert table.dtype == RANGE
    assert table.tobytes() == b"".join(struct.pack("<QQ", *pair) for pair in pairs)


@pytest.mark.parametrize("pair", [(-1, 1), (0, TOP)])
def test_a_number_that_is_no_u64_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(OverflowError):
        make_table([pair])


@given(st.lists(u64, max_size=20))
def test_total_bytes_is_exact(lengths: list[int]) -> None:
    assert total_bytes(make_table((0, length) for length in lengths)) == sum(lengths)


def test_words_is_a_view_where_it_can_be() -> None:
    table = make_table([(1, 2), (3, 4)])
    assert np.shares_memory(words(table), table)
    assert words(table).tolist() == [[1, 2], [3, 4]]


def test_unaligned_and_strided_tables_are_taken() -> None:
    data = b"abc" + make_table([(1, 2), (3, 4), (5, 6)]).tobytes()
    unaligned = np.frombuffer(data, RANGE, offset=3)
    assert words(unaligned).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert total_bytes(unaligned[::2]) == 8
    assert pairs_of(split(unaligned[::2], 1)) == [(1, 1), (2, 1)] + [(k, 1) for k in range(5, 11)]


def test_merge_with_and_without_starts() -> None:
    table = make_table([(0, 10), (10, 10), (30, 5)])
    assert pairs_of(merge(table)) == [(0, 20), (30, 5)]
    assert pairs_of(merge(table, np.array([0, 10], np.uint64))) == [(0, 10), (10, 10), (30, 5)]


def test_split_of_the_longest_range() -> None:
    assert pairs_of(split(make_table([(0, TOP - 1)]), 2**63)) == [(0, 2**63), (2**63, 2**63 - 1)]


@pytest.mark.parametrize("limit", [0, -1, TOP])
def test_split_refuses_a_senseless_limit(limit: int) -> None:
    with pytest.raises(ValueError, match="max_length"):
        split(make_table([(0, 1)]), limit)


def test_clip() -> None:
    table = make_table([(0, 10), (20, 10), (TOP - 5, 5)])
    assert pairs_of(clip(table, 5, 20)) == [(5, 5), (20, 5)]
    assert pairs_of(clip(table, TOP - 2, 2)) == [(TOP - 2, 2)]
    assert pairs_of(clip(table, 0, TOP)) == pairs_of(table)
    assert pairs_of(clip(table, 5, 0)) == []


@pytest.mark.parametrize(("gpa", "length"), [(-1, 1), (0, -1), (1, TOP), (0, TOP + 1)])
def test_clip_refuses_a_senseless_window(gpa: int, length: int) -> None:
    with pytest.raises(ValueError, match="window"):
        clip(make_table([(0, 1)]), gpa, length)


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 50)), max_size=20),
    st.integers(1, 60),
    st.integers(1, 6),
)
def test_chunks_hold_everything_in_order_within_limits(
    pairs: list[tuple[int, int]], max_bytes: int, max_ranges: int
) -> None:
    chunks = chunk(make_table(pairs), max_bytes, max_ranges)
    bytes_in_order = [byte for gpa, length in pairs for byte in range(gpa, gpa + length)]
    assert bytes_in_order == [
        byte
        for table, _ in chunks
        for gpa, length in pairs_of(table)
        for byte in range(gpa, gpa + length)
    ]
    for table, size in chunks:
        assert size == total_bytes(table) <= max_bytes
        assert 0 < len(table) <= max_ranges


def test_chunks_are_views() -> None:
    table = make_table([(0, 10), (20, 10)])
    assert all(np.shares_memory(piece, table) for piece, _ in chunk(table, 10, 5))


@pytest.mark.parametrize(("max_bytes", "max_ranges"), [(0, 1), (1, 0), (2**63, 1)])
def test_chunk_refuses_senseless_limits(max_bytes: int, max_ranges: int) -> None:
    with pytest.raises(ValueError, match="cannot be made"):
        chunk(make_table([(0, 1)]), max_bytes, max_ranges)


EXTENT = 8
# Two mappings that follow each other, and one up to the end of all addresses.
FIRSTS = [64, 100, TOP - 40]
ENDS = [100, 160, TOP]


@st.composite
def _in_mappings(draw: st.DrawFn) -> tuple[int, int]:
    which = draw(st.integers(0, len(FIRSTS) - 1))
    low = draw(st.integers(FIRSTS[which], ENDS[which] - 1))
    return low, draw(st.integers(1, ENDS[which] - low))


@given(
    st.lists(_in_mappings(), max_size=5),
    st.lists(st.integers(0, 3 * EXTENT), min_size=3, max_size=3),
)
def test_fragments_are_what_is_left_without_whole_extents(
    pairs: list[tuple[int, int]], offsets: list[int]
) -> None:
    """Beside an oracle that looks at each byte."""
    expected: list[int] = []
    for gpa, length in pairs_of(merge(make_table(pairs), np.array(FIRSTS, np.uint64))):
        which = max(i for i, first in enumerate(FIRSTS) if first <= gpa)
        shift = offsets[which] - FIRSTS[which]
        for byte in range(gpa, gpa + length):
            begin = byte - (byte + shift) % EXTENT
            if begin < gpa or begin + EXTENT > gpa + length:
                expected.append(byte)
    left = fragments(
        make_table(pairs), np.array(FIRSTS, np.uint64), np.array(offsets, np.int64), EXTENT
    )
    assert [byte for gpa, length in pairs_of(left) for byte in range(gpa, gpa + length)] == expected
