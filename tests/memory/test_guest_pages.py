"""Pages of guest memory are made before they are needed, and a kernel that cannot is an error."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.memory import system_kernels
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import Mapping, MemoryMap
from aiomigrate.memory.ranges import make_table
from tests.memory.memory_guests import HIGH, MIB, MakeMemfd, resident_bytes


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
