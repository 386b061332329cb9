"""The dirty logs that an embedder takes, on an event loop."""

import asyncio
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomigrate.dirty_logs import (
    BitmapDirtyLog,
    CombinedDirtyLog,
    KvmDirtyLog,
    PagemapDirtyLog,
)
from aiomigrate.embedding import CleanLog, DirtyLog
from aiomigrate.memory import kvm_log
from aiomigrate.memory.bitmaps import Bitmap
from aiomigrate.memory.errors import DirtyLogError
from aiomigrate.memory.kvm_log import KvmSlot
from aiomigrate.memory.map import Mapping, MemoryMap
from tests.support.fake_kvm import FakeKvm
from tests.support.kvm import PAGES as GUEST_PAGES
from tests.support.kvm import SLOT, TinyGuest, why_not
from tests.support.turns import until

_PAGES = 200
_MAP = MemoryMap([Mapping(0, 0, _PAGES * 4096, "mem0", False, 0)])


def pages_of(bitmaps: Sequence[Bitmap]) -> list[int]:
    if not bitmaps:
        return []
    return np.flatnonzero(np.unpackbits(bitmaps[0].view(np.uint8), bitorder="little")).tolist()


class Devices:
    """A VMM's own bitmaps: what its devices wrote. `held` makes `exchange` wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bitmaps: Sequence[Bitmap] = ()
        self.exchanges = 0

    def mark(self, page: int) -> None:
        with self.lock:
            if self.bitmaps:
                self.bitmaps[0][page // 64] |= np.uint64(1 << page % 64)

    def exchange(self, fresh: Sequence[Bitmap]) -> Sequence[Bitmap]:
        with self.lock:
            self.exchanges += 1
            marked, self.bitmaps = self.bitmaps, fresh
        return marked


class Scripted:
    """A log of nothing; its hooks are called, so that writes come between those of others."""

    def __init__(self, collected: Callable[[], object] = lambda: None) -> None:
        self.collected = collected
        self.calls: list[str] = []
        self.fails: set[str] = set()

    def _did(self, call: str) -> None:
        self.calls.append(call)
        if call in self.fails:
            raise DirtyLogError("a log", call, 5, "it fails")

    async def start(self) -> None:
        self._did("start")

    async def collect(self) -> Sequence[Bitmap]:
        self.collected()
        self._did("collect")
        return ()

    async def stop(self) -> None:
        self._did("stop")


def test_they_are_dirty_logs() -> None:
    """Mypy checks the shapes here."""
    logs: list[DirtyLog] = [
        KvmDirtyLog(-1, []),
        PagemapDirtyLog([]),
        BitmapDirtyLog(_MAP, Devices().exchange),
        CombinedDirtyLog(CleanLog()),
    ]
    assert len(logs) == 4


@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.usefixtures("no_leaks")
async def test_vcpu_and_device_writes_of_a_real_guest() -> None:
    devices = Devices()
    memory_map = MemoryMap([Mapping(0, 0, GUEST_PAGES * 4096, "mem0", False, 0)])
    with TinyGuest() as guest:
        slot = KvmSlot(SLOT, 0, GUEST_PAGES * 4096, guest.address)
        log = CombinedDirtyLog(
            KvmDirtyLog(guest.vm, [slot]), BitmapDirtyLog(memory_map, devices.exchange)
        )
        await log.start()
        guest.write([8, 640])
        guest.memory[30 * 4096] = 1
        devices.mark(30)
        first = await log.collect()
        guest.write([640])
        assert pages_of(first) == [8, 30, 640]
        assert pages_of(await log.collect()) == [640]
        assert pages_of(await log.collect()) == []
        await log.stop()
        assert devices.bitmaps == ()


@pytest.mark.usefixtures("no_leaks")
async def test_what_this_process_writes() -> None:
    with closing(mmap.mmap(-1, _PAGES * 4096)) as memory:
        log = PagemapDirtyLog([memory])
        try:
            await log.start()
        except DirtyLogError as error:
            pytest.skip(str(error))
        memory[4096] = 1
        assert pages_of(await log.collect()) == [1]
        assert pages_of(await log.collect()) == []
        await log.stop()
        await log.stop()  # as after a start that failed
        del log


@pytest.fixture(params=[True, False], ids=["manual", "plain"])
def kvm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKvm]:
    kvm = FakeKvm(_PAGES, can_protect=request.param)
    monkeypatch.setattr(kvm_log, "ioctl", kvm.ioctl)
    monkeypatch.setattr(kvm_log, "_CLEAR_PAGES", 64)
    yield kvm
    assert (kvm.logging, kvm.manual) == (False, False)


def kvm_log_of() -> KvmDirtyLog:
    return KvmDirtyLog(-1, [KvmSlot(0, 0, _PAGES * 4096, 0)])


@pytest.mark.usefixtures("no_leaks")
async def test_a_collect_that_is_cancelled_loses_nothing(
    kvm: FakeKvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = kvm_log_of()
    await log.start()
    kvm.write(3)
    kvm.write(150)
    begun, go_on = threading.Event(), threading.Event()

    def ioctl(vm: int, request: int, argument: bytes | int) -> int:
        answer = kvm.ioctl(vm, request, argument)
        begun.set()
        assert go_on.wait(10)
        return answer

    monkeypatch.setattr(kvm_log, "ioctl", ioctl)
    collecting = asyncio.create_task(log.collect())
    await until(begun.is_set)
    collecting.cancel()
    await asyncio.sleep(0)
    assert not collecting.done()  # it waits for the call that runs
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await collecting
    kvm.write(7)
    assert pages_of(await log.collect()) == [3, 7, 150]
    assert pages_of(await log.collect()) == []
    await log.stop()


@pytest.mark.usefixtures("no_leaks")
async def test_an_exchange_that_outlives_its_collect_loses_nothing() -> None:
    devices = Devices()
    log = BitmapDirtyLog(_MAP, devices.exchange)
    devices.mark(1)  # before it starts
    await log.start()
    devices.mark(2)
    with devices.lock:
        collecting = asyncio.create_task(log.collect())
        await asyncio.sleep(0)
        collecting.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await collecting
    assert devices.exchanges == 2
    devices.mark(3)
    handed = await log.collect()
    assert pages_of(handed) == [2, 3]
    devices.mark(4)
    assert pages_of(handed) == [2, 3]  # nobody marks in it any more
    assert pages_of(await log.collect()) == [4]
    await log.stop()
    assert devices.bitmaps == ()
    devices.mark(5)
    await log.start()
    assert pages_of(await log.collect()) == []
    await log.stop()


async def test_a_second_log_that_fails_takes_nothing_from_the_first(kvm: FakeKvm) -> None:
    second = Scripted()
    log = CombinedDirtyLog(kvm_log_of(), second)
    await log.start()
    kvm.write(9)
    second.fails.add("collect")
    with pytest.raises(DirtyLogError):
        await log.collect()
    second.fails.clear()
    assert pages_of(await log.collect()) == [9]
    assert pages_of(await log.collect()) == []
    # All are stopped, the last one first, even if one fails.
    second.fails.add("stop")
    with pytest.raises(DirtyLogError, match="stop"):
        await log.stop()
    assert second.calls[-1] == "stop"


async def test_logs_that_report_nothing() -> None:
    log = CombinedDirtyLog(CleanLog(), Scripted())
    await log.start()
    assert await log.collect() == ()
    await log.stop()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["vcpu", "device", "between", "collect", "read", "fail", "cancel"]),
            st.integers(0, _PAGES - 1),
        ),
        max_size=25,
    ),
    st.booleans(),
)
@settings(max_examples=60)
def test_never_a_lost_write(script: list[tuple[str, int]], can_protect: bool) -> None:
    """VCPUs and devices write before, between and after the collections of three logs."""
    original, copy = [0] * _PAGES, [-1] * _PAGES
    kvm = FakeKvm(_PAGES, can_protect=can_protect)
    devices = Devices()
    between_writes: list[int] = []

    def write(by: Callable[[int], None], page: int) -> None:
        original[page] += 1
        by(page)

    def between() -> None:
        for page in between_writes:
            write(kvm.write, page)
            write(devices.mark, (page + 1) % _PAGES)
        between_writes.clear()

    async def run() -> None:
        middle = Scripted(between)
        log = CombinedDirtyLog(kvm_log_of(), middle, BitmapDirtyLog(_MAP, devices.exchange))
        to_read = set(range(_PAGES))
        handed: list[tuple[Bitmap, Bitmap]] = []

        async def collect() -> None:
            bitmaps = await log.collect()
            handed.append((bitmaps[0], bitmaps[0].copy()))
            to_read.update(pages_of(bitmaps))

        def read() -> None:
            for page in to_read:
                copy[page] = original[page]
            to_read.clear()

        await log.start()
        for action, page in script:
            match action:
                case "vcpu":
                    write(kvm.write, page)
                case "device":
                    write(devices.mark, page)
                case "between":
                    between_writes.append(page)
                case "collect":
                    await collect()
                case "read":
                    read()
                case "fail":
                    middle.fails.add("collect")
                    with pytest.raises(DirtyLogError):
                        await log.collect()
                    middle.fails.clear()
                case "cancel":
                    task = asyncio.create_task(collect())
                    for _ in range(page % 8):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
        between_writes.clear()
        await collect()
        read()
        assert copy == original
        await collect()
        assert not to_read
        await log.stop()
        assert all(np.array_equal(bitmap, before) for bitmap, before in handed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kvm_log, "ioctl", kvm.ioctl)
        patch.setattr(kvm_log, "_CLEAR_PAGES", 64)
        asyncio.run(run())


def test_a_log_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one migration left is not reported to the next one."""
    kvm: Any = FakeKvm(_PAGES, can_protect=True)
    monkeypatch.setattr(kvm_log, "ioctl", kvm.ioctl)
    monkeypatch.setattr(kvm_log, "_CLEAR_PAGES", 64)

    async def run() -> None:
        middle = Scripted()
        log = CombinedDirtyLog(kvm_log_of(), middle)
        for page in (4, 5):
            await log.start()
            kvm.write(page)
            middle.fails.add("collect")
            with pytest.raises(DirtyLogError):
                await log.collect()
            middle.fails.clear()
            if page == 5:
                assert pages_of(await log.collect()) == [5]
            await log.stop()

    asyncio.run(run())
