"""Guest memory over memfds, files and buffers: what it takes, and where its addresses lead."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from aiomigrate.memory.errors import RangeError
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import Mapping, MemoryMap
from aiomigrate.memory.ranges import make_table
from tests.memory.memory_guests import HIGH, MIB, MakeMemfd, bytes_of, fill_from, open_descriptors


def test_iovec_reads_and_writes_the_files(memory_map: MemoryMap, memfds: MakeMemfd) -> None:
    fds = {0: memfds(MIB), 7: memfds(2 * MIB)}
    data = os.urandom(700_000)
    table = make_table([(HIGH + 123, 600_000), (0, 100_000)])
    memory = GuestMemory.over_files(memory_map, fds, writable=True)
    with memory.lease():
        fill_from(memory.iovec(table), data)
        assert bytes_of(memory.iovec(table, prefix=b"head")) == b"head" + data
        assert bytes_of(memory.iovec(table[:0], (b"a", b"", b"b"))) == b"ab"
    memory.close()
    assert os.pread(fds[7], 600_000, 123) == data[:600_000]
    assert os.pread(fds[0], 100_000, 0) == data[600_000:]


def test_a_mapping_can_begin_inside_its_file(memory_map: MemoryMap, memfds: MakeMemfd) -> None:
    shared = memfds(4 * MIB)
    os.pwrite(shared, b"low", MIB)
    os.pwrite(shared, b"high", 2 * MIB)
    memory = GuestMemory.over_files(
        memory_map, {0: shared, 7: shared}, writable=False, offsets={0: MIB, 7: 2 * MIB}
    )
    with memory.lease():
        assert bytes_of(memory.iovec(make_table([(HIGH, 4), (0, 3)]))) == b"highlow"
    assert [table.tolist() for table in memory.data_tables()] == [[(0, 4096), (HIGH, 4096)]]
    memory.allocate(make_table([(8192, 4096)]))
    assert os.fstat(shared).st_blocks * 512 == 3 * 4096
    memory.close()


def test_buffers_are_used_in_place(memory_map: MemoryMap) -> None:
    with mmap.mmap(-1, MIB) as low:
        high = bytearray(2 * MIB)
        memory = GuestMemory.over_buffers(memory_map, {0: low, 7: high})
        with memory.lease():
            fill_from(memory.iovec(make_table([(5, 3), (HIGH + 2 * MIB - 2, 2)])), b"abcde")
        memory.populate_write(memory_map.whole())
        memory.populate_read(memory_map.whole())
        memory.allocate(memory_map.whole())
        assert [table.tolist() for table in memory.data_tables()] == [memory_map.whole().tolist()]
        with pytest.raises(BufferError):
            high.clear()
        memory.close()
        assert low[5:8] == b"abc"
        assert high[-2:] == b"de"
        high.clear()


@pytest.mark.parametrize(
    ("buffer", "got"),
    [(bytearray(MIB - 1), "1048575 writable ones"), (memoryview(bytes(MIB)), "read-only ones")],
)
def test_a_buffer_must_fit_and_be_writable(buffer: bytearray | memoryview, got: str) -> None:
    memory_map = MemoryMap([Mapping(0, 0, MIB, "a", False, 0)])
    with pytest.raises(ValueError, match=f"slot 0 is not 1048576 writable bytes, but .*{got}"):
        GuestMemory.over_buffers(memory_map, {0: buffer})


def test_each_mapping_needs_its_memory(memory_map: MemoryMap, memfds: MakeMemfd) -> None:
    with pytest.raises(ValueError, match="no file for the mapping of slot 7"):
        GuestMemory.over_files(memory_map, {0: memfds(MIB)}, writable=True)
    with pytest.raises(ValueError, match="no buffer for the mapping of slot 0"):
        GuestMemory.over_buffers(memory_map, {7: bytearray(2 * MIB)})


def test_a_mapping_begins_at_a_page_of_its_file(memory_map: MemoryMap, memfds: MakeMemfd) -> None:
    fds = {0: memfds(2 * MIB), 7: memfds(2 * MIB)}
    with pytest.raises(ValueError, match=r"slot 0 begins 512 bytes into its file, .* of 4096"):
        GuestMemory.over_files(memory_map, fds, writable=True, offsets={0: 512})


def test_a_file_that_is_too_short_leaves_nothing(memory_map: MemoryMap, memfds: MakeMemfd) -> None:
    fds = {0: memfds(MIB), 7: memfds(2 * MIB - 1)}
    before = open_descriptors()
    with pytest.raises(ValueError, match="slot 7 has 2097151 bytes, its mapping ends at 2097152"):
        GuestMemory.over_files(memory_map, fds, writable=True)
    assert open_descriptors() == before


def test_a_bad_range_is_refused_everywhere(memory_map: MemoryMap, memfds: MakeMemfd) -> None:
    memory = GuestMemory.over_files(memory_map, {0: memfds(MIB), 7: memfds(2 * MIB)}, writable=True)
    table = make_table([(0, 4096), (MIB - 1, 2)])
    for use in (memory.iovec, memory.populate_read, memory.populate_write, memory.allocate):
        with pytest.raises(RangeError, match="not inside one mapping") as caught:
            use(table)
        assert caught.value.index == 1
    memory.close()


def test_addresses_survive_large_tables(memory_map: MemoryMap) -> None:
    """64 Ki ranges, each of one byte, still cost one kernel call."""
    low = bytearray(np.arange(MIB, dtype=np.uint64).astype(np.uint8).tobytes())
    memory = GuestMemory.over_buffers(memory_map, {0: low, 7: bytearray(2 * MIB)})
    table = make_table((k * 16 + 3, 1) for k in range(65536))
    with memory.lease():
        assert bytes_of(memory.iovec(table)) == bytes(low[3::16])
    memory.close()
