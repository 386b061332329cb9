"""What is zero, against numpy and plain integers; memory at any address, even an odd one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiomigrate.memory import zero_kernels
from tests.support.tables import Pairs, as_map, as_words, holders_of_the_gil, pairs_of

PAGE = 4096
FIRST = 0x10_0000
MAPPINGS = [(FIRST, FIRST + 4 * PAGE - 1), (FIRST + 4 * PAGE, FIRST + 9 * PAGE - 1)]
"""They touch each other in the guest."""
SIZE = 9 * PAGE

Memory = npt.NDArray[np.uint8]


def address_of(memory: Memory) -> int:
    address: int = memory.__array_interface__["data"][0]
    return address


@st.composite
def memories(draw: st.DrawFn) -> Memory:
    """Guest memory that is zero but for a few bytes, at any address."""
    skew = draw(st.integers(0, 9))
    memory = np.zeros(SIZE + skew, np.uint8)[skew:]
    edges = [page * PAGE + at for page in range(9) for at in (0, 1, 7, 8, PAGE - 8, PAGE - 1)]
    places = st.one_of(st.sampled_from(edges), st.integers(0, SIZE - 1))
    for at in draw(st.lists(places, max_size=6)):
        memory[at] = draw(st.integers(1, 255))
    return memory


@st.composite
def tables(draw: st.DrawFn) -> Pairs:
    """Ranges inside the mappings, many of whole pages."""
    table = []
    for _ in range(draw(st.integers(0, 5))):
        first, last = draw(st.sampled_from(MAPPINGS))
        low = draw(st.integers(first, last))
        high = draw(st.integers(low, last))
        if draw(st.booleans()):
            low, high = low - low % PAGE, high - high % PAGE + PAGE - 1
        table.append((low, high - low + 1))
    return table


def naive_split_zeros(
    table: Pairs, memory: Memory, steady: list[bool], *, parts: bool
) -> tuple[Pairs, Pairs]:
    out: tuple[Pairs, Pairs] = ([], [])
    for gpa, length in table:
        at = gpa
        while at < gpa + length:
            end = min(at - at % PAGE + PAGE, gpa + length)
            whole = end - at == PAGE
            content = memory[at - FIRST : end - FIRST]
            zero = steady[at >= MAPPINGS[1][0]] and (whole or parts) and not content.any()
            rows = out[zero]
            if rows and sum(rows[-1]) == at and at not in {first for first, _ in MAPPINGS}:
                rows[-1] = (rows[-1][0], rows[-1][1] + end - at)
            else:
                rows.append((at, end - at))
            at = end
    return out


def split_zeros(
    table: Pairs, memory: Memory, steady: list[bool], *, parts: bool, room: int = 64
) -> tuple[Pairs, Pairs]:
    bases = np.array([address_of(memory), address_of(memory) + 4 * PAGE], np.uint64)
    data, zeros = (np.full((room + 1, 2), 99, np.uint64) for _ in range(2))
    data_rows, zero_rows = zero_kernels.split_zeros(
        as_words(table), *as_map(MAPPINGS), bases, np.array(steady), parts, data[:-1], zeros[:-1]
    )
    assert pairs_of(data[-1:]) == pairs_of(zeros[-1:]) == [(99, 99)]
    return pairs_of(data[:data_rows]), pairs_of(zeros[:zero_rows])


@given(tables(), memories(), st.lists(st.booleans(), min_size=2, max_size=2), st.booleans())
@example([(FIRST, 4 * PAGE), (FIRST + 4 * PAGE, PAGE)], np.zeros(SIZE, np.uint8), [True] * 2, False)
@example(
    [(FIRST + 1, 2 * PAGE), (FIRST + 1 + 2 * PAGE, 7)], np.zeros(SIZE, np.uint8), [True] * 2, True
)
def test_split_zeros_sorts_as_plain_numpy_does(
    table: Pairs, memory: Memory, steady: list[bool], parts: bool
) -> None:
    expected = naive_split_zeros(table, memory, steady, parts=parts)
    assert split_zeros(table, memory, steady, parts=parts) == expected


@given(tables(), memories(), st.integers(0, 3))
def test_split_zeros_stops_where_its_room_ends(table: Pairs, memory: Memory, room: int) -> None:
    data, zeros = naive_split_zeros(table, memory, [True, True], parts=False)
    some_data, some_zeros = split_zeros(table, memory, [True, True], parts=False, room=room)
    assert len(some_data) <= room
    assert len(some_zeros) <= room
    # A last range may have been joined by what did not come any more.
    assert some_data[:-1] == data[: max(0, len(some_data) - 1)]
    assert some_zeros[:-1] == zeros[: max(0, len(some_zeros) - 1)]


@pytest.mark.parametrize(
    "bad",
    [(FIRST - 1, 2), (FIRST, 0), (FIRST, 4 * PAGE + 1), (FIRST + 9 * PAGE, 1), (0, 2**64 - 1)],
)
def test_split_zeros_reads_nothing_of_a_range_outside(bad: tuple[int, int]) -> None:
    memory = np.zeros(SIZE, np.uint8)
    table = [(FIRST, PAGE), bad, (FIRST + 2 * PAGE, PAGE)]
    assert split_zeros(table, memory, [True, True], parts=True) == ([], [(FIRST, PAGE)])


@given(memories(), st.integers(0, SIZE - 1), st.data())
def test_run_is_the_longest_of_a_kind(memory: Memory, begin: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, SIZE - begin))
    parts = data.draw(st.booleans())
    gpa = data.draw(st.sampled_from([begin, begin + 5, 2**64 - length]))
    pieces = []
    at = 0
    while at < length:
        piece = min(length - at, PAGE - (gpa + at) % PAGE)
        content = memory[begin + at : begin + at + piece]
        pieces.append((piece, bool((parts or piece == PAGE) and not content.any())))
        at += piece
    kinds = [zero for _, zero in pieces]
    same = kinds.index(not kinds[0]) if (not kinds[0]) in kinds else len(kinds)
    answer = zero_kernels.run(
        np.uint64(address_of(memory) + begin), np.uint64(gpa), np.uint64(length), parts
    )
    assert (int(answer[0]), answer[1]) == (sum(piece for piece, _ in pieces[:same]), kinds[0])


def test_kernels_release_the_gil() -> None:
    assert holders_of_the_gil(zero_kernels) == set()
