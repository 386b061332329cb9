"""A whole migration, stepped through its gaps: whatever is written in any of them, arrives.

`send` and `receive` run over real sockets on the virtual loop. They stop at gates, which the
machine opens one by one: before each step of the dirty log (between GET and CLEAR, between the
vCPU's log and the device's), before a chunk's content is read and before it is applied, in pause
and capture. Between two steps nothing runs, and the machine writes guest memory, as its vCPU or as
a device of it that no kernel logs, loses lanes, or switches over. At the end the destination's
memory is the source's as it was when it was paused and captured.

The kernel's side of the vCPU's log is once the model of KVM in tests/support/fake_kvm.py, with and
without manual protection, and once the real PAGEMAP_SCAN.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, ClassVar
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import aiomigrate
from aiomigrate import ReceiveOptions, Report, SendOptions
from aiomigrate.applying import Applier
from aiomigrate.memory import kvm_log, pagemap_log
from aiomigrate.memory.errors import DirtyLogError
from aiomigrate.memory.kvm_log import KvmLog, KvmSlot
from aiomigrate.memory.pagemap_log import PagemapLog
from aiomigrate.protocol import ALL_EXTENSIONS, Extension
from aiomigrate.transport import Connection
from tests.engine.engine_gates import MEMORY, PAGES, Gates, SteppedVm
from tests.support.clock import VirtualClockLoop
from tests.support.fake_kvm import FakeKvm
from tests.support.image import PAGE
from tests.support.vms import Landing

# Ten thousand steps of what other tests of this room cover.
pytestmark = pytest.mark.no_cover
_CHUNK = 8 * PAGE
_STEP_S = 0.05
"""Virtual, between two rules: far from every deadline, and two of them replace a lane."""
_PATIENCE_S = 0.002

a_page = st.sampled_from((0, 1, 7, 8, 40, 63, 64, 71))
"""Few, so that a page is often written again; at the edges of chunks and of a bitmap's words."""
a_content = st.integers(0, 3)
"""What each byte of a page is: 0 makes it a zero page."""


class Migrating(RuleBasedStateMachine):
    """`make_log` and `note_write`, the kernel's side of the vCPU's log, come from subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()
        self.stack = ExitStack()
        for owner, name, gate in (
            (Connection, "write_vector", self.gates.before),
            (Applier, "zero", self.gates.before),
            (Applier, "read_content", self.gates.before_apply),
        ):
            gated = gate(getattr(owner, name))
            self.stack.enter_context(mock.patch.object(owner, name, gated))
        self.loop = VirtualClockLoop(_PATIENCE_S)
        self.stack.callback(self.loop.close)
        self.vm: SteppedVm | None = None

    def make_log(self) -> Any:
        raise NotImplementedError

    def note_write(self, page: int) -> None:
        """A vCPU has written a page: what the kernel's model has to know of it."""

    @initialize(
        connections=st.integers(1, 4),
        extensions=st.sampled_from((ALL_EXTENSIONS, Extension.NONE)),
        file_backed=st.booleans(),
        downtime_ms=st.sampled_from((1, 1, 300, 1_000_000)),
        patience=st.integers(0, 4),
        contents=st.lists(st.tuples(a_page, a_content), max_size=8),
    )
    def begin(
        self,
        connections: int,
        extensions: Extension,
        file_backed: bool,
        downtime_ms: int,
        patience: int,
        contents: list[tuple[int, int]],
    ) -> None:
        self.vm = SteppedVm(self.gates, file_backed=file_backed)
        self.stack.callback(self.vm.close)
        self.landing = self.stack.enter_context(Landing())
        for page, content in contents:
            self._fill(self.vm.device, page, content)
        self.vm.log_with(self.make_log())
        self.patience = patience  # iterations before anybody asks to switch over
        self.sending = SendOptions(
            connections=connections,
            chunk_bytes=_CHUNK,
            downtime_ms=downtime_ms,
            extensions=extensions,
        )
        self.migrating = self.loop.create_task(self._migrate(self.vm))
        self._settle()

    async def _migrate(self, vm: SteppedVm) -> None:
        receiving = ReceiveOptions(extensions=self.sending.extensions)
        async with (
            aiomigrate.receive(self.landing, "tcp:127.0.0.1:0", receiving) as reception,
            aiomigrate.send(vm, str(reception.address), self.sending) as self.migration,
        ):
            self.reports = await asyncio.gather(self.migration.result(), reception.result())

    def _settle(self) -> None:
        """Let everything run that is not stopped at a gate."""

        async def settle() -> None:
            await asyncio.sleep(_STEP_S)
            self.progress = self.migration.progress

        self.loop.run_until_complete(settle())

    def _fill(self, view: mmap.mmap, page: int, content: int) -> None:
        view[page * PAGE : (page + 1) * PAGE] = bytes([content]) * PAGE

    @property
    def _vm(self) -> SteppedVm:
        assert self.vm is not None
        return self.vm

    # What happens to guest memory

    @precondition(lambda self: not self._vm.paused)
    @rule(pages=st.lists(a_page, min_size=1, max_size=6), content=a_content)
    def vcpu_writes(self, pages: list[int], content: int) -> None:
        for page in pages:
            self._fill(self._vm.vcpu, page, content)
            self.note_write(page)

    @precondition(lambda self: not self._vm.captured)
    @rule(page=a_page, content=a_content)
    def device_writes(self, page: int, content: int) -> None:
        self._fill(self._vm.device, page, content)
        self._vm.mark(page)

    # What happens to the migration

    @precondition(lambda self: not self.gates.waiting or self.progress.lanes_lost)
    @rule()
    def time_passes(self) -> None:
        """A lane is replaced meanwhile."""
        self._settle()

    @precondition(lambda self: self.gates.waiting)
    @rule(which=st.integers(0, 15))
    def one_goes_on(self, which: int) -> None:
        self.gates.waiting[which % len(self.gates.waiting)].passed.set_result(None)
        self._settle()

    @precondition(lambda self: self.gates.waiting)
    @rule(which=st.integers(0, 15))
    def one_is_held(self, which: int) -> None:
        """It stays where it is while others go on."""
        self.gates.waiting[which % len(self.gates.waiting)].held = True

    @precondition(lambda self: any(gate.moves for gate in self.gates.waiting))
    @rule(times=st.integers(1, 20))
    def memory_moves(self, times: int) -> None:
        """So many times, or to the end of the iteration."""
        while times and self.gates.let_go(moves=True):
            self._settle()
            times -= 1

    @precondition(lambda self: any(not gate.moves for gate in self.gates.waiting))
    @rule(steps=st.integers(1, 8))
    def the_log_is_collected(self, steps: int) -> None:
        """So many steps of it, or up to where memory moves again. Or the guest is paused, or
        captured.
        """
        while steps and self.gates.let_go(moves=False):
            self._settle()
            steps -= 1

    @precondition(lambda self: self.sending.extensions and self._lanes())
    @rule(which=st.integers(0, 3), stays=st.booleans())
    def a_lane_is_lost(self, which: int, stays: bool) -> None:
        """One of which something waits to be applied, if there is any; with `stays` that waits on
        while others go on, if it is let.
        """
        connections = [lane.connection for lane in self._lanes()]
        names = [f"tcp:127.0.0.1:{lost._sock.getsockname()[1]}" for lost in connections]
        applying = [gate for gate in self.gates.waiting if gate.peer in names]
        if applying:
            gate = applying[which % len(applying)]
            gate.held = stays
            connections[names.index(gate.peer)].abort()
        else:
            connections[which % len(connections)].abort()
        self._settle()

    def _lanes(self) -> Sequence[Any]:
        lanes = self.migration._attempt._lanes  # type: ignore[attr-defined]
        return () if lanes is None else lanes.lanes

    @precondition(lambda self: not self._vm.paused)
    @precondition(lambda self: self.progress.iteration >= self.patience)
    @rule()
    def switch_over(self) -> None:
        self.migration.switch_over_now()
        self._settle()

    def teardown(self) -> None:
        with self.stack:
            if self.vm is not None:
                self.gates.open = True
                for gate in self.gates.waiting:
                    gate.passed.set_result(None)
                self.loop.run_until_complete(self.migrating)
                assert all(isinstance(report, Report) for report in self.reports)
                assert self.vm.device[:] == self.vm.at_capture
                assert self.landing.view(0)[:] == self.vm.at_capture


class KvmMigrating(Migrating):
    can_protect: ClassVar[bool]

    def make_log(self) -> Any:
        self.kvm = FakeKvm(PAGES, can_protect=self.can_protect)
        self.stack.enter_context(mock.patch.object(kvm_log, "ioctl", self.kvm.ioctl))
        self.stack.enter_context(mock.patch.object(kvm_log, "_CLEAR_PAGES", 64))
        return KvmLog(-1, [KvmSlot(0, 0, MEMORY.size, 0)])

    def note_write(self, page: int) -> None:
        self.kvm.write(page)


class ManualKvm(KvmMigrating):
    can_protect = True


class PlainKvm(KvmMigrating):
    can_protect = False


class Pagemap(Migrating):
    def make_log(self) -> Any:
        self.stack.enter_context(mock.patch.object(pagemap_log, "_SLICE_BYTES", 64 * PAGE))
        self.stack.enter_context(mock.patch.object(pagemap_log, "_REGIONS", 3))
        return PagemapLog([self._vm.vcpu])


def test_what_is_left_of_a_lost_lane_is_not_applied_over_newer_memory() -> None:
    """One way through the machine that chance seldom takes."""
    machine = ManualKvm()
    machine.begin(
        connections=2,
        extensions=ALL_EXTENSIONS,
        file_backed=True,  # all of it is sent
        downtime_ms=1,
        patience=9,
        contents=[(0, 1)],
    )
    machine.the_log_is_collected(8)
    while not any(gate.peer for gate in machine.gates.waiting):
        machine.memory_moves(1)
    machine.vcpu_writes([0, 1, 7, 8, 40], 3)
    machine.a_lane_is_lost(0, stays=True)
    for _ in range(2):  # what it left unanswered goes elsewhere, and then what was written since
        machine.memory_moves(20)
        machine.time_passes()
        machine.memory_moves(20)
        machine.the_log_is_collected(8)
    machine.memory_moves(20)
    assert machine.progress.lanes_lost == 1
    machine.teardown()


def _why_no_scan() -> str:
    with mmap.mmap(-1, PAGE) as memory:
        log = PagemapLog([memory])
        try:
            for _ in log.start():
                pass
        except DirtyLogError as error:
            return str(error)
        finally:
            for _ in log.stop():
                pass
            del log
    return ""


_SETTINGS = settings(max_examples=100, stateful_step_count=40)

TestManualKvm = ManualKvm.TestCase
TestManualKvm.settings = _SETTINGS
TestPlainKvm = PlainKvm.TestCase
TestPlainKvm.settings = _SETTINGS
TestPagemap = pytest.mark.skipif(bool(_why_no_scan()), reason=_why_no_scan())(Pagemap.TestCase)
TestPagemap.settings = _SETTINGS
