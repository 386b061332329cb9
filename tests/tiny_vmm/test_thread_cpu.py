"""The guest without KVM: its dirty log is the kernel's where it has one, else its own."""

import mmap
from contextlib import AsyncExitStack

import pytest

from aiomigrate import DirtyLogError, PagemapDirtyLog, Report
from aiomigrate.tiny_vmm.ram import Ram
from aiomigrate.tiny_vmm.vmm import Power
from tests.support.tiny import PASS, ScriptedLog, SerialLine, booted, check, move

pytestmark = pytest.mark.usefixtures("no_leaks")


async def _require_scan() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        log = PagemapDirtyLog([memory])
        try:
            await log.start()
        except DirtyLogError as error:
            pytest.skip(str(error))
        finally:
            await log.stop()


@pytest.mark.parametrize("by", ["PAGEMAP_SCAN", "its own bitmap"])
async def test_one_log_alone_has_all_that_was_written(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "PAGEMAP_SCAN":
        await _require_scan()
        monkeypatch.setattr(Ram, "mark", lambda *_: None)
    else:

        async def refused(_: object) -> None:
            raise DirtyLogError("the dirty log", "PAGEMAP_SCAN", 25, "no such thing here")

        monkeypatch.setattr(PagemapDirtyLog, "start", refused)
    line = SerialLine()
    vm = booted("thread", line)
    async with AsyncExitStack() as machines:
        machines.push_async_callback(vm.close)
        await line.tick(PASS)
        for _ in range(3):
            # Between two looks into the log the guest writes all of its pages.
            log = ScriptedLog(vm.dirty, {1: lambda: line.tick(PASS + 1)})
            report, there = await move(vm, line, log=log, connections=2)
            assert isinstance(report, Report)
            assert there is not None
            machines.push_async_callback(there.close)
            vm = there
            await line.tick(PASS + 1)
        assert vm.power is Power.ON
    check(line.lines)
