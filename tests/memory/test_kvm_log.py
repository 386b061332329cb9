"""KVM's dirty log, with a real guest, and what it asks of KVM."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from aiomigrate.memory import kvm_log
from aiomigrate.memory.errors import DirtyLogError
from aiomigrate.memory.kvm_log import KvmLog, KvmSlot
from tests.support.kvm import PAGES, SLOT, WRITABLE, TinyGuest, why_not

needs_kvm = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture
def guest() -> Iterator[TinyGuest]:
    with TinyGuest() as guest:
        yield guest


@pytest.fixture(params=["manual", "plain"])
def protection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernel's KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, and as if it had none."""
    if request.param == "plain":

        def ioctl(fd: int, call: int, argument: bytes | int) -> int | bytes:
            assert call not in (kvm_log._CLEAR_DIRTY_LOG, kvm_log._ENABLE_CAP)
            return 0 if call == kvm_log._CHECK_EXTENSION else fcntl.ioctl(fd, call, argument)

        monkeypatch.setattr(kvm_log, "ioctl", ioctl)
    return str(request.param)


def run(steps: Iterable[None]) -> int:
    return sum(1 for _ in steps)


def log_of(guest: TinyGuest) -> KvmLog:
    return KvmLog(guest.vm, [KvmSlot(SLOT, 0, PAGES * 4096, guest.address)])


def collected(log: KvmLog) -> list[int]:
    bitmaps = log.bitmaps()
    run(log.collect(bitmaps))
    return np.flatnonzero(np.unpackbits(bitmaps[0].view(np.uint8), bitorder="little")).tolist()


@needs_kvm
def test_every_page_that_the_guest_writes_is_reported_once(
    guest: TinyGuest, protection: str
) -> None:
    log = log_of(guest)
    run(log.start())
    assert collected(log) == []
    for pages in ([8, 9, 63, 64, 700, 999], [9, 64], [*WRITABLE], []):
        guest.write(pages)
        assert collected(log) == pages
        assert collected(log) == []
    # Twice before it is collected: once in the log.
    guest.write([12])
    guest.write([12, 13])
    assert collected(log) == [12, 13]
    run(log.stop())


@needs_kvm
def test_a_write_between_get_and_clear_is_reported_by_the_next_collect(guest: TinyGuest) -> None:
    log = log_of(guest)
    run(log.start())
    guest.write([20, 21])
    bitmaps = log.bitmaps()
    steps = log.collect(bitmaps)
    next(steps)  # got, not yet cleared
    guest.write([22])
    assert run(steps) == 1
    assert bitmaps[0].tolist()[0] == 3 << 20
    assert collected(log) == [22]
    run(log.stop())


@needs_kvm
def test_what_the_vmm_writes_is_not_in_it(guest: TinyGuest) -> None:
    log = log_of(guest)
    run(log.start())
    guest.memory[30 * 4096] = 1
    guest.write([31])
    assert guest.memory[30 * 4096] == 1
    assert collected(log) == [31]
    run(log.stop())


@needs_kvm
def test_stop_turns_logging_off(guest: TinyGuest, protection: str) -> None:
    log = log_of(guest)
    run(log.start())
    run(log.stop())
    guest.write([40])
    with pytest.raises(DirtyLogError, match=r"KVM_GET_DIRTY_LOG of slot 3: No such file") as raised:
        collected(log)
    assert raised.value.code == errno.ENOENT
    assert run(log.stop()) == 0
    # It can begin again, and what was written meanwhile is not in it.
    run(log.start())
    guest.write([41])
    assert collected(log) == [41]
    run(log.stop())


@needs_kvm
def test_a_start_that_fails_halfway_can_be_stopped(guest: TinyGuest) -> None:
    good = KvmSlot(SLOT, 0, PAGES * 4096, guest.address)
    log = KvmLog(guest.vm, [good, KvmSlot(4, 0, 4096, guest.address)])  # overlaps
    with pytest.raises(DirtyLogError, match="KVM_SET_USER_MEMORY_REGION of slot 4: File exists"):
        run(log.start())
    assert run(log.stop()) == 1
    with pytest.raises(DirtyLogError, match="KVM_GET_DIRTY_LOG"):
        collected(KvmLog(guest.vm, [good]))


def test_a_descriptor_that_is_no_vm() -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    try:
        with pytest.raises(DirtyLogError, match="KVM_CHECK_EXTENSION: Inappropriate ioctl"):
            run(KvmLog(fd, [KvmSlot(0, 0, 4096, 0)]).start())
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 4095, 4097, -4096])
def test_slots_are_made_of_whole_pages(size: int) -> None:
    with pytest.raises(ValueError, match=r"KVM slot 5: .* bytes are not whole pages"):
        KvmLog(0, [KvmSlot(5, 0, size, 0)])


def test_pages_of_another_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "PAGESIZE", 65536)
    with pytest.raises(ValueError, match="pages of 65536 bytes here, not 4096"):
        KvmLog(0, [])


def test_clear_goes_in_slices_and_passes_over_what_is_clean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slot of 3 slices and a partial one; KVM wants multiples of 64 pages, or the slot's end."""
    pages = 3 * kvm_log._CLEAR_PAGES + 100
    written = [5, 2 * kvm_log._CLEAR_PAGES, pages - 1]
    cleared = []

    def ioctl(fd: int, call: int, argument: bytes | int) -> int:
        assert isinstance(argument, bytes) or call == kvm_log._CHECK_EXTENSION
        if call == kvm_log._GET_DIRTY_LOG:
            slot, _, address = struct.unpack("=IIQ", argument)  # type: ignore[arg-type]
            view = (ctypes.c_uint64 * -(-pages // 64)).from_address(address)
            for page in written:
                view[page // 64] |= 1 << page % 64
        if call == kvm_log._CLEAR_DIRTY_LOG:
            slot, count, first, address = struct.unpack("=IIQQ", argument)  # type: ignore[arg-type]
            word = ctypes.c_uint64.from_address(address).value
            cleared.append((slot, first, count, word))
        return 3

    monkeypatch.setattr(kvm_log, "ioctl", ioctl)
    log = KvmLog(-1, [KvmSlot(9, 0, pages * 4096, 0)])
    run(log.start())
    assert collected(log) == written
    piece = kvm_log._CLEAR_PAGES
    assert cleared == [(9, 0, piece, 1 << 5), (9, 2 * piece, piece, 1), (9, 3 * piece, 100, 0)]
