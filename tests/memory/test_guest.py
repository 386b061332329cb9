"""Guest memory over memfds, files and buffers: addresses, leases, data, populating, allocating."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.memory import system_kernels
from aiomigrate.memory.errors import GuestMemoryBusyError, GuestMemoryClaimedError, RangeError
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.iovec import IoVector
from aiomigrate.memory.map import Mapping, MemoryMap
from aiomigrate.memory.ranges import make_table, total_bytes

MIB = 1 << 20
MakeMemfd = Callable[[int], int]
_libc = ctypes.CDLL(None, use_errno=True)
HIGH = 1 << 32


@pytest.fixture
def memory_map(two_mappings: list[Mapping]) -> MemoryMap:
    return MemoryMap(two_mappings)


def bytes_of(vector: IoVector) -> bytes:
    """What a vector points at, by writev."""
    fd = os.memfd_create("copy")
    try:
        while vector.remaining:
            address, entries, size = vector.window(1 << 20)
            assert _libc.writev(fd, ctypes.c_void_p(address), entries) == size
            vector.advance(size)
        return os.pread(fd, 1 << 24, 0)
    finally:
        os.close(fd)


def fill_from(vector: IoVector, data: bytes) -> None:
    """Write `data` to where a vector points, by readv."""
    fd = os.memfd_create("data")
    try:
        os.pwrite(fd, data, 0)
        while vector.remaining:
            address, entries, size = vector.window(1 << 20)
            assert _libc.readv(fd, ctypes.c_void_p(address), entries) == size
            vector.advance(size)
    finally:
        os.close(fd)


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


def test_memory_is_sent_away_by_one_migration_at_a_time(memory_map: MemoryMap) -> None:
    buffers = {0: bytearray(MIB), 7: bytearray(2 * MIB)}
    with closing(GuestMemory.over_buffers(memory_map, buffers)) as memory:
        for _ in range(2):
            with memory.claim():
                assert memory.claimed
                with pytest.raises(GuestMemoryClaimedError), memory.claim():
                    pass
                assert memory.claimed
                with pytest.raises(GuestMemoryBusyError):
                    memory.close()
            assert not memory.claimed


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


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


def test_close_unmaps_and_gives_descriptors_back(memory_map: MemoryMap, memfds: MakeMemfd) -> None:
    fds = {0: memfds(MIB), 7: memfds(2 * MIB)}
    before = open_descriptors()
    memory = GuestMemory.over_files(memory_map, fds, writable=True)
    assert "open" in repr(memory)
    memory.close()
    memory.close()
    assert open_descriptors() == before
    assert "closed" in repr(memory)
    with open("/proc/self/maps") as maps:
        assert "memfd:test" not in maps.read()
    with pytest.raises(ValueError, match="closed"), memory.lease():
        pass


def test_close_refuses_while_a_lease_is_held(memory_map: MemoryMap) -> None:
    memory = GuestMemory.over_buffers(memory_map, {0: bytearray(MIB), 7: bytearray(2 * MIB)})
    with memory.lease(), memory.lease():
        with pytest.raises(GuestMemoryBusyError, match="2 leases"):
            memory.close()
        assert memory.iovec(make_table([(0, 1)])).remaining == 1
    memory.close()


def test_memory_that_is_not_closed_warns(memory_map: MemoryMap) -> None:
    memory = GuestMemory.over_buffers(memory_map, {0: bytearray(MIB), 7: bytearray(2 * MIB)})
    with pytest.warns(ResourceWarning, match="not closed"):
        memory.__del__()
    memory.close()


async def test_aclose_waits_for_leases_of_other_threads(
    memory_map: MemoryMap, memfds: MakeMemfd
) -> None:
    memory = GuestMemory.over_files(memory_map, {0: memfds(MIB), 7: memfds(2 * MIB)}, writable=True)
    held, release = threading.Event(), threading.Event()
    seen: list[bytes] = []

    def work() -> None:
        with memory.lease():
            held.set()
            release.wait()
            seen.append(bytes_of(memory.iovec(make_table([(0, 2)]))))

    thread = threading.Thread(target=work)
    thread.start()
    held.wait()
    closing = asyncio.create_task(memory.aclose())
    also = asyncio.create_task(memory.aclose())
    while "closed" not in repr(memory):
        await asyncio.sleep(0)
    with pytest.raises(ValueError, match="closed"), memory.lease():
        pass
    memory.close()
    assert not closing.done()
    release.set()
    await asyncio.gather(closing, also)
    thread.join()
    assert seen == [b"\0\0"]
    await memory.aclose()


async def test_cancelled_aclose_still_unmaps_at_the_last_lease(
    memory_map: MemoryMap, memfds: MakeMemfd
) -> None:
    fds = {0: memfds(MIB), 7: memfds(2 * MIB)}
    before = open_descriptors()
    memory = GuestMemory.over_files(memory_map, fds, writable=True)
    with memory.lease():
        closing = asyncio.create_task(memory.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert open_descriptors() > before
    await memory.aclose()
    assert open_descriptors() == before


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


def resident_bytes(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def test_populate_write_makes_pages(memory_map: MemoryMap, memfds: MakeMemfd) -> None:
    fds = {0: memfds(MIB), 7: memfds(2 * MIB)}
    memory = GuestMemory.over_files(memory_map, fds, writable=True)
    memory.populate_write(make_table([(4096 * 3 + 1, 4096), (HIGH, 10)]))
    assert (resident_bytes(fds[0]), resident_bytes(fds[7])) == (2 * 4096, 4096)
    memory.populate_read(make_table([(0, 1)]))
    memory.close()


@pytest.mark.parametrize(
    ("kernel", "code", "silent"),
    [
        ("advise", errno.EINVAL, True),
        ("advise", errno.EFAULT, False),
        ("fallocate", errno.ENOSPC, False),
    ],
)
def test_what_the_kernel_refuses(
    memory_map: MemoryMap,
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    code: int,
    silent: bool,
) -> None:
    memory = GuestMemory.over_buffers(memory_map, {0: bytearray(MIB), 7: bytearray(2 * MIB)})
    use = memory.populate_write
    answer: tuple[int, ...] = (0, code)
    if kernel == "fallocate":
        use, answer = memory.allocate, (0, 0, code)
    monkeypatch.setattr(system_kernels, kernel, lambda *_: answer)
    if silent:
        use(make_table([(0, 1)]))
    else:
        with pytest.raises(OSError, match="guest memory") as caught:
            use(make_table([(0, 1)]))
        assert caught.value.errno == code
    memory.close()


def test_a_truncated_file_is_an_error_and_no_signal(memfds: MakeMemfd) -> None:
    memory_map = MemoryMap([Mapping(0, 0, MIB, "a", False, 0)])
    fd = memfds(MIB)
    memory = GuestMemory.over_files(memory_map, {0: fd}, writable=False)
    os.ftruncate(fd, 4096)
    with pytest.raises(OSError, match="populating") as caught:
        memory.populate_read(make_table([(8192, 4096)]))
    assert caught.value.errno == errno.EFAULT
    memory.close()


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


def test_a_file_that_may_not_grow_is_an_error(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for a full disk, without root."""
    script = f"""
import os, resource
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import Mapping, MemoryMap
from aiomigrate.memory.ranges import make_table
fd = os.open({str(tmp_path / "memory")!r}, os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8 << 20)
memory = GuestMemory.over_files(
    MemoryMap([Mapping(0, 0, 8 << 20, "a", False, 0)]), {{0: fd}}, writable=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    os.pwrite(fd, b"x", 4 << 20)
    print("no limit here")
except OSError:
    pass
os.ftruncate(fd, 0)
try:
    memory.allocate(make_table([(0, 4096), (4 << 20, 4096)]))
except OSError as error:
    print(error.errno)
memory.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(errno.EFBIG)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1 << 20


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """A tmpfs of 1 MiB, where this process may mount one."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mounted.stderr.decode().strip()}")
    try:
        with open(tmp_path / "memory", "w+b") as file:
            file.truncate(8 * MIB)
            memory = GuestMemory.over_files(
                MemoryMap([Mapping(0, 0, 8 * MIB, "a", False, 0)]),
                {0: file.fileno()},
                writable=True,
            )
            memory.allocate(make_table([(0, 4096)]))
            with pytest.raises(OSError, match="allocating") as caught:
                memory.allocate(make_table([(0, 8 * MIB)]))
            assert caught.value.errno == errno.ENOSPC
            memory.prepare(make_table([(0, 4096)]))
            with pytest.raises(OSError, match="allocating") as caught:
                memory.prepare(make_table([(0, 8 * MIB)]))
            assert caught.value.errno == errno.ENOSPC
            memory.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_prepare_makes_pages(memory_map: MemoryMap, memfds: MakeMemfd) -> None:
    fds = {0: memfds(MIB), 7: memfds(2 * MIB)}
    memory = GuestMemory.over_files(memory_map, fds, writable=True)
    memory.prepare(make_table([(4096 * 3 + 1, 4096), (HIGH, 10)]))
    assert (resident_bytes(fds[0]), resident_bytes(fds[7])) == (2 * 4096, 4096)
    memory.close()


@given(
    present=st.lists(st.integers(0, 15), max_size=16),
    asked=st.lists(st.tuples(st.integers(0, 15), st.integers(1, 4)), min_size=1, max_size=8),
)
def test_resident_is_what_has_been_written(
    present: list[int], asked: list[tuple[int, int]]
) -> None:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 20 * 4096)
    for page in present:
        os.pwrite(fd, b"x", page * 4096)
    memory_map = MemoryMap([Mapping(0, MIB, 20 * 4096, "a", False, 0)])
    memory = GuestMemory.over_files(memory_map, {0: fd}, writable=True)
    table = make_table((MIB + page * 4096, count * 4096) for page, count in asked)
    naive = all(at in present for page, count in asked for at in range(page, page + count))
    assert memory.resident(table) is naive
    memory.close()
    os.close(fd)


def test_resident_says_no_where_it_would_take_long_or_not_be_true(
    memory_map: MemoryMap, memfds: MakeMemfd, tmp_path: Path
) -> None:
    fds = {0: memfds(MIB), 7: memfds(2 * MIB)}
    memory = GuestMemory.over_files(memory_map, fds, writable=True)
    memory.populate_write(memory_map.whole())
    page = make_table([(0, 4096)])
    assert memory.resident(page)
    assert memory.resident(memory_map.whole())
    assert not memory.resident(make_table([(0, 4096)] * 65))
    assert not memory.resident(make_table([(512 * MIB, 4096)]))
    memory.close()
    with open(tmp_path / "memory", "w+b") as file:
        file.truncate(2 * MIB)
        on_disk = {0: file.fileno(), 7: file.fileno()}
        memory = GuestMemory.over_files(memory_map, on_disk, writable=True)
        memory.populate_write(page)
        assert not memory.resident(page)
        memory.close()


def test_prepare_allocates_where_the_kernel_cannot_populate(
    memory_map: MemoryMap, memfds: MakeMemfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    fds = {0: memfds(MIB), 7: memfds(2 * MIB)}
    memory = GuestMemory.over_files(memory_map, fds, writable=True)
    monkeypatch.setattr(system_kernels, "advise", lambda *_: (0, errno.EINVAL))
    memory.prepare(make_table([(0, 8192)]))
    assert resident_bytes(fds[0]) == 8192
    monkeypatch.setattr(system_kernels, "advise", lambda *_: (0, errno.EFAULT))
    with pytest.raises(OSError, match="populating"):
        memory.prepare(make_table([(0, 8192)]))
    memory.close()


def test_addresses_survive_large_tables(memory_map: MemoryMap) -> None:
    """64 Ki ranges, each of one byte, still cost one kernel call."""
    low = bytearray(np.arange(MIB, dtype=np.uint64).astype(np.uint8).tobytes())
    memory = GuestMemory.over_buffers(memory_map, {0: low, 7: bytearray(2 * MIB)})
    table = make_table((k * 16 + 3, 1) for k in range(65536))
    with memory.lease():
        assert bytes_of(memory.iovec(table)) == bytes(low[3::16])
    memory.close()
