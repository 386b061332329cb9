"""Where guest memory has data: all of it is found, and no more."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.memory import system_kernels
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import Mapping, MemoryMap
from aiomigrate.memory.ranges import make_table, total_bytes
from tests.memory.memory_guests import MIB, MakeMemfd


@given(st.sets(st.integers(0, 767)), st.integers(1, 20))
def test_data_tables_hold_all_data_and_no_more(written: set[int], max_ranges: int) -> None:
    memory_map = MemoryMap(
        [Mapping(0, 0, MIB, "a", False, 0), Mapping(1, MIB, 2 * MIB, "a", False, 0)]
    )
    fds = {0: os.memfd_create("low"), 1: os.memfd_create("high")}
    try:
        os.ftruncate(fds[0], MIB)
        os.ftruncate(fds[1], 2 * MIB)
        for page in written:
            os.pwrite(fds[page >= 256], b"x", page * 4096 if page < 256 else (page - 256) * 4096)
        memory = GuestMemory.over_files(memory_map, fds, writable=False)
        tables = list(memory.data_tables(max_ranges))
        memory.close()
    finally:
        for fd in fds.values():
            os.close(fd)
    pages: list[int] = []
    for table in tables:
        assert memory_map.check(table) == total_bytes(table)
        assert len(table) == max_ranges or table is tables[-1]
        for gpa, length in table.tolist():
            pages += range(gpa // 4096, (gpa + length) // 4096)
    assert pages == sorted(written)


def test_zones_with_a_file_are_data_throughout(memfds: MakeMemfd) -> None:
    memory_map = MemoryMap([Mapping(0, 0, MIB, "a", False, 0), Mapping(1, MIB, MIB, "b", False, 0)])
    memory = GuestMemory.over_files(
        memory_map, {0: memfds(MIB), 1: memfds(MIB)}, writable=False, file_zones={"b"}
    )
    assert [table.tolist() for table in memory.data_tables()] == [[(MIB, MIB)]]
    memory.close()


def test_a_sparse_file_on_disk(tmp_path: Path) -> None:
    memory_map = MemoryMap([Mapping(0, 0, 64 * MIB, "a", False, 0)])
    with open(tmp_path / "memory", "w+b") as file:
        file.truncate(64 * MIB)
        file.seek(10 * MIB + 5)
        file.write(b"data")
        file.flush()
        os.fsync(file.fileno())
        memory = GuestMemory.over_files(memory_map, {0: file.fileno()}, writable=True)
        found = [table.tolist() for table in memory.data_tables()]
        memory.allocate(make_table([(0, 2 * MIB), (2 * MIB, MIB)]))
        memory.close()
        blocks = os.fstat(file.fileno()).st_blocks * 512
    (gpa, length), *others = found[0]
    # A file system may have blocks larger than a page.
    assert not others
    assert gpa <= 10 * MIB
    assert 10 * MIB + 4096 <= gpa + length <= 11 * MIB
    assert blocks >= 3 * MIB


def test_searching_for_data_can_fail(
    memory_map: MemoryMap, memfds: MakeMemfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = GuestMemory.over_files(
        memory_map, {0: memfds(MIB), 7: memfds(2 * MIB)}, writable=False
    )
    monkeypatch.setattr(system_kernels, "extents", lambda *_: (0, 0, errno.EIO))
    with pytest.raises(OSError, match="finding the data of slot 0") as caught:
        list(memory.data_tables())
    assert caught.value.errno == errno.EIO
    memory.close()
