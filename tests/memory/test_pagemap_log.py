"""PAGEMAP_SCAN and asynchronous write-protection, on the kernel's own."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

import numpy as np
import pytest

from aiomigrate.memory import pagemap_log
from aiomigrate.memory.errors import DirtyLogError
from aiomigrate.memory.pagemap_log import PagemapLog

_PAGE = 4096


def run(steps: Iterable[None]) -> int:
    return sum(1 for _ in steps)


def _why_not() -> str:
    with closing(mmap.mmap(-1, _PAGE)) as memory:
        log = PagemapLog([memory])
        try:
            run(log.start())
            run(log.collect(log.bitmaps()))
        except DirtyLogError as error:
            return str(error)
        finally:
            run(log.stop())
    return ""


needs_pagemap_scan = pytest.mark.skipif(bool(_why_not()), reason=_why_not())


def _memfd(size: int) -> mmap.mmap:
    fd = os.memfd_create("guest")
    try:
        os.ftruncate(fd, size)
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)


def _huge(size: int) -> mmap.mmap:
    try:
        fd = os.memfd_create("guest", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
        try:
            os.ftruncate(fd, size)
            return mmap.mmap(fd, size)
        finally:
            os.close(fd)
    except OSError as error:
        pytest.skip(f"no huge pages: {error}")


def _private(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


KINDS = {"memfd": _memfd, "private": _private, "shared": lambda size: mmap.mmap(-1, size)}
Maker = Callable[[int], mmap.mmap]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Maker:
    maker: Maker = KINDS[request.param]
    return maker


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def collected(log: PagemapLog) -> list[list[int]]:
    bitmaps = log.bitmaps()
    run(log.collect(bitmaps))
    return [
        np.flatnonzero(np.unpackbits(bitmap.view(np.uint8), bitorder="little")).tolist()
        for bitmap in bitmaps
    ]


@needs_pagemap_scan
def test_every_write_is_reported_once(make: Maker) -> None:
    pages = 3 * 512 + 7
    with closing(make(pages * _PAGE)) as first, closing(make(_PAGE)) as second:
        first[5 * _PAGE] = 1  # there before logging begins
        log = PagemapLog([first, second])
        run(log.start())
        assert collected(log) == [[], []]
        _ = first[9 * _PAGE]  # reading is no writing
        for written in ([5], [0, 1, 600, pages - 1], [600, 601], []):
            for page in written:
                first[page * _PAGE + 17] = 2
            assert collected(log) == [written, []]
        second[0] = 1
        assert collected(log) == [[], [0]]
        run(log.stop())


@needs_pagemap_scan
def test_system_calls_write_too(make: Maker) -> None:
    with closing(make(64 * _PAGE)) as memory:
        log = PagemapLog([memory])
        run(log.start())
        reader, writer = os.pipe()
        os.write(writer, b"from a device")
        with memoryview(memory) as view, view[33 * _PAGE : 34 * _PAGE] as page:
            assert os.readv(reader, [page]) == 13
        os.close(reader)
        os.close(writer)
        assert collected(log) == [[33]]
        run(log.stop())


@needs_pagemap_scan
def test_what_another_mapping_of_the_same_memory_writes_is_not_seen() -> None:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 8 * _PAGE)
    with closing(mmap.mmap(fd, 8 * _PAGE)) as ours, closing(mmap.mmap(fd, 8 * _PAGE)) as theirs:
        os.close(fd)
        log = PagemapLog([ours])
        run(log.start())
        theirs[3 * _PAGE] = 1
        ours[4 * _PAGE] = 1
        assert collected(log) == [[4]]
        assert ours[3 * _PAGE] == 1
        run(log.stop())


@needs_pagemap_scan
def test_pages_in_huge_pages() -> None:
    huge = 1 << 21
    with closing(_huge(4 * huge)) as memory:
        memory[:] = bytes(4 * huge)
        log = PagemapLog([memory])
        run(log.start())
        memory[huge + 5] = 1
        assert collected(log) == [[*range(512, 1024)]]
        assert collected(log) == [[]]
        run(log.stop())


@needs_pagemap_scan
def test_more_regions_and_slices_than_one_call_takes(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagemap_log, "_REGIONS", 3)
    monkeypatch.setattr(pagemap_log, "_SLICE_BYTES", 64 * _PAGE)
    pages = 256
    with closing(make(pages * _PAGE)) as memory:
        log = PagemapLog([memory])
        assert run(log.start()) == 5
        for page in range(0, pages, 2):
            memory[page * _PAGE] = 1
        bitmaps = log.bitmaps()
        assert run(log.collect(bitmaps)) == 43  # 128 regions, 3 a call
        assert bitmaps[0].tolist() == [0x5555555555555555] * 4
        run(log.stop())


@needs_pagemap_scan
def test_stop_lets_go_of_the_memory_and_logging_can_begin_again(make: Maker) -> None:
    memory = make(4 * _PAGE)
    log = PagemapLog([memory])
    run(log.start())
    with pytest.raises(BufferError):
        memory.close()
    run(log.stop())
    assert run(log.stop()) == 0
    memory[0] = 1
    run(log.start())
    memory[_PAGE] = 1
    assert collected(log) == [[1]]
    run(log.stop())
    del log
    memory.close()


@needs_pagemap_scan
def test_memory_that_was_mapped_anew_is_an_error_and_counts_as_written() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    with closing(_private(8 * _PAGE)) as memory:
        log = PagemapLog([memory])
        run(log.start())
        address = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
        fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
        assert libc.mmap(ctypes.c_void_p(address), _PAGE, 3, fixed, -1, 0) == address
        bitmaps = log.bitmaps()
        with pytest.raises(
            DirtyLogError, match=r"PAGEMAP_SCAN: .*: the memory was unmapped"
        ) as why:
            run(log.collect(bitmaps))
        assert why.value.code == errno.EPERM
        del why  # its traceback holds the memory
        assert bitmaps[0].tolist() == [0xFF]
        run(log.stop())


@needs_pagemap_scan
def test_memory_has_one_userfaultfd() -> None:
    with closing(_private(8 * _PAGE)) as memory:
        first, second = PagemapLog([memory]), PagemapLog([memory])
        run(first.start())
        with pytest.raises(DirtyLogError, match=r"UFFDIO_REGISTER: .*: another userfaultfd holds"):
            run(second.start())
        assert run(second.stop()) == 2
        memory[0] = 1
        assert collected(first) == [[0]]
        run(first.stop())


_AS_SOMEBODY = """
import ctypes, mmap, os, sys
from aiomigrate.memory.pagemap_log import PagemapLog
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)  # takes all capabilities, and makes the process not dumpable
ctypes.CDLL(None).prctl(4, int(sys.argv[1]), 0, 0, 0)  # PR_SET_DUMPABLE
memory = mmap.mmap(-1, 64 * 4096)
log = PagemapLog([memory])
try:
    for _ in log.start(): pass
except Exception as error:
    sys.exit(str(error))
memory[7 * 4096] = 1
reader, writer = os.pipe()
os.write(writer, b"x")
os.readv(reader, [memoryview(memory)[9 * 4096 :]])
for _ in log.collect(bitmaps := log.bitmaps()): pass
for _ in log.stop(): pass
print(os.geteuid(), hex(bitmaps[0][0]))
"""


@needs_pagemap_scan
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
@pytest.mark.parametrize(
    ("dumpable", "output", "error"),
    [
        (1, f"65534 {(1 << 7) | (1 << 9):#x}\n", ""),
        (0, "", "opening /proc/self/pagemap: Permission denied: this process changed its user"),
    ],
)
def test_an_ordinary_user_may(dumpable: int, output: str, error: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _AS_SOMEBODY, str(dumpable)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == output
    # Nothing but the status: coverage complains that it cannot write as that user.
    assert error in done.stderr
    assert bool(error) == bool(done.returncode)


def _refusing(call: int | None, code: int) -> Callable[..., int]:
    def ioctl(fd: int, request: int, arguments: bytearray) -> int:
        if request == call:
            raise OSError(code, os.strerror(code))
        return 0

    return ioctl


@pytest.mark.parametrize(
    ("call", "code", "text"),
    [
        ("_UFFDIO_API", errno.EINVAL, "UFFD_FEATURE_WP_ASYNC: Invalid argument: Linux 6.7"),
        ("_UFFDIO_REGISTER", errno.EBUSY, "UFFDIO_REGISTER: Device or resource busy: another"),
        ("_UFFDIO_WRITEPROTECT", errno.ENOMEM, "UFFDIO_WRITEPROTECT: Cannot allocate memory$"),
        ("_PAGEMAP_SCAN", errno.ENOTTY, "PAGEMAP_SCAN: Inappropriate .*: Linux 6.7 or newer"),
    ],
)
def test_what_the_kernel_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, call: str, code: int, text: str
) -> None:
    monkeypatch.setattr(pagemap_log, "ioctl", _refusing(getattr(pagemap_log, call), code))
    monkeypatch.setattr(pagemap_log, "_open_userfaultfd", lambda: os.open("/dev/null", os.O_RDWR))
    with closing(mmap.mmap(-1, _PAGE)) as memory:
        log = PagemapLog([memory])
        with pytest.raises(DirtyLogError, match=f"^the dirty log by PAGEMAP_SCAN: .*{text}"):
            run([*log.start(), *log.collect(log.bitmaps())])
        run(log.stop())
        del log


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.EPERM, "a seccomp filter refuses it, .* CAP_SYS_PTRACE; vm.unprivileged"),
        (errno.EINVAL, "Linux 6.7 or newer"),
        (errno.ENOSYS, "no CONFIG_USERFAULTFD"),
    ],
)
def test_a_userfaultfd_that_is_refused_is_explained(
    monkeypatch: pytest.MonkeyPatch, code: int, text: str
) -> None:
    class Libc:
        @staticmethod
        def syscall(_number: int, flags: int) -> int:
            assert flags == os.O_CLOEXEC | 1
            ctypes.set_errno(code)
            return -1

    monkeypatch.setattr(pagemap_log, "_libc", Libc)
    with closing(mmap.mmap(-1, _PAGE)) as memory:
        log = PagemapLog([memory])
        with pytest.raises(DirtyLogError, match=text):
            run(log.start())
        assert run(log.stop()) == 0
        del log


def test_a_pagemap_that_cannot_be_opened_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(pagemap_log, "_open_userfaultfd", lambda: os.dup(2))
    monkeypatch.setattr(os, "open", refuse)
    with closing(mmap.mmap(-1, _PAGE)) as memory:
        log = PagemapLog([memory])
        with pytest.raises(DirtyLogError, match=r"opening /proc/self/pagemap: .*not dumpable"):
            run(log.start())
        assert run(log.stop()) == 1
        del log


def test_buffers_are_writable_whole_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(mmap.mmap(-1, 2 * _PAGE)) as memory:
        for bad, why in (
            (memoryview(memory)[1 : 1 + _PAGE], "made of whole pages: 4096 bytes at 0x.*001"),
            (memoryview(memory)[: _PAGE + 1], "made of whole pages: 4097 bytes at 0x.*000"),
            (memoryview(memory)[:_PAGE].toreadonly(), "read-only"),
        ):
            with pytest.raises(ValueError, match=f"buffer 1 is .*{why}"):
                PagemapLog([memory, bad])
            bad.release()
        monkeypatch.setattr(mmap, "PAGESIZE", 65536)
        with pytest.raises(ValueError, match="pages are of 65536 bytes here"):
            PagemapLog([memory])
