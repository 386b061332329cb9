"""A running guest of aiomigrate.tiny_vmm is migrated; it says itself whether its memory came whole.

Both machines are in this process. Between two looks into the dirty log the guest is given the time
to write all of its pages, so that each test has something to lose.
"""

import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from aiomigrate import (
    BitmapDirtyLog,
    CleanLog,
    KvmDirtyLog,
    KvmSlot,
    MigrationFailed,
    Owner,
    Report,
    VmConfig,
)
from aiomigrate.tiny_vmm import guest
from aiomigrate.tiny_vmm.kvm import KvmCpu
from aiomigrate.tiny_vmm.migrate import VmDestination
from aiomigrate.tiny_vmm.vmm import Power, Vm, make_config
from tests.support.tiny import KINDS, PASS, ScriptedLog, SerialLine, booted, check, move
from tests.support.vms import Guest, migrate

pytestmark = [pytest.mark.usefixtures("no_leaks")]


class RefusesState(VmDestination):
    async def restore(self, state: bytes) -> None:
        raise ValueError("this CPU cannot take it")


def busy(vm: Vm, line: SerialLine) -> ScriptedLog:
    """The machine's log, whose first collect waits until the guest has written all of its pages."""
    return ScriptedLog(vm.dirty, {1: lambda: line.tick(PASS + 1)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("connections", [1, 2, 8])
async def test_there_and_back(kind: str, connections: int) -> None:
    line = SerialLine()
    vm = booted(kind, line)
    async with AsyncExitStack() as machines:
        machines.push_async_callback(vm.close)
        await line.tick(PASS)
        for _ in range(6):
            report, there = await move(vm, line, log=busy(vm, line), connections=connections)
            assert isinstance(report, Report)
            assert report.owner is Owner.DESTINATION
            assert report.iterations >= 2  # the log had something to say
            assert there is not None
            machines.push_async_callback(there.close)
            vm = there
            await line.tick(PASS + 1)
        assert vm.power is Power.ON
    check(line.lines)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_no_log_saw_is_missed(kind: str) -> None:
    """Were the CPU's writes not logged, or the device's, the guest would say so."""
    for forgotten in ("the CPU's", "the device's"):
        line = SerialLine()
        async with booted(kind, line) as vm:
            await line.tick(PASS)
            log = ScriptedLog(_without(vm, forgotten), {1: lambda: line.tick(PASS + 1)})  # noqa: B023 (it is over with this turn)
            report, there = await move(vm, line, log=log)
            assert isinstance(report, Report)
            assert there is not None
            async with there:
                assert await there.ended() is Power.PANIC
        assert line.lines[-1].startswith("old ")


def _without(vm: Vm, forgotten: str) -> BitmapDirtyLog | KvmDirtyLog | CleanLog:
    if not isinstance(vm.cpu, KvmCpu):
        return CleanLog()  # one log has all of it
    if forgotten == "the CPU's":
        return BitmapDirtyLog(vm.config.memory_map, vm.ram.exchange)
    slot = KvmSlot(0, 0, len(vm.ram.memory), vm.cpu.address)
    return KvmDirtyLog(vm.cpu.machine, [slot])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("succeeds", [True, False])
async def test_a_paused_one_stays_paused(kind: str, succeeds: bool) -> None:
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(2 * PASS)
        await vm.pause()
        lines = list(line.lines)
        destination = VmDestination(line) if succeeds else RefusesState(line)
        outcome, there = await move(vm, line, destination=destination)
        assert isinstance(outcome, Report if succeeds else MigrationFailed)
        assert (there is not None) is succeeds
        async with there or vm as owned:
            assert not owned.runs
            assert line.lines == lines
            owned.resume()
            await line.tick(2 * PASS)
    check(line.lines)


async def test_another_vmms_machine_is_refused() -> None:
    with Guest() as stranger:
        sent, received = await migrate(stranger, VmDestination(SerialLine()))
        assert isinstance(sent, MigrationFailed)
        assert isinstance(received, MigrationFailed)
        assert "it is not the Config of a tiny VMM" in str(received)
        assert stranger.running


@pytest.mark.parametrize("change", [{"slot": 1}, {"gpa": 4096}, {"size": 2 << 30}, None])
async def test_memory_that_it_has_no_place_for_is_refused(change: dict[str, int] | None) -> None:
    document = json.loads(make_config("thread", 8 << 20, 0.001).raw)
    mappings = document["memory_manager_data"]["guest_ram_mappings"]
    if change is None:
        mappings.append({**mappings[0], "slot": 1, "gpa": 1 << 32})
    else:
        mappings[0].update(change)
    with pytest.raises(ValueError, match="one mapping"):
        Vm(VmConfig.parse(json.dumps(document).encode()), SerialLine())


def _reboot(vm: Vm, line: SerialLine) -> Callable[[], Awaitable[None]]:
    async def reboot() -> None:
        vm.press(guest.RESET)
        await line.boots(2)
        await line.tick(PASS // 2)

    return reboot


def _power_off(vm: Vm) -> Callable[[], Awaitable[Power]]:
    async def power_off() -> Power:
        vm.press(guest.POWER_OFF)
        return await vm.ended()

    return power_off


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("succeeds", [True, False])
async def test_it_reboots_in_the_middle(kind: str, succeeds: bool) -> None:
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(PASS)
        log = ScriptedLog(vm.dirty, {1: _reboot(vm, line)})
        destination = VmDestination(line) if succeeds else RefusesState(line)
        outcome, there = await move(vm, line, log=log, destination=destination)
        assert isinstance(outcome, Report if succeeds else MigrationFailed)
        assert (there is not None) is succeeds
        async with there or vm:
            await line.tick(3 * PASS)
    check(line.lines)
    assert line.lines.count("booted") == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_a_button_that_it_has_not_seen_yet_travels_with_it(kind: str) -> None:
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(PASS)

        async def press() -> None:
            vm.press(guest.RESET)

        # The second collect comes when the guest is paused.
        outcome, there = await move(vm, line, log=ScriptedLog(vm.dirty, {2: press}))
        assert isinstance(outcome, Report)
        assert there is not None
        async with there:  # the source's never ran again
            await line.boots(2)
            await line.tick(2 * PASS)
    check(line.lines)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("succeeds", [True, False])
async def test_it_powers_off_in_the_middle(kind: str, succeeds: bool) -> None:
    """It is off wherever the migration leaves it."""
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(PASS)
        log = ScriptedLog(vm.dirty, {1: _power_off(vm)})
        destination = VmDestination(line) if succeeds else RefusesState(line)
        outcome, there = await move(vm, line, log=log, destination=destination)
        assert isinstance(outcome, Report if succeeds else MigrationFailed)
        assert (there is not None) is succeeds
        lines = list(line.lines)
        async with there or vm as owned:
            assert await owned.ended() is Power.OFF
        assert line.lines == lines
    check(line.lines)
