"""A migration's view of a dirty log, against a model: whatever is written whenever, also between
two steps of a collection and before or after a page is read, nothing is lost.

The machine copies pages as the engine does: everything once, then what each collection handed over.
At the end it collects and copies once more, and the copy must be the original.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from aiomigrate.memory import kvm_log, pagemap_log
from aiomigrate.memory.bitmaps import Bitmap
from aiomigrate.memory.errors import DirtyLogError
from aiomigrate.memory.kvm_log import KvmLog, KvmSlot
from aiomigrate.memory.pagemap_log import PagemapLog
from tests.support.fake_kvm import FakeKvm

_PAGES = 200
_PAGE = 4096
a_page = st.integers(0, _PAGES - 1)
some_pages = st.lists(a_page, max_size=5)


class Machine(RuleBasedStateMachine):
    """What all logs must hold; `log` and `write_memory` come from the subclasses."""

    log: Any

    def __init__(self) -> None:
        super().__init__()
        self.original = [0] * _PAGES
        self.copy = [-1] * _PAGES
        self.to_read = set(range(_PAGES))
        self.steps: Iterator[None] | None = None
        self.marked: list[Bitmap] = []
        self.handed: list[tuple[Bitmap, Bitmap]] = []

    @initialize(pages=some_pages)
    def start(self, pages: list[int]) -> None:
        for page in pages:
            self.write(page)
        for _ in self.log.start():
            pass
        self.marked = self.log.bitmaps()

    @rule(page=a_page)
    def write(self, page: int) -> None:
        self.original[page] += 1
        self.write_memory(page)

    def write_memory(self, page: int) -> None:
        raise NotImplementedError

    @precondition(lambda self: self.to_read)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.to_read)))
        self.to_read.discard(page)
        self.copy[page] = self.original[page]

    @rule()
    def read_all(self) -> None:
        for page in self.to_read:
            self.copy[page] = self.original[page]
        self.to_read.clear()

    @rule()
    def step(self) -> None:
        """One step of a collection; at its end the bitmaps are handed over."""
        if self.steps is None:
            self.steps = self.log.collect(self.marked)
        for _ in self.steps:
            return
        self.steps = None
        handed, self.marked = self.marked, self.log.bitmaps()
        self.handed.append((handed[0], handed[0].copy()))
        bits = np.unpackbits(handed[0].view(np.uint8), bitorder="little")
        assert not bits[_PAGES:].any()
        self.to_read.update(np.flatnonzero(bits).tolist())

    @precondition(lambda self: self.steps is not None)
    @rule()
    def give_up(self) -> None:
        """A collection is cancelled: what it found stays for the next one."""
        self.steps = None

    @invariant()
    def nobody_writes_to_what_was_handed_over(self) -> None:
        assert all(np.array_equal(bitmap, copy) for bitmap, copy in self.handed)

    def collect(self) -> None:
        self.step()
        while self.steps is not None:
            self.step()

    def teardown(self) -> None:
        if self.marked:  # it was started
            self.collect()  # perhaps one that had begun before the last writes
            self.collect()
            self.read_all()
            assert self.copy == self.original
            handed = len(self.handed)
            self.collect()
            assert not self.handed[handed][0].any(), "reported twice"
        for _ in self.log.stop():
            pass
        super().teardown()


class KvmMachine(Machine):
    can_protect: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.kvm = FakeKvm(_PAGES, can_protect=self.can_protect)
        self.patches = ExitStack()
        self.patches.enter_context(mock.patch.object(kvm_log, "ioctl", self.kvm.ioctl))
        self.patches.enter_context(mock.patch.object(kvm_log, "_CLEAR_PAGES", 64))
        self.log = KvmLog(-1, [KvmSlot(0, 0, _PAGES * _PAGE, 0)])

    def write_memory(self, page: int) -> None:
        self.kvm.write(page)

    def teardown(self) -> None:
        try:
            super().teardown()
            assert (self.kvm.logging, self.kvm.manual) == (False, False)
        finally:
            self.patches.close()


class ManualKvm(KvmMachine):
    can_protect = True


class PlainKvm(KvmMachine):
    can_protect = False


class Pagemap(Machine):
    """On real memory: what is copied is its content."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = ExitStack()
        self.patches.enter_context(mock.patch.object(pagemap_log, "_SLICE_BYTES", 64 * _PAGE))
        self.patches.enter_context(mock.patch.object(pagemap_log, "_REGIONS", 3))
        fd = os.memfd_create("guest")
        os.ftruncate(fd, _PAGES * _PAGE)
        self.memory = mmap.mmap(fd, _PAGES * _PAGE)
        os.close(fd)
        self.log = PagemapLog([self.memory])

    def write_memory(self, page: int) -> None:
        self.memory[page * _PAGE] = self.original[page] % 256

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.patches.close()
            self.steps = None
            self.memory.close()


def _can_scan() -> bool:
    log = PagemapLog([memory := mmap.mmap(-1, _PAGE)])
    try:
        for steps in (log.start(), log.collect(log.bitmaps())):
            for _ in steps:
                pass
    except DirtyLogError:
        return False
    finally:
        for _ in log.stop():
            pass
        del log
        memory.close()
    return True


_SETTINGS = settings(max_examples=60, stateful_step_count=40)

TestManualKvm = ManualKvm.TestCase
TestManualKvm.settings = _SETTINGS
TestPlainKvm = PlainKvm.TestCase
TestPlainKvm.settings = _SETTINGS
TestPagemap = pytest.mark.skipif(not _can_scan(), reason="no PAGEMAP_SCAN here: see doctor")(
    Pagemap.TestCase
)
TestPagemap.settings = _SETTINGS
