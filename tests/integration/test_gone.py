"""One of the two processes of a migration is killed: before it, at every stage of it, and after it.

The other one is this process, so that what it makes of that can be looked at; what is killed is a
process of examples.tiny_vmm. Who is left goes on: its guest runs and moves, or the place is free
for a new one.
"""

import pytest

import aiomigrate
from aiomigrate import MigrationFailed, Owner, ReceiveOptions, Report, SendOptions
from aiomigrate.testing import Direction, FaultRelay, Stall
from tests.support.terminal import GUEST, Terminal
from tests.support.terminal import PASS as THERE_PASS
from tests.support.tiny import (
    NO_KVM,
    PASS,
    Action,
    ScriptedDestination,
    ScriptedSource,
    SerialLine,
    booted,
    check,
    logs_dirt,
    move,
)

pytestmark = pytest.mark.usefixtures("no_leaks")
BRIEFLY = ReceiveOptions(linger_s=0.5)
"""From State on a destination stays for a source that may ask who has the VM: this one is dead."""
LISTENING = ("receive", "tcp:127.0.0.1:0")
MEMORY = 1 << 20
"""So many bytes of a main connection have come in the middle of iteration 0: the guest has 7 MiB,
and all of them are written."""


async def address_of(there: Terminal) -> str:
    return (await there.expect("listening on (.*)"))[1]


# The destination is gone


@pytest.mark.parametrize(
    ("kind", "connections"), [pytest.param("kvm", 4, marks=NO_KVM), ("thread", 1)]
)
async def test_the_destination_is_gone(kind: str, connections: int) -> None:
    """At every stage: the guest runs on, and at last it moves to one that stays."""
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(2 * PASS)
        for when in ("before", "collect 1", "capture", "hand_over"):
            async with Terminal(*LISTENING) as there:
                address = await address_of(there)
                script: dict[str, Action] = {}
                if when == "before":
                    await there.kill()
                else:
                    script[when] = there.kill
                source = ScriptedSource(vm, script)
                options = SendOptions(connections=connections)
                async with aiomigrate.send(source, address, options) as migration:
                    with pytest.raises(MigrationFailed) as failed:
                        await migration.result()
            assert failed.value.owner is Owner.SOURCE
            assert address in str(failed.value)
            assert (when == "before") == (source.calls == [])
            assert vm.runs
            assert not source.log.on
            assert not logs_dirt(vm)
            assert ("take_back" in source.calls) == (when == "hand_over")
            await line.tick(2 * PASS)
        report, landed = await move(vm, line, connections=connections)
        assert isinstance(report, Report)
        assert landed is not None
        async with landed:
            await line.tick(2 * PASS)
    check(line.lines)
    assert line.lines.count("booted") == 1


async def test_the_destination_is_gone_afterwards() -> None:
    """The guest is gone with it: it was not ours any more, and is not resumed."""
    line = SerialLine()
    async with booted("thread", line) as vm, Terminal(*LISTENING) as there:
        await line.tick(2 * PASS)
        source = ScriptedSource(vm, {"release": there.kill})
        async with aiomigrate.send(source, await address_of(there)) as migration:
            report = await migration.result()
        assert report.owner is Owner.DESTINATION
        assert "resume" not in source.calls
        assert not vm.runs
        here = list(line.lines)
        check([*here, *there.serial()])
        assert line.lines == here


# The source is gone


@pytest.mark.parametrize(
    ("when", "connections"), [("configure", 1), ("memory", 1), ("memory", 4), ("restore", 4)]
)
async def test_the_source_is_gone(when: str, connections: int) -> None:
    """What came of its guest is discarded, and another guest can come."""
    line = SerialLine()
    script: dict[str, Action] = {}
    destination = ScriptedDestination(line, script)
    async with Terminal(*GUEST) as here:
        await here.expect(r"\| ", count=2 * THERE_PASS)
        async with aiomigrate.receive(destination, "tcp:127.0.0.1:0", BRIEFLY) as reception:
            carrier = 0 if connections == 1 else 1
            stall = Stall(connection=carrier, direction=Direction.UP, after=MEMORY)
            faults = [stall] if when == "memory" else []
            async with FaultRelay(str(reception.address), faults=faults) as relay:
                if when != "memory":
                    script[when] = here.kill
                here.type(f"send {relay.address} {connections}")
                if when == "memory":
                    await relay.struck(carrier)
                    await here.kill()
                    relay.release()
                with pytest.raises(MigrationFailed) as failed:
                    await reception.result()
    assert failed.value.owner is Owner.SOURCE
    assert destination.discarded == 1
    assert destination.vm is None
    assert line.lines == []
    async with booted("thread", line) as vm:
        report, landed = await move(vm, line, connections=connections)
        assert isinstance(report, Report)
        assert landed is not None
        async with landed:
            await line.tick(2 * PASS)
    check(line.lines)


async def test_the_source_is_gone_once_it_has_asked_for_the_end() -> None:
    """Complete is being executed: the guest is the destination's, and runs there."""
    line = SerialLine()
    async with Terminal(*GUEST) as here:
        await here.expect(r"\| ", count=2 * THERE_PASS)

        async def kill() -> None:
            await here.kill()
            line.lines += here.serial()

        destination = ScriptedDestination(line, {"resume": kill})
        async with aiomigrate.receive(destination, "tcp:127.0.0.1:0", BRIEFLY) as reception:
            here.type(f"send {reception.address}")
            report = await reception.result()
    assert report.running
    assert not report.confirmed
    assert destination.vm is not None
    async with destination.vm:
        await line.tick(2 * THERE_PASS)
    check(line.lines)


# The same VMM


async def test_a_vmm_does_not_receive_while_it_has_a_guest() -> None:
    """So a guest that is sent to where it is finds nobody, and runs on."""
    async with aiomigrate.receive(ScriptedDestination(SerialLine(), {}), "tcp:127.0.0.1:0") as free:
        address = str(free.address)
        free.cancel()
        with pytest.raises(aiomigrate.MigrationCancelled):
            await free.result()
    async with Terminal(*GUEST) as vmm:
        await vmm.expect(r"\| ", count=THERE_PASS)
        vmm.type(f"receive {address}")
        await vmm.expect("not now: a guest is here, and none is migrated to where it is")
        vmm.type(f"send {address}")
        refused = await vmm.expect("failed: (.*)")
        assert refused[1] == (
            f"{address}: cannot connect: Connection refused; the VM is with the source"
        )
        await vmm.expect(r"\| ", begin=len(vmm.lines), count=2 * THERE_PASS)
        await vmm.end()
    check(vmm.serial())
