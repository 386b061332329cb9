"""What a file allows decides how it is mapped: its seals, and the size of its pages."""

import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest

from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import Mapping, MemoryMap

MIB = 1 << 20
SIZE = 4 * MIB
F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h
MFD_HUGE_2MIB = os.MFD_HUGETLB | os.MFD_HUGE_2MB
CUTS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def _map(size: int = SIZE, offset: int = 0) -> MemoryMap:
    return MemoryMap([Mapping(3, 0, size, "mem0", virtio_mem=False, file_offset=offset)])


def _over(fd: int, memory_map: MemoryMap, *, writable: bool) -> GuestMemory:
    return GuestMemory.over_files(
        memory_map, {3: fd}, writable=writable, offsets=memory_map.file_offsets
    )


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, b"content", MIB)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("seals", [CUTS, CUTS | fcntl.F_SEAL_WRITE, CUTS | F_SEAL_FUTURE_WRITE])
def test_a_sealed_file_is_mapped_for_reading(memfd: int, seals: int) -> None:
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, seals)
    with _memory_of(memfd, writable=False) as view:
        assert bytes(view[MIB : MIB + 7]) == b"content"


@pytest.mark.parametrize("seal", [fcntl.F_SEAL_WRITE, F_SEAL_FUTURE_WRITE])
def test_one_sealed_against_writing_is_not_mapped_for_that(memfd: int, seal: int) -> None:
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, seal)
    with pytest.raises(ValueError, match="slot 3 is sealed against writing"):
        _over(memfd, _map(), writable=True)


def test_one_sealed_against_cutting_is_mapped_for_writing(memfd: int) -> None:
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, CUTS)
    with _memory_of(memfd, writable=True) as view:
        view[:5] = b"write"
        assert os.pread(memfd, 5, 0) == b"write"


class _memory_of:  # noqa: N801  # used as a function is
    """The bytes of the memory over a file."""

    def __init__(self, fd: int, *, writable: bool) -> None:
        self._memory = _over(fd, _map(), writable=writable)

    def __enter__(self) -> mmap.mmap:
        found = self._memory._regions[0].memory
        assert isinstance(found, mmap.mmap)
        return found

    def __exit__(self, *ended: object) -> None:
        self._memory.close()


@pytest.fixture
def huge() -> Iterator[int]:
    """8 MiB in huge pages of 2 MiB, of which the last one holds something."""
    try:
        fd = os.memfd_create("guest", os.MFD_CLOEXEC | MFD_HUGE_2MIB)
    except OSError as error:
        pytest.skip(f"no huge pages of 2 MiB: {error.strerror}")
    try:
        os.ftruncate(fd, 2 * SIZE)
        try:
            with mmap.mmap(fd, 2 * SIZE) as view:
                view[-7:] = b"content"
        except OSError as error:
            pytest.skip(f"no huge pages are reserved (vm.nr_hugepages): {error.strerror}")
        yield fd
    finally:
        os.close(fd)


def test_huge_pages_are_mapped_where_the_mapping_begins(huge: int) -> None:
    memory = _over(huge, _map(offset=SIZE), writable=True)
    view = memory._regions[0].memory
    assert isinstance(view, mmap.mmap)
    assert bytes(view[-7:]) == b"content"
    before = os.pread(huge, SIZE, SIZE)
    memory.close()
    # All of it was unmapped: the kernel refuses to unmap parts of huge pages.
    assert str(os.fstat(huge).st_ino) not in _mapped()
    assert before[-7:] == b"content"


def _mapped() -> set[str]:
    with open("/proc/self/maps") as maps:
        return {line.split()[4] for line in maps}


@pytest.mark.parametrize(("size", "offset"), [(SIZE, MIB), (3 * MIB, 0)])
def test_a_mapping_that_is_no_whole_huge_pages_is_refused(
    huge: int, size: int, offset: int
) -> None:
    with pytest.raises(ValueError, match=f"slot 3: {size} bytes from {offset} on are no whole"):
        _over(huge, _map(size, offset), writable=True)
