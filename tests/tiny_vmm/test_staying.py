"""A migration of a running guest fails before the commit point: the guest runs on where it was, its
memory as it should be and nothing of the migration left on it, and moves later.

Before each look into the dirty log the guest has written all of its pages: it does not converge, is
throttled, and then the switchover is asked for.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

import aiomigrate
from aiomigrate import (
    Departure,
    Extension,
    GuestMemory,
    GuestNotStarted,
    MigrationCancelled,
    MigrationFailed,
    Owner,
    Phase,
    Progress,
    Report,
    SendOptions,
    VmConfig,
)
from aiomigrate.tiny_vmm.vmm import Power, Vm
from tests.support.clock import VirtualClockLoop
from tests.support.tiny import (
    KINDS,
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
kinds = pytest.mark.parametrize("kind", KINDS)
BUSY_LOOKS = 5
"""After as many the guest is throttled: the first and four without progress."""
CALLS = [
    "config",
    *(f"collect {n}" for n in range(1, BUSY_LOOKS + 1)),
    "throttle 20",
    "pause",
    f"collect {BUSY_LOOKS + 1}",
    "capture",
    "hand_over",
    f"collect {BUSY_LOOKS + 2}",
]
"""All that is asked of a source before State."""
UNDONE = ["throttle 0", "take_back", "resume"]
"""And after a failure then."""
BUSY_BYTES = 3 << 20
"""Written before each look: all pages of the guest."""
BY_DESTINATION = {"configure": "config", "restore": CALLS[-1]}
"""What the source was last asked for when its destination is."""


class WithoutMemory(ScriptedDestination):
    """Its memory is taken away from it: what is written to it is refused by the kernel."""

    async def configure(self, config: VmConfig, source: str) -> GuestMemory:
        memory = await super().configure(config, source)
        assert self.vm is not None
        os.ftruncate(self.vm.ram.fd, 0)
        return memory


@dataclass
class Scene:
    """A guest that has looked at all of its memory, and a script of its migration."""

    vm: Vm
    line: SerialLine
    script: dict[str, Action] = field(default_factory=dict)
    script_there: dict[str, Action] = field(default_factory=dict)
    migration: Departure = field(init=False)

    def __post_init__(self) -> None:
        self.source = ScriptedSource(self.vm, self.script)
        self.destination = ScriptedDestination(self.line, self.script_there)

    def never_converges(self) -> None:
        """Until it is throttled."""
        for n in range(1, BUSY_LOOKS + 1):
            self.script[f"collect {n}"] = self.write_all
        self.script["throttle 20"] = self.switch_over

    async def write_all(self) -> None:
        await self.line.tick(PASS + 1)

    async def switch_over(self) -> None:
        self.migration.switch_over_now()

    async def cancel(self) -> None:
        assert self.migration.cancel()
        await asyncio.sleep(0)  # here it strikes

    async def cancel_in_the_middle_of_memory(self) -> None:
        async for progress in self.migration:
            if progress.bytes_done:
                assert progress.bytes_done < progress.iteration_bytes
                await self.cancel()
                return

    async def fails(self, meanwhile: Action | None = None, **options: Any) -> MigrationFailed:
        """Migrate, in vain."""
        options = {"downtime_ms": 1} | options
        async with aiomigrate.receive(self.destination, "tcp:127.0.0.1:0") as reception:
            self.migration = aiomigrate.send(
                self.source, str(reception.address), SendOptions(**options)
            )
            async with self.migration, asyncio.TaskGroup() as group:
                if meanwhile is not None:
                    group.create_task(_of(meanwhile))
                (sent,) = await asyncio.gather(self.migration.result(), return_exceptions=True)
                if reception.progress.phase is Phase.WAITING:  # for a source that has given up
                    reception.cancel()
                (received,) = await asyncio.gather(reception.result(), return_exceptions=True)
        assert isinstance(sent, MigrationFailed), sent
        assert isinstance(received, MigrationFailed), received
        assert sent.owner is received.owner is Owner.SOURCE
        assert self.migration.progress.phase is Phase.FAILED
        return sent


@asynccontextmanager
async def staying(kind: str, would_be: Sequence[str] = CALLS) -> AsyncIterator[Scene]:
    """What was done in it to the guest, as far as it came in the order of `would_be`, is undone:
    the guest runs on, and moves.
    """
    line = SerialLine()
    async with booted(kind, line) as vm:
        await line.tick(2 * PASS)
        scene = Scene(vm, line)
        yield scene
        calls = scene.source.calls
        assert vm.runs
        assert vm.power is Power.ON
        assert vm.throttle_percent == 0
        assert not scene.source.log.on
        assert not logs_dirt(vm)
        asked = [call for call in calls if call in would_be]
        assert asked == list(would_be[: len(asked)])
        undone = {"throttle 20": "throttle 0", "hand_over": "take_back", "pause": "resume"}
        assert calls[len(asked) :] == [undo for did, undo in undone.items() if did in asked]
        assert scene.destination.vm is None
        await line.tick(2 * PASS)
        report, there = await move(vm, line)
        assert isinstance(report, Report)
        assert there is not None
        async with there:
            await line.tick(2 * PASS)
    check(line.lines)
    assert line.lines.count("booted") == 1


def raises(error: Exception) -> Action:
    async def action() -> None:
        raise error

    return action


@kinds
@pytest.mark.parametrize(
    ("request_", "hook", "error"),
    [
        ("Config", "configure", ValueError("this machine has no place for it")),
        ("State", "restore", ValueError("this CPU cannot take it")),
        ("Complete", "resume", GuestNotStarted("KVM cannot run it")),
    ],
)
async def test_the_destination_refuses(
    kind: str, request_: str, hook: str, error: Exception
) -> None:
    async with staying(kind) as scene:
        scene.never_converges()
        scene.script_there[hook] = raises(error)
        failure = await scene.fails(connections=2)
        assert f"the destination refused {request_}" in str(failure)
        assert scene.source.calls[-1] == ("config" if hook == "configure" else "resume")
        assert scene.destination.discarded == 1


@kinds
async def test_the_destination_refuses_memory(kind: str) -> None:
    async with staying(kind) as scene:
        scene.never_converges()
        scene.destination = WithoutMemory(scene.line, scene.script_there)
        failure = await scene.fails()
        assert "the destination refused a Memory" in str(failure)
        assert scene.source.calls == ["config"]
        assert scene.destination.discarded == 1


@pytest.mark.asyncio(loop_factories=["virtual"])
@kinds
async def test_the_time_is_over(kind: str, clock: VirtualClockLoop) -> None:
    clock.watch(lambda: True)  # it goes on when the test says so

    looks = [f"collect {n}" for n in range(1, 9)]
    calls = ["config", *looks[:BUSY_LOOKS], "throttle 20", *looks[BUSY_LOOKS:]]
    async with staying(kind, calls) as scene:

        async def a_second() -> None:
            await scene.write_all()
            clock.skip(1.0)

        for look in looks:
            scene.script[look] = a_second
        failure = await scene.fails(timeout_s=8, throttle_cap_percent=20)
        assert "pre-copy did not converge" in str(failure)
        assert "8 s are over" in str(failure)
        assert scene.source.calls == [*calls, "throttle 0"]


@kinds
@pytest.mark.parametrize("when", [*CALLS[:2], *CALLS[BUSY_LOOKS + 1 :], *BY_DESTINATION])
async def test_the_embedder_cancels(kind: str, when: str) -> None:
    async with staying(kind) as scene:
        scene.never_converges()
        script = scene.script_there if when in BY_DESTINATION else scene.script
        script[when] = scene.cancel
        # A state and a Complete in one flight could not be called back while the VM is restored.
        failure = await scene.fails(extensions=Extension.NONE)
        assert isinstance(failure, MigrationCancelled)
        asked = [call for call in scene.source.calls if call in CALLS]
        assert asked[-1] == BY_DESTINATION.get(when, when)


@kinds
async def test_the_embedder_cancels_at_once(kind: str) -> None:
    async with staying(kind) as scene:
        failure = await scene.fails(scene.cancel, connections=2)
        assert isinstance(failure, MigrationCancelled)
        assert scene.source.calls == []


@kinds
async def test_the_embedder_cancels_twice(kind: str) -> None:
    """What is being undone is undone to its end."""
    async with staying(kind) as scene:
        scene.never_converges()
        again: list[bool] = []

        async def cancel_again() -> None:
            again.append(scene.migration.cancel())
            await asyncio.sleep(0)

        scene.script |= {"hand_over": scene.cancel} | dict.fromkeys(UNDONE, cancel_again)
        failure = await scene.fails()
        assert isinstance(failure, MigrationCancelled)
        assert scene.source.calls[-3:] == UNDONE
        assert len(again) == len(UNDONE)
        assert not scene.migration.cancel()  # it is over


@kinds
@pytest.mark.parametrize("when", ["collect 3", "capture"])
async def test_the_embedder_cancels_while_others_look_on(kind: str, when: str) -> None:
    async with staying(kind) as scene:
        scene.never_converges()
        scene.script[when] = scene.cancel
        seen: list[list[Progress]] = []

        async def look_on() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(iterate())

        async def iterate() -> None:
            seen.append([progress async for progress in scene.migration])

        failure = await scene.fails(look_on)
        assert isinstance(failure, MigrationCancelled)
        last, *others = (progress[-1] for progress in seen)
        assert last.phase is Phase.FAILED
        assert [other.phase for other in others] == [Phase.FAILED] * 2
        assert last.total_bytes == len(scene.vm.ram.memory)
        assert last.bytes_done >= last.iteration * BUSY_BYTES > 0
        assert 0 < last.fraction < 1


@kinds
async def test_the_embedder_cancels_in_the_middle_of_memory(kind: str) -> None:
    async with staying(kind) as scene:
        failure = await scene.fails(
            scene.cancel_in_the_middle_of_memory, rate_limit=1 << 20, chunk_bytes=64 << 10
        )
        assert isinstance(failure, MigrationCancelled)
        assert scene.source.calls == ["config"]


async def _of(action: Action) -> None:
    await action()
