"""Zeros of guest memory: found, made, and left out of files, over everything that can be behind it.

The kernels have tests of their own; here it is real files, and what they may not be touched for.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.memory.errors import RangeError
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import Mapping, MemoryMap
from aiomigrate.memory.ranges import make_table

PAGE = 4096
MIB = 1 << 20
GPA = 1 << 32
SIZE = 4 * MIB
"""Two huge pages of 2 MiB."""
MAP = MemoryMap([Mapping(3, GPA, SIZE, "mem0", False, 0)])
MFD_HUGE_2MIB = os.MFD_HUGETLB | os.MFD_HUGE_2MB
_libc = ctypes.CDLL(None, use_errno=True)


def memfd() -> int:
    return os.memfd_create("zeros", os.MFD_ALLOW_SEALING)


def huge() -> int:
    fd = os.memfd_create("zeros", MFD_HUGE_2MIB)
    try:
        os.ftruncate(fd, SIZE)
        mmap.mmap(fd, SIZE).close()
    except OSError as error:
        os.close(fd)
        pytest.skip(f"no two huge pages of 2 MiB are free (/proc/sys/vm/nr_hugepages): {error}")
    return fd


def named(directory: Path) -> int:
    return os.open(directory / "memory", os.O_RDWR | os.O_CREAT | os.O_EXCL)


@contextmanager
def over(fd: int, *, writable: bool = True, staged: bool = False) -> Iterator[GuestMemory]:
    """Guest memory over all of a file, which is closed in the end."""
    try:
        os.ftruncate(fd, SIZE)
        memory = GuestMemory.over_files(MAP, {3: fd}, writable=writable, staged=staged)
        try:
            yield memory
        finally:
            memory.close()
    finally:
        os.close(fd)


@pytest.fixture(params=["memfd", "tmpfs", "disk"])
def backing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """A descriptor of an empty file, whose owner is the test."""
    match request.param:
        case "memfd":
            yield memfd()
        case "tmpfs":
            place = Path("/dev/shm", f"aiomigrate-test-{os.getpid()}")  # noqa: S108  # a tmpfs
            place.mkdir()
            try:
                yield named(place)
            finally:
                (place / "memory").unlink()
                place.rmdir()
        case _:
            yield named(tmp_path)


def fill(fd: int, byte: bytes = b"x") -> None:
    """Write all of a file through a mapping: hugetlbfs has no write()."""
    with mmap.mmap(fd, SIZE) as view:
        view[:] = byte * SIZE


def content(fd: int) -> bytes:
    # Not through a mapping: reading holes of a tmpfs would fill them.
    return os.pread(fd, SIZE, 0)


def blocks(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def test_zero_makes_holes_and_zeroes_parts(backing: int) -> None:
    with over(backing) as memory:
        fill(backing)
        model = bytearray(b"x" * SIZE)
        os.fsync(backing)
        before = blocks(backing)
        table = [(2 * MIB, 2 * MIB), (5, 3), (MIB - 1, PAGE), (8 * PAGE, 2 * PAGE)]
        memory.zero(make_table((GPA + at, length) for at, length in table))
        for at, length in table:
            model[at : at + length] = bytes(length)
        assert content(backing) == model
        os.fsync(backing)
        assert before - blocks(backing) >= 2 * MIB
        memory.zero(MAP.whole())
        assert content(backing) == bytes(SIZE)


def test_zero_leaves_untouched_memory_untouched(backing: int) -> None:
    with over(backing) as memory:
        memory.zero(make_table([(GPA + 5, MIB), (GPA + 2 * MIB, 2 * MIB)]))
        os.fsync(backing)
        assert blocks(backing) == 0


def test_huge_pages_are_written_and_keep_their_place() -> None:
    """A hole would give back their reservation."""
    fd = huge()
    with over(fd) as memory:
        fill(fd)
        memory.zero(make_table([(GPA + PAGE, SIZE - PAGE)]))
        assert content(fd) == b"x" * PAGE + bytes(SIZE - PAGE)
        assert blocks(fd) == SIZE


def resident_pages(memory: mmap.mmap) -> list[int]:
    """Which pages of a mapping are there (bit 63 of its pagemap) and its own alone (bit 56), which
    the kernel's page of zeros is not.
    """
    with memoryview(memory) as view:
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * 8)
        data = pagemap.read(len(memory) // PAGE * 8)
    entries = memoryview(data).cast("Q")
    return [k for k, entry in enumerate(entries) if entry >> 63 and entry >> 56 & 1]


@given(
    st.sets(st.integers(0, 15)),
    st.lists(st.tuples(st.integers(0, 16 * PAGE - 1), st.integers(1, 5 * PAGE)), max_size=4),
)
def test_zero_writes_only_what_is_not_zero_in_a_buffer(
    written: set[int], table: list[tuple[int, int]]
) -> None:
    memory_map = MemoryMap([Mapping(0, GPA, 16 * PAGE, "a", False, 0)])
    with mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as buffer:
        for page in written:
            buffer[page * PAGE + 7] = 1
        memory = GuestMemory.over_buffers(memory_map, {0: buffer})
        ranges = [(at, min(length, 16 * PAGE - at)) for at, length in table]
        model = bytearray(buffer)
        for at, length in ranges:
            model[at : at + length] = bytes(length)
        memory.zero(make_table((GPA + at, length) for at, length in ranges))
        memory.close()
        assert resident_pages(buffer) == sorted(written)
        assert buffer[:] == model


def test_zero_needs_writable_memory(backing: int) -> None:
    with over(backing, writable=False) as memory, pytest.raises(PermissionError, match="read-only"):
        memory.zero(MAP.whole())


def test_a_bad_range_is_refused(backing: int) -> None:
    table = make_table([(GPA, PAGE), (GPA + SIZE - 1, 2)])
    with over(backing, staged=True) as memory:
        for use in (memory.split_zeros, memory.zero):
            with pytest.raises(RangeError) as caught:
                use(table)
            assert caught.value.index == 1
    with over_nothing() as memory, pytest.raises(RangeError):
        memory.zero(table)


@contextmanager
def over_nothing() -> Iterator[GuestMemory]:
    memory = GuestMemory.over_buffers(MAP, {3: bytearray(SIZE)})
    try:
        yield memory
    finally:
        memory.close()


def test_zeroing_that_is_not_allowed_is_an_error() -> None:
    fd = memfd()
    with over(fd) as memory:
        fill(fd)
        f_seal_future_write = 0x10  # linux/fcntl.h: our mapping stays, fallocate may not punch
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, f_seal_future_write)
        with pytest.raises(OSError, match="zeroing guest memory") as caught:
            memory.zero(MAP.whole())
        assert caught.value.errno == errno.EPERM


def pages_of(table: object) -> list[int]:
    found: list[int] = []
    for gpa, length in table.tolist():  # type: ignore[attr-defined]  # a Table
        assert gpa % PAGE == length % PAGE == 0
        found += range((gpa - GPA) // PAGE, (gpa + length - GPA) // PAGE)
    return found


@given(st.sets(st.integers(0, SIZE // PAGE - 1)))
def test_split_zeros_of_a_memfd(written: set[int]) -> None:
    fd = memfd()
    with over(fd) as memory:
        for page in written:
            os.pwrite(fd, b"x", page * PAGE + PAGE - 1)
        os.pwrite(fd, b"\0", 0)  # there, and zero
        table = make_table([(GPA, 100 * PAGE), (GPA + 100 * PAGE, SIZE - 100 * PAGE)])
        memory.populate_read(table)
        data, zeros = memory.split_zeros(table)
        assert pages_of(data) == sorted(written)
        assert pages_of(zeros) == sorted(set(range(SIZE // PAGE)) - written)
        for runs in (data.tolist(), zeros.tolist()):
            assert all(sum(before) < after[0] for before, after in itertools.pairwise(runs))


def test_split_zeros_of_nothing_and_of_parts() -> None:
    with over_nothing() as memory:
        for table in memory.split_zeros(make_table([])):
            assert table.tolist() == []
        data, zeros = memory.split_zeros(make_table([(GPA + 1, PAGE - 1), (GPA + PAGE, PAGE)]))
        assert data.tolist() == [(GPA + 1, PAGE - 1)]
        assert zeros.tolist() == [(GPA + PAGE, PAGE)]


_CUT = """
    import os, sys
    from aiomigrate.memory.guest import GuestMemory
    from aiomigrate.memory.map import Mapping, MemoryMap
    memory_map = MemoryMap([Mapping(0, 0, 1 << 20, "a", False, 0)])
    fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 1 << 20)
    memory = GuestMemory.over_files(memory_map, {0: fd}, writable=True)
    os.truncate(sys.argv[1], 0)
    data, zeros = memory.split_zeros(memory_map.whole())
    print(data.tolist(), zeros.tolist())
    memory.zero(memory_map.whole())
    memory.close()
"""


@pytest.mark.parametrize("place", ["disk", "tmpfs"])
def test_a_file_that_is_cut_ends_no_process(place: str, tmp_path: Path) -> None:
    """It would be SIGBUS: so all of it is data, unread."""
    path = tmp_path / "memory"
    if place == "tmpfs":
        path = Path("/dev/shm", f"aiomigrate-cut-{os.getpid()}")  # noqa: S108  # a tmpfs
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(_CUT), str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.unlink()
    assert (done.returncode, done.stdout) == (0, "[(0, 1048576)] []\n"), done.stderr


def test_store_writes_content_and_leaves_holes(backing: int) -> None:
    if os.fstatvfs(backing).f_bsize > PAGE:
        os.close(backing)
        pytest.skip("hugetlbfs has no write(): stored VMs are never there")
    with over(backing, staged=True) as memory:
        assert memory.staged
        request = b"a" * PAGE + bytes(3 * PAGE) + b"b" * 100
        table = make_table([(GPA + MIB, 4 * PAGE), (GPA, 100)])
        memory.store(table, memoryview(request))
        os.fsync(backing)
        assert blocks(backing) == 2 * PAGE
        model = bytearray(SIZE)
        model[MIB : MIB + PAGE] = b"a" * PAGE
        model[:100] = b"b" * 100
        assert content(backing) == model
        # Later content replaces zeros, later zeros replace content.
        memory.store(table, memoryview(bytes(PAGE) + b"c" * 3 * PAGE + bytes(100)))
        model[MIB : MIB + 4 * PAGE] = bytes(PAGE) + b"c" * 3 * PAGE
        model[:100] = bytes(100)
        assert content(backing) == model
        os.fsync(backing)
        assert blocks(backing) == 4 * PAGE


def test_store_takes_content_of_the_tables_length() -> None:
    with over(memfd(), staged=True) as memory:
        for size in (PAGE - 1, PAGE + 1):
            with pytest.raises(ValueError, match=f"{size} bytes for a table of 4096"):
                memory.store(make_table([(GPA, PAGE)]), memoryview(bytes(size)))
        with pytest.raises(RangeError):
            memory.store(make_table([(GPA - 1, PAGE)]), memoryview(bytes(PAGE)))


def test_stores_that_overlap_leave_whole_pages_of_either(tmp_path: Path) -> None:
    """Two requests on two connections may cover the same pages, one of them with zeros."""
    table = make_table([(GPA, MIB)])
    contents = [memoryview(bytes(MIB)), memoryview(b"a" * MIB), memoryview(b"b" * MIB)]
    fd = named(tmp_path)
    with over(fd, staged=True) as memory, ThreadPoolExecutor(3) as pool:
        for _ in range(30):
            jobs = [pool.submit(memory.store, table, one) for one in contents]
            for job in jobs:
                job.result()
            found = content(fd)
            for at in range(0, MIB, PAGE):
                assert found[at : at + PAGE] in (bytes(PAGE), b"a" * PAGE, b"b" * PAGE)
            # What comes when all of them have ended is last.
            memory.store(table, contents[1])
            assert content(fd)[:MIB] == contents[1]
            memory.store(table, contents[0])
            assert content(fd)[:MIB] == contents[0]


_WITHOUT_HOLES = """
    import os, sys
    from aiomigrate.memory.guest import GuestMemory
    from aiomigrate.memory.map import Mapping, MemoryMap
    from aiomigrate.memory.ranges import make_table
    memory_map = MemoryMap([Mapping(0, 0, 1 << 20, "a", False, 0)])
    fd = os.open(sys.argv[1] + "/memory", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 1 << 20)
    try:
        memory = GuestMemory.over_files(memory_map, {0: fd}, writable=True, staged=True)
        memory.allocate(memory_map.whole())
        memory.store(memory_map.whole(), memoryview(b"x" * (1 << 20)))
        memory.store(make_table([(4096, 8192)]), memoryview(bytes(4096) + b"y" * 4096))
        memory.zero(make_table([(16384 + 5, 9000)]))
        model = bytearray(b"x" * (1 << 20))
        model[4096:12288] = bytes(4096) + b"y" * 4096
        model[16389:25389] = bytes(9000)
        print(os.pread(fd, 1 << 20, 0) == model)
        os.ftruncate(fd, 8192)
        try:
            memory.zero(memory_map.whole())
        except OSError as error:
            print(error)
    finally:
        memory.close()
"""


def test_a_file_system_without_holes_gets_zeros(tmp_path: Path) -> None:
    """A ramfs has no fallocate(); a file that is cut is an error there, too, and no signal."""
    script = 'mount -t ramfs ramfs "$1" && exec "$2" -c "$3" "$1"'
    program = [str(tmp_path), sys.executable, textwrap.dedent(_WITHOUT_HOLES)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no private mount: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n[Errno 14] zeroing guest memory: Bad address\n"
