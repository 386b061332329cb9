"""What happens to a guest and to its migration in operation: it is migrated while it boots, to its
own VMM, and by people who change their minds and look on.

Reboots and power-offs are in test_moving.py, cancellations that keep the guest in test_staying.py,
and processes that are gone in tests/integration.
"""

import asyncio
import threading
from itertools import pairwise

import pytest

import aiomigrate
from aiomigrate import (
    Deadlines,
    GuestMemory,
    MigrationFailed,
    Owner,
    Phase,
    Progress,
    Report,
    SendOptions,
    VmConfig,
)
from aiomigrate.tiny_vmm.guest import ENTRY, PAGE, Work
from tests.support.clock import VirtualClockLoop
from tests.support.tiny import (
    FIRST,
    KINDS,
    PASS,
    Action,
    ScriptedDestination,
    ScriptedSource,
    SerialLine,
    booted,
    check,
    machine,
    move,
)

pytestmark = pytest.mark.usefixtures("no_leaks")
kinds = pytest.mark.parametrize("kind", KINDS)
BOOTING = Work(first=FIRST, end=4 * FIRST, batch=1)
BOOT = 3 * FIRST // 4096
"""Ticks of its first pass, which looks at nothing and writes all of its pages: it boots so long, at
100 ticks a second longer than any migration of it."""
BOOTED = Work(first=FIRST, end=4 * FIRST, batch=64)


async def refuse() -> None:
    raise ValueError("this CPU cannot take it")


# While it boots


@kinds
@pytest.mark.parametrize("succeeds", [True, False])
@pytest.mark.parametrize("switched_on", ["config", "collect 1", "booted"])
async def test_it_is_migrated_while_it_boots(kind: str, switched_on: str, succeeds: bool) -> None:
    """Before it runs at all, when all of its memory has been read once, and on its way."""
    line = SerialLine()
    script: dict[str, Action] = {}
    there_script: dict[str, Action] = {} if succeeds else {"restore": refuse}
    async with machine(kind, line, BOOTING, 0.01) as vm:
        source = ScriptedSource(vm, script)
        source.resumes = True
        paused_at: list[int] = []

        async def switch_on() -> None:
            vm.resume()
            await line.tick(5)

        async def note() -> None:
            paused_at.append(len(line.lines))

        script["capture"] = note
        if switched_on == "booted":
            await switch_on()
        else:
            script[switched_on] = switch_on
        destination = ScriptedDestination(line, there_script)
        outcome, there = await move(vm, line, source=source, destination=destination)
        assert isinstance(outcome, Report if succeeds else MigrationFailed), outcome
        assert (there is not None) is succeeds
        (lines,) = paused_at
        assert lines < BOOT, "it had booted already"
        async with there or vm as owned:
            await line.tick(2)
            await owned.pause()
            owned.load(BOOTED)  # it goes on faster, and looks at what it wrote before
            owned.resume()
            await line.tick(3 * PASS)
    check(line.lines)
    assert line.lines.count("booted") == 1


# To itself


@kinds
async def test_it_is_not_migrated_to_itself(kind: str) -> None:
    """Its VMM would receive into the memory that it sends."""

    class Itself(ScriptedDestination):
        async def configure(self, config: VmConfig, source: str) -> GuestMemory:
            return vm.memory

    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(PASS)
        destination = Itself(line, {})
        async with (
            aiomigrate.receive(destination, "tcp:127.0.0.1:0") as reception,
            aiomigrate.send(ScriptedSource(vm, {}), str(reception.address)) as migration,
        ):
            sent, received = await asyncio.gather(
                migration.result(), reception.result(), return_exceptions=True
            )
        assert isinstance(sent, MigrationFailed)
        assert "the destination refused Config" in str(sent)
        assert isinstance(received, MigrationFailed)
        assert "a VM cannot be migrated to itself" in str(received)
        assert sent.owner is received.owner is Owner.SOURCE
        await line.tick(2 * PASS)
    check(line.lines)


@kinds
async def test_nobody_listens_where_it_goes(kind: str) -> None:
    line = SerialLine()
    async with booted(kind, line) as vm:
        async with aiomigrate.receive(ScriptedDestination(line, {}), "tcp:127.0.0.1:0") as gone:
            gone.cancel()
            with pytest.raises(aiomigrate.MigrationCancelled):
                await gone.result()
        source = ScriptedSource(vm, {})
        async with aiomigrate.send(source, str(gone.address)) as migration:
            with pytest.raises(MigrationFailed, match=r"Connection refused; the VM is with the so"):
                await migration.result()
        assert source.calls == []
        await line.tick(2 * PASS)
    check(line.lines)


# Too late


@kinds
@pytest.mark.parametrize("when", ["resume", "confirmed"])
async def test_it_is_cancelled_too_late(kind: str, when: str) -> None:
    """The destination has it, or will: it is told so, however often, and nothing is cut short."""
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(PASS)
        source = ScriptedSource(vm, {})
        answers: list[bool] = []

        async def cancel() -> None:
            answers.extend(migration.cancel() for _ in range(2))

        destination = ScriptedDestination(line, {when: cancel})
        async with (
            aiomigrate.receive(destination, "tcp:127.0.0.1:0") as reception,
            aiomigrate.send(source, str(reception.address)) as migration,
        ):
            report, received = await asyncio.gather(migration.result(), reception.result())
        assert answers == [False, False]
        assert (report.owner, received.owner) == (Owner.DESTINATION, Owner.DESTINATION)
        assert not migration.cancel()
        assert not reception.cancel()
        assert source.calls[-1] == "release"
        assert not vm.runs
        assert destination.vm is not None
        async with destination.vm:
            await line.tick(2 * PASS)
    check(line.lines)


# Figures


@kinds
@pytest.mark.parametrize("connections", [1, 4])
async def test_its_figures_during_and_after(kind: str, connections: int) -> None:
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(PASS)
        script: dict[str, Action] = {}
        source, destination = ScriptedSource(vm, script), ScriptedDestination(line, {})
        seen: list[Progress] = []

        async def look() -> None:
            seen.append(migration.progress)

        async def look_when_all_is_written() -> None:
            await line.tick(PASS + 1)
            await look()

        busy = [f"collect {n}" for n in range(1, 4)]
        script |= dict.fromkeys(busy, look_when_all_is_written)
        script |= dict.fromkeys(["config", "pause", "capture", "hand_over", "release"], look)
        options = SendOptions(connections=connections, downtime_ms=1)
        async with (
            aiomigrate.receive(destination, "tcp:127.0.0.1:0") as reception,
            aiomigrate.send(source, str(reception.address), options) as migration,
        ):
            script["collect 4"] = _asks(migration)
            report, received = await asyncio.gather(migration.result(), reception.result())
            await look()
        names = ["config", *busy, "pause", "capture", "hand_over", "release", "end"]
        at = dict(zip(names, seen, strict=True))
        total = len(vm.ram.memory)
        assert [figures.phase for figures in seen] == [
            Phase.CONNECTING,
            *[Phase.PRECOPY] * 3,
            *[Phase.SWITCHOVER] * 3,
            Phase.COMPLETING,
            Phase.DONE,
        ]
        assert {figures.total_bytes for figures in seen} == {total}
        for index, look_ in enumerate(busy):
            figures = at[look_]
            assert figures.iteration == index
            assert figures.iteration_bytes_done == figures.iteration_bytes
            assert figures.bytes_done >= (index + 1) * 3 * FIRST - 4096
        for before, after in pairwise(seen):
            assert before.fraction <= after.fraction
            assert before.bytes_done <= after.bytes_done
        assert at["config"].fraction == 0
        assert at["release"].fraction < at["end"].fraction == 1
        assert at["pause"].dirty_rate is not None
        assert at["pause"].expected_downtime_ms is not None
        end = at["end"]
        assert sum(connection.bytes for connection in end.connections) == end.bytes_done
        assert end.bytes_done == report.bytes == received.bytes == reception.progress.bytes_done
        assert (report.iterations, reception.progress.phase) == (end.iteration + 1, Phase.DONE)
        assert destination.vm is not None
        async with destination.vm:
            await line.tick(2 * PASS)
    check(line.lines)


def _asks(migration: aiomigrate.Departure) -> Action:
    async def action() -> None:
        migration.switch_over_now()

    return action


# A VMM that does not do as it should


@pytest.mark.parametrize("kind", KINDS[:1])
async def test_its_cpu_fails_while_it_is_migrated(kind: str) -> None:
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(PASS)

        async def fail() -> None:
            vm.ram.memory[ENTRY : ENTRY + PAGE] = b"\xff" * PAGE
            with pytest.raises(RuntimeError, match="exit reason 8"):
                await vm.ended()

        source, destination = ScriptedSource(vm, {"collect 1": fail}), ScriptedDestination(line, {})
        failure, there = await move(vm, line, source=source, destination=destination)
        assert isinstance(failure, MigrationFailed)
        assert str(failure) == (
            "source: pause failed: RuntimeError(\"the guest's CPU has stopped: "
            "KVM's exit reason 8\"); the VM is with the source"
        )
        assert source.calls[-2:] == ["pause", "resume"]
        assert not source.log.on
        assert (there, destination.discarded) == (None, 1)
        with pytest.raises(RuntimeError, match="exit reason 8"):
            await vm.ended()
    check(line.lines)


class Jammed(SerialLine):
    """Its terminal takes nothing while it is `jammed`: the CPU's thread waits in it."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.free.set()
        self.waiting = threading.Event()

    def write(self, text: str) -> None:
        if not self.free.is_set():
            self.waiting.set()
            assert self.free.wait(60)
        super().write(text)

    async def jam(self) -> None:
        self.free.clear()
        while not self.waiting.is_set():
            await asyncio.sleep(0)


@pytest.mark.asyncio(loop_factories=["virtual"])
@kinds
async def test_its_pause_never_returns(kind: str, clock: VirtualClockLoop) -> None:
    line = Jammed()
    clock.watch(line.free.is_set)  # while the guest runs, the clock stands still
    async with booted(kind, line) as vm:
        await line.tick(PASS)
        source = ScriptedSource(vm, {"pause": line.jam})
        failure, there = await move(vm, line, source=source, deadlines=Deadlines(embedder_s=20))
        line.free.set()
        assert isinstance(failure, MigrationFailed)
        assert str(failure) == ("source: pause did not return in 20 s; the VM is with the source")
        assert source.calls[-2:] == ["pause", "resume"]
        assert there is None
        await line.tick(2 * PASS)
        report, there = await move(vm, line)
        assert isinstance(report, Report)
        assert there is not None
        async with there:
            await line.tick(2 * PASS)
    check(line.lines)
