"""The spool gives back what was put in, from memory and from its file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.memory import spool as module
from aiomigrate.memory.ranges import RANGE, Table, make_table
from aiomigrate.memory.spool import IN_MEMORY, TableSpool


def numbered(begin: int, count: int) -> Table:
    table = np.zeros(count, RANGE)
    table["gpa"] = np.arange(begin, begin + count)
    table["length"] = 4096
    return table


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 12), st.sampled_from([0, 100, 9999]))
def test_what_goes_in_comes_out(sizes: list[int], step: int, in_memory: int) -> None:
    with pytest.MonkeyPatch.context() as patch, TableSpool() as spool:
        patch.setattr(module, "IN_MEMORY", in_memory)
        pieces = []
        for size in sizes:
            pieces.append(numbered(spool.ranges, size))
            spool.append(pieces[-1])
        assert spool.ranges == sum(sizes)
        for _ in range(2):
            slices = list(spool.slices(step))
            assert all(len(piece) == step for piece in slices[:-1])
            joined = np.concatenate(slices) if slices else make_table([])
            assert joined.tolist() == numbered(0, sum(sizes)).tolist()


def test_a_long_table_goes_to_a_file_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ranges = IN_MEMORY // RANGE.itemsize
    before = len(os.listdir("/proc/self/fd"))
    with TableSpool() as spool:
        spool.append(numbered(0, ranges))
        assert len(os.listdir("/proc/self/fd")) == before
        spool.append(numbered(ranges, 1))
        assert len(os.listdir("/proc/self/fd")) == before + 1
        assert not list(tmp_path.iterdir())
        *_, last = spool.slices(ranges)
        assert last.tolist() == [(ranges, 4096)]
    spool.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(spool.slices(1)) == []


def test_a_file_that_was_cut_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    with TableSpool() as spool:
        spool.append(numbered(0, 10))
        assert spool._file is not None
        spool._file.truncate(50)
        with pytest.raises(OSError, match="cut short"):
            list(spool.slices(10))
