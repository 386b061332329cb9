"""Cancellation at each await of a migration, at either end, in every task of both.

One run of a small migration between `send` and `receive` for each suspension of any of their
tasks: there the source's or the destination's side is cancelled, by its own `cancel` or with the
task that embeds it. Nothing may be left behind, and the VM never has two owners.
"""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import (
    MigrationCancelled,
    MigrationError,
    OutcomeUnknown,
    Owner,
    Report,
    SendOptions,
    StoredDestination,
    StoredSource,
)
from tests.engine.engine_cancelling import (
    DEADLINES,
    RAM,
    By,
    Run,
    Side,
    exhaust,
    running_guest,
    suspending_landing,
)
from tests.support.clock import VirtualClockLoop
from tests.support.image import PAGE
from tests.support.vms import Guest, Landing, store_vm

pytestmark = [
    pytest.mark.asyncio(loop_factories=["virtual"]),
    pytest.mark.no_cover,  # one migration hundreds of times; other tests count what it passes
]


@pytest.mark.parametrize("connections", [1, 2])
@pytest.mark.parametrize("by", ["migration", "embedder"])
@pytest.mark.parametrize("side", ["source", "destination"])
async def test_cancelled_at_each_await(
    side: Side, by: By, connections: int, clock: VirtualClockLoop
) -> None:
    options = SendOptions(connections=connections, chunk_bytes=2 * PAGE, deadlines=DEADLINES)
    seen: set[str] = set()

    async def once(at: int) -> bool:
        with running_guest() as guest, suspending_landing() as landing:
            run = Run(side, by)

            async def receive(run: Run, address: asyncio.Future[str]) -> None:
                await run.take(landing, address)

            async def send(run: Run, address: str) -> None:
                await run.embed("source", aiomigrate.send(guest, address, options))

            reached = await run.play(at, receive, send)
            try:
                seen.add(_judge(run, guest, landing))
            except AssertionError as error:
                error.add_note(f"cancelled at suspension {at}")
                error.add_note(f"source: {run.outcome('source')!r}, {guest.calls}")
                error.add_note(f"destination: {run.outcome('destination')!r}, {landing.calls}")
                raise
        return reached

    await exhaust(once, clock, least=60)
    # Each way that a migration can end was met.
    assert {"failed before pause", "taken back", "done"} <= seen, seen
    # A destination that is cancelled stays to say that the VM is the source's.
    assert side == "source" or "unknown" not in seen, seen


class _Throttled(Guest):
    """Writes all of its memory in each iteration until it is throttled."""

    percent = 0

    async def throttle(self, percent: int) -> None:
        await self._hook(f"throttle {percent}")
        self.percent = percent

    async def _hook(self, name: str) -> None:
        if name.startswith("collect ") and not self.percent and self.running:
            asyncio.get_running_loop().skip(1.0)  # type: ignore[attr-defined]
            for page in range(8):
                self.write(page * PAGE, bytes([self.collects]) * PAGE)
        await super()._hook(name)


@pytest.mark.parametrize("by", ["migration", "embedder"])
async def test_a_throttled_guest_cancelled_at_each_await(by: By, clock: VirtualClockLoop) -> None:
    """It is asked to switch over within an iteration, once it is throttled."""
    options = SendOptions(chunk_bytes=2 * PAGE, deadlines=DEADLINES)
    seen: set[str] = set()

    async def once(at: int) -> bool:
        with _Throttled(RAM) as guest, suspending_landing() as landing:
            run = Run("source", by)

            async def receive(run: Run, address: asyncio.Future[str]) -> None:
                await run.take(landing, address)

            async def send(run: Run, address: str) -> None:
                migration = aiomigrate.send(guest, address, options)
                guest.script["throttle 20"] = migration.switch_over_now
                await run.embed("source", migration)

            reached = await run.play(at, receive, send)
            try:
                seen.add(_judge(run, guest, landing))
                throttled = [call for call in guest.calls if call.startswith("throttle")]
                assert throttled in ([], ["throttle 20", "throttle 0"])
                if "resume" in guest.calls and throttled:
                    assert guest.calls.index("throttle 0") < guest.calls.index("resume")
            except AssertionError as error:
                error.add_note(f"cancelled at suspension {at}")
                error.add_note(f"source: {run.outcome('source')!r}, {guest.calls}")
                raise
        return reached

    await exhaust(once, clock, least=60)
    assert {"failed before pause", "paused", "done"} <= seen, seen


def _judge(run: Run, guest: Guest, landing: Landing) -> str:
    """Assert that exactly one side has the VM and says so; how it ended."""
    sent, received = run.outcome("source"), run.outcome("destination")
    arrived = landing.runs is not None and not landing.discarded
    assert not (guest.running and arrived), "two owners"
    assert guest.running or guest.ended or "lost" in guest.calls, "no owner, and nobody says so"
    assert not guest.dirty.on
    for call in ("pause", "take_back", "resume", "release", "lost", "stop"):
        assert guest.calls.count(call) <= 1
    assert landing.calls.count("discard") <= 1

    if run.cancelled:
        assert not isinstance(run.outcome(run.side), Report), "it was cancelled in vain"
    if isinstance(received, Report):
        assert arrived
    elif isinstance(received, OutcomeUnknown):
        assert not landing.discarded
    elif received is not None:
        assert isinstance(received, MigrationError)
        assert received.owner is Owner.SOURCE
        assert not arrived
        assert ("discard" in landing.calls) == ("configure" in landing.calls)

    if sent is None:
        assert guest.calls == []
        return "nothing"
    if isinstance(sent, Report):
        assert arrived
        assert isinstance(received, Report)
        assert guest.ended
        assert "lost" not in guest.calls
        assert landing.digest() == guest.digest()
        return "done"
    assert isinstance(sent, MigrationError)
    assert "release" not in guest.calls
    if isinstance(sent, OutcomeUnknown):
        assert sent.owner is Owner.UNKNOWN
        assert "lost" in guest.calls
        assert not guest.running
        assert "take_back" not in guest.calls
        return "unknown"
    assert sent.owner is Owner.SOURCE
    assert not arrived
    known = "refused" in str(sent) or "it discarded the VM" in str(sent)
    assert not run.committed or known, "resumed after Complete"
    assert "lost" not in guest.calls
    assert ("resume" in guest.calls) == ("pause" in guest.calls)
    assert ("take_back" in guest.calls) == ("hand_over" in guest.calls)
    if run.side == "source":
        assert isinstance(sent, MigrationCancelled)
        if run.by == "migration":
            assert run.cancelled
    return (
        "taken back"
        if "hand_over" in guest.calls
        else ("paused" if "pause" in guest.calls else "failed before pause")
    )


@pytest.mark.parametrize("by", ["migration", "embedder"])
@pytest.mark.parametrize("side", ["source", "destination"])
async def test_directories_cancelled_at_each_await(
    side: Side, by: By, tmp_path: Path, clock: VirtualClockLoop
) -> None:
    stored = store_vm(tmp_path / "stored", RAM)
    options = SendOptions(chunk_bytes=4 * PAGE, deadlines=DEADLINES)
    place = tmp_path / "place"
    into = place / "into"
    seen: set[tuple[str, bool]] = set()

    async def once(at: int) -> bool:
        place.mkdir()
        vm = place / "vm"
        shutil.copytree(stored, vm)
        run = Run(side, by)

        async def receive(run: Run, address: asyncio.Future[str]) -> None:
            async with StoredDestination(into) as destination:
                await run.take(destination, address)

        async def send(run: Run, address: str) -> None:
            async with StoredSource(vm, resume=True) as source:
                await run.embed("source", aiomigrate.send(source, address, options))

        reached = await run.play(at, receive, send)
        names = {entry.name for entry in place.iterdir()}
        assert names <= {"vm", "into"}, f"{at}: {names}"
        given = "none"
        if (vm / "aiomigrate.json").exists():
            given = json.loads((vm / "aiomigrate.json").read_bytes())["history"][-1]["outcome"]
        arrived = into.exists()
        seen.add((given, arrived))
        context = (at, given, arrived, run.outcome("source"), run.outcome("destination"))
        sent, received = run.outcome("source"), run.outcome("destination")
        assert arrived == isinstance(received, Report), context
        if run.cancelled:
            assert not isinstance(run.outcome(side), Report), context
        if isinstance(sent, Report):
            assert (given, arrived) == ("done", True), context
        elif isinstance(sent, OutcomeUnknown):
            assert given == "unknown", context
        else:
            assert given in ("none", "failed"), context
            assert not arrived, context
        if arrived:
            assert (into / "memory-0").read_bytes() == (vm / "memory-0").read_bytes(), context
        shutil.rmtree(place)
        return reached

    await exhaust(once, clock, least=60)
    assert {("none", False), ("failed", False), ("done", True)} <= seen, seen
