"""Room for a guest: what is needed of what, and what this machine has left of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aiomigrate.memory import room
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import Mapping, MemoryMap
from aiomigrate.memory.ranges import make_table
from aiomigrate.memory.room import Shortage, available_memory

MIB = 1 << 20
PAGE = 4096
MakeMemfd = Callable[[int], int]


def _map(*sizes: int) -> MemoryMap:
    return MemoryMap(
        Mapping(slot, slot << 40, size, "mem0", False, 0) for slot, size in enumerate(sizes)
    )


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how much memory this machine has left."""

    def leave(nbytes: int) -> None:
        monkeypatch.setattr(room, "available_memory", lambda: nbytes)

    return leave


def test_what_will_come_must_fit(memfds: MakeMemfd, left: Callable[[int], None]) -> None:
    memory = GuestMemory.over_files(_map(64 * MIB), {0: memfds(64 * MIB)}, writable=True)
    left(8 * MIB)
    assert memory.shortages(8 * MIB) == []
    (shortage,) = memory.shortages(8 * MIB + PAGE)
    assert shortage == Shortage("memory", 8 * MIB + PAGE, 8 * MIB, certain=True)
    assert str(shortage) == (
        "the guest's memory needs 8.0 MiB of memory, and 8.0 MiB are available"
    )
    # More than its size never comes.
    assert memory.shortages(1 << 50) == [Shortage("memory", 64 * MIB, 8 * MIB, certain=True)]
    memory.close()


def test_a_size_alone_is_no_need(memfds: MakeMemfd, left: Callable[[int], None]) -> None:
    memory = GuestMemory.over_files(_map(1 << 40), {0: memfds(1 << 40)}, writable=True)
    left(8 * MIB)
    assert memory.shortages(8 * MIB) == []
    (shortage,) = memory.shortages(None)
    assert not shortage.certain
    assert "can grow to 1048576.0 MiB of memory" in str(shortage)
    left(1 << 40)
    assert memory.shortages(None) == []
    memory.close()


def test_what_is_there_needs_no_room(memfds: MakeMemfd, left: Callable[[int], None]) -> None:
    memory = GuestMemory.over_files(_map(8 * MIB), {0: memfds(8 * MIB)}, writable=True)
    memory.prepare(make_table([(0, 6 * MIB)]))
    assert memory.held_bytes() == 6 * MIB
    left(2 * MIB)
    assert memory.shortages(8 * MIB) == []
    left(2 * MIB - PAGE)
    assert memory.shortages(8 * MIB) == [Shortage("memory", 2 * MIB, 2 * MIB - PAGE, certain=True)]
    memory.close()


def test_each_place_needs_what_the_others_cannot_take(
    memfds: MakeMemfd, left: Callable[[int], None], tmp_path: Path
) -> None:
    path = tmp_path / "memory"
    with path.open("w+b") as file:
        file.truncate(16 * MIB)
        fds = {0: memfds(4 * MIB), 1: file.fileno()}
        memory = GuestMemory.over_files(_map(4 * MIB, 16 * MIB), fds, writable=True)
        left(MIB)
        # 16 of 17 MiB may be for the disk.
        assert memory.shortages(17 * MIB) == []
        assert memory.shortages(18 * MIB) == [Shortage("memory", 2 * MIB, MIB, certain=True)]
        memory.close()


def test_the_disk_is_the_file_s_own(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    size = 2 * status.f_bavail * status.f_frsize // PAGE * PAGE
    with (tmp_path / "memory").open("w+b") as file:
        try:
            file.truncate(size)
        except OSError as error:
            pytest.skip(f"no file of {size} bytes: {error}")
        memory = GuestMemory.over_files(_map(size), {0: file.fileno()}, writable=True)
        (shortage,) = memory.shortages(size)
        assert (shortage.place, shortage.need) == ("disk", size)
        assert shortage.have < size
        assert memory.shortages(MIB) == []
        memory.close()


def test_a_file_of_several_mappings_is_counted_once(memfds: MakeMemfd) -> None:
    fd = memfds(4 * MIB)
    os.pwrite(fd, b"x" * (3 * MIB), 0)
    memory = GuestMemory.over_files(
        _map(2 * MIB, 2 * MIB), {0: fd, 1: fd}, offsets={1: 2 * MIB}, writable=False
    )
    assert memory.held_bytes() == 3 * MIB
    memory.close()


def test_buffers_do_not_tell(left: Callable[[int], None]) -> None:
    memory = GuestMemory.over_buffers(_map(MIB), {0: bytearray(MIB)})
    left(0)
    assert memory.held_bytes() is None
    assert memory.shortages(MIB) == []
    memory.close()


# What the machine has left


def _proc(at: Path, available_kib: int, cgroup: str = "", mountinfo: str = "") -> Path:
    (at / "self").mkdir(parents=True)
    (at / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {available_kib} kB\n")
    (at / "self/cgroup").write_text(cgroup)
    (at / "self/mountinfo").write_text(mountinfo)
    return at


def _group(at: Path, limit: str, used: int, droppable: int) -> None:
    """`droppable` bytes of what is used are page cache or reclaimable slab, in three parts."""
    at.mkdir(parents=True, exist_ok=True)
    (at / "memory.max").write_text(f"{limit}\n")
    (at / "memory.current").write_text(f"{used}\n")
    third = droppable // 3
    (at / "memory.stat").write_text(
        f"anon 5\nfile {droppable + 900}\nshmem 900\ninactive_anon 900\nactive_anon 5\n"
        f"inactive_file {droppable - 2 * third}\nactive_file {third}\nunevictable 7\n"
        f"slab_reclaimable {third}\nslab_unreclaimable 11\n"
    )


def test_available_memory_of_this_machine() -> None:
    assert 0 < (available_memory() or 0) < 1 << 50


def test_without_control_groups_it_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert available_memory(_proc(tmp_path, 7)) == 7 * 1024


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        (("max", 1, 0), ("max", 1, 0), 1000 * 1024),
        (("50000", 20000, 3000), ("max", 0, 0), 33000),
        (("50000", 20000, 3000), ("30000", 20000, 0), 10000),
        (("50000", 60000, 0), ("max", 0, 0), 0),
        (("9000000", 0, 0), ("max", 0, 0), 1000 * 1024),
    ],
)
def test_limits_of_control_groups_hold(
    inner: tuple[str, int, int], outer: tuple[str, int, int], expected: int, tmp_path: Path
) -> None:
    top = tmp_path / "cgroup"
    _group(top / "vms.slice", *outer)  # the top one has no limit, and no such files
    _group(top / "vms.slice" / "one", *inner)
    mountinfo = (
        "22 1 0:5 / /proc rw - proc proc rw\n"
        f"30 22 0:26 / {top} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    )
    proc = _proc(tmp_path / "proc", 1000, "4:memory:/x\n0::/vms.slice/one\n", mountinfo)
    assert available_memory(proc) == expected


def test_a_machine_that_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\n")
    assert available_memory(tmp_path) is None
    assert available_memory(tmp_path / "none") is None


def test_what_cannot_be_looked_up_refuses_nothing(
    memfds: MakeMemfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A jail without /proc, or one mounted with `subset=pid`."""
    monkeypatch.setattr(room, "available_memory", lambda: None)
    memory = GuestMemory.over_files(_map(64 * MIB), {0: memfds(64 * MIB)}, writable=True)
    assert memory.shortages(64 * MIB) == memory.shortages(None) == []
    memory.close()
