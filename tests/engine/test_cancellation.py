"""Cancellation at each await of a migration, at either end, in every task of both.

One run of a small migration between `send` and `receive` for each suspension of any of their
tasks: there the source's or the destination's side is cancelled, by its own `cancel` or with the
task that embeds it. Nothing may be left behind, and the VM never has two owners.
"""

import asyncio
import json
import shutil
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

import aiomigrate
from aiomigrate import (
    Deadlines,
    Migration,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    Phase,
    ReceiveOptions,
    Report,
    SendOptions,
    StoredDestination,
    StoredSource,
)
from aiomigrate.protocol import Extension
from tests.support.awaits import Awaits
from tests.support.clock import VirtualClockLoop
from tests.support.image import PAGE, Mapping
from tests.support.leaks import Resources
from tests.support.vms import Guest, Landing, store_vm

pytestmark = pytest.mark.asyncio(loop_factories=["virtual"])

_LOCAL = "tcp:127.0.0.1:0"
_RAM = (Mapping(0, 0, 8 * PAGE, "mem0", virtio_mem=False, file_offset=0),)
_DEADLINES = Deadlines(commit_grace_s=1.0, linger_s=1.0)
_ENOUGH = 10_000.0
Side = Literal["source", "destination"]
By = Literal["migration", "embedder"]


@dataclass
class _Run:
    """One migration with a cancellation in it."""

    side: Side
    by: By
    migrations: dict[Side, Migration] = field(default_factory=dict)
    tasks: dict[Side, asyncio.Task[None]] = field(default_factory=dict)
    cancelled: bool | None = None
    committed: bool = False
    """Whether the source had handed Complete over when it was cancelled."""

    def cancel(self) -> None:
        migration = self.migrations.get(self.side)
        source = self.migrations.get("source")
        self.committed = source is not None and source._attempt.committed
        if self.by == "migration" and migration is not None:
            self.cancelled = migration.cancel()
        elif self.side in self.tasks:
            self.tasks[self.side].cancel()

    async def embed(self, side: Side, migration: Migration) -> None:
        """What an embedder does; its migration can be looked at afterwards."""
        async with migration:
            self.migrations[side] = migration
            await migration.result()

    def outcome(self, side: Side) -> Report | BaseException | None:
        """How the engine's own task ended; None: there was none."""
        migration = self.migrations.get(side)
        if migration is None:
            return None
        task = migration._task
        assert task.done()
        assert not task.cancelled(), f"{side}: it ended without saying who has the VM"
        return task.exception() or task.result()

    async def play(
        self,
        at: int,
        receive: Callable[["_Run", asyncio.Future[str]], Awaitable[None]],
        send: Callable[["_Run", str], Awaitable[None]],
    ) -> bool:
        """Run both sides to their ends; whether suspension `at` was there."""
        loop = asyncio.get_running_loop()
        address: asyncio.Future[str] = loop.create_future()
        with Awaits(at, self.cancel) as awaits:
            receiving = self.tasks["destination"] = asyncio.ensure_future(
                _task(receive(self, address))
            )
            either: list[asyncio.Future[Any]] = [address, receiving]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if address.done():
                sending = self.tasks["source"] = asyncio.ensure_future(
                    _task(send(self, address.result()))
                )
                await asyncio.wait([sending], timeout=_ENOUGH)
                assert sending.done(), "the source hangs"
                await asyncio.wait([receiving], timeout=_ENOUGH)
                if not receiving.done():
                    reception = self.migrations["destination"]
                    assert reception.progress.phase is Phase.WAITING, "the destination hangs"
                    receiving.cancel()  # no source came, and that is no fault
            await asyncio.wait(self.tasks.values())
        for task in self.tasks.values():
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, MigrationError), error
        return awaits.reached


async def _task(awaitable: Awaitable[None]) -> None:
    await awaitable


@pytest.fixture
def reported(clock: VirtualClockLoop) -> list[dict[str, Any]]:
    """What asyncio could only log: exceptions that nobody took, and the like."""
    found: list[dict[str, Any]] = []
    clock.set_exception_handler(lambda _, context: found.append(context))
    clock.patience = 0.005
    return found


async def _exhaust(
    once: Callable[[int], Awaitable[bool]], reported: list[dict[str, Any]], least: int
) -> None:
    """`once(k)` for each k until there is no such suspension; at least `least` of them."""
    await once(1 << 30)  # whatever is made once and kept
    at, gone = 0, 0
    # Runs differ by a few suspensions: the end is where three in a row had no such one.
    while gone < 3:
        before = Resources.now()
        with warnings.catch_warnings(record=True) as unclosed:
            warnings.simplefilter("always")
            gone = 0 if await once(at) else gone + 1
            await asyncio.sleep(0)
            left = Resources.left_since(before)
        assert left == [], f"cancelled at suspension {at}"
        # What nobody closed is closed when it is collected, and says so.
        assert [str(warning.message) for warning in unclosed] == [], f"suspension {at}"
        assert reported == [], f"cancelled at suspension {at}"
        at += 1
    assert at > least, f"only {at} suspensions: the driver does not see the engine's tasks"


def _running_guest() -> Guest:
    """Its hooks suspend, and it writes: a page before it is paused, a page while captured."""
    guest = Guest(_RAM)

    def writes(page: int) -> Callable[[], Awaitable[None]]:
        async def write() -> None:
            await asyncio.sleep(0)
            guest.write(page * PAGE, bytes([page]) * PAGE)
            await asyncio.sleep(0)

        return write

    for name in ("config", "collect 1", "hand_over", "take_back", "resume", "release", "lost"):
        guest.script[name] = lambda: asyncio.sleep(0)
    guest.script |= {"start": lambda: asyncio.sleep(0), "stop": lambda: asyncio.sleep(0)}
    guest.script |= {"pause": writes(6), "capture": writes(7)}
    return guest


def _landing() -> Landing:
    landing = Landing()
    for name in ("configure", "restore", "resume", "keep_paused", "confirmed", "discard"):
        landing.script[name] = lambda: asyncio.sleep(0)
    return landing


@pytest.mark.parametrize("connections", [1, 2])
@pytest.mark.parametrize("by", ["migration", "embedder"])
@pytest.mark.parametrize("side", ["source", "destination"])
async def test_cancelled_at_each_await(
    side: Side, by: By, connections: int, reported: list[dict[str, Any]]
) -> None:
    options = SendOptions(connections=connections, chunk_bytes=2 * PAGE, deadlines=_DEADLINES)
    seen: set[str] = set()

    async def once(at: int) -> bool:
        with _running_guest() as guest, _landing() as landing:
            run = _Run(side, by)

            async def receive(run: _Run, address: asyncio.Future[str]) -> None:
                async with aiomigrate.receive(
                    landing, _LOCAL, ReceiveOptions(deadlines=_DEADLINES)
                ) as reception:
                    run.migrations["destination"] = reception
                    address.set_result(str(reception.address))
                    await reception.result()

            async def send(run: _Run, address: str) -> None:
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

    await _exhaust(once, reported, least=60)
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
async def test_a_throttled_guest_cancelled_at_each_await(
    by: By, reported: list[dict[str, Any]]
) -> None:
    """It is asked to switch over within an iteration, once it is throttled."""
    options = SendOptions(chunk_bytes=2 * PAGE, deadlines=_DEADLINES)
    seen: set[str] = set()

    async def once(at: int) -> bool:
        with _Throttled(_RAM) as guest, _landing() as landing:
            run = _Run("source", by)

            async def receive(run: _Run, address: asyncio.Future[str]) -> None:
                async with aiomigrate.receive(
                    landing, _LOCAL, ReceiveOptions(deadlines=_DEADLINES)
                ) as reception:
                    run.migrations["destination"] = reception
                    address.set_result(str(reception.address))
                    await reception.result()

            async def send(run: _Run, address: str) -> None:
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

    await _exhaust(once, reported, least=60)
    assert {"failed before pause", "paused", "done"} <= seen, seen


def _judge(run: _Run, guest: Guest, landing: Landing) -> str:
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
    side: Side, by: By, tmp_path: Path, reported: list[dict[str, Any]]
) -> None:
    stored = store_vm(tmp_path / "stored", _RAM)
    options = SendOptions(chunk_bytes=4 * PAGE, deadlines=_DEADLINES)
    place = tmp_path / "place"
    into = place / "into"
    seen: set[tuple[str, bool]] = set()

    async def once(at: int) -> bool:
        place.mkdir()
        vm = place / "vm"
        shutil.copytree(stored, vm)
        run = _Run(side, by)

        async def receive(run: _Run, address: asyncio.Future[str]) -> None:
            async with (
                StoredDestination(into) as destination,
                aiomigrate.receive(
                    destination, _LOCAL, ReceiveOptions(deadlines=_DEADLINES)
                ) as reception,
            ):
                run.migrations["destination"] = reception
                address.set_result(str(reception.address))
                await reception.result()

        async def send(run: _Run, address: str) -> None:
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

    await _exhaust(once, reported, least=60)
    assert {("none", False), ("failed", False), ("done", True)} <= seen, seen


# What `Migration` promises about being cancelled, by name.


@pytest.mark.parametrize("by", ["migration", "embedder"])
async def test_a_reception_that_is_cancelled_before_its_first_step(by: By, no_leaks: None) -> None:
    """Its listener is closed though nothing of the engine's task ever ran."""
    with Landing() as landing:
        reception = aiomigrate.receive(landing, _LOCAL)
        if by == "migration":
            with pytest.raises(MigrationCancelled):
                async with reception:
                    assert reception.cancel()
        else:
            with pytest.raises(ZeroDivisionError):
                async with reception:
                    raise ZeroDivisionError
        with pytest.raises(MigrationCancelled):
            await reception.result()


async def test_a_second_cancellation_does_not_hide_who_has_the_vm(no_leaks: None) -> None:
    with _running_guest() as guest, _landing() as landing:

        async def twice() -> None:
            sending.cancel()
            asyncio.get_running_loop().call_soon(sending._task.cancel)

        guest.script["capture"] = twice
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with pytest.raises(MigrationCancelled):
                async with aiomigrate.send(guest, str(reception.address)) as sending:
                    pass
            with pytest.raises(aiomigrate.MigrationFailed):
                await reception.result()
        assert guest.running
        assert "resume" in guest.calls


async def test_cancel_says_when_it_is_too_late(no_leaks: None) -> None:
    said: list[tuple[bool, bool]] = []
    with _running_guest() as guest, _landing() as landing:

        async def resume() -> None:
            said.append((sending.cancel(), reception.cancel()))

        landing.script["resume"] = resume
        async with (
            aiomigrate.receive(landing, _LOCAL) as reception,
            aiomigrate.send(guest, str(reception.address)) as sending,
        ):
            await sending.result()
            await reception.result()
        assert said == [(False, False)]
        assert guest.ended
        assert landing.runs is True


async def test_the_answer_to_complete_is_waited_for_when_cancelled(no_leaks: None) -> None:
    with _running_guest() as guest, _landing() as landing:

        async def resume() -> None:
            sending._task.cancel()
            await asyncio.sleep(_DEADLINES.commit_grace_s / 2)

        landing.script["resume"] = resume
        async with (
            aiomigrate.receive(landing, _LOCAL) as reception,
            aiomigrate.send(
                guest, str(reception.address), SendOptions(deadlines=_DEADLINES)
            ) as sending,
        ):
            assert isinstance(await sending.result(), Report)
            assert (await reception.result()).confirmed
        assert guest.ended


async def test_but_not_for_long(no_leaks: None) -> None:
    options = SendOptions(deadlines=_DEADLINES, extensions=Extension.NONE)
    with _running_guest() as guest, _landing() as landing:

        async def resume() -> None:
            sending._task.cancel()
            await asyncio.sleep(2 * _DEADLINES.commit_grace_s)

        landing.script["resume"] = resume
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with pytest.raises(OutcomeUnknown, match="cancelled while Complete was unanswered"):
                async with aiomigrate.send(guest, str(reception.address), options) as sending:
                    pass
            # The source hung up meanwhile: that does not take the VM from where it runs.
            assert not (await reception.result()).confirmed
        assert "lost" in guest.calls
        assert not guest.running
        assert landing.runs is True


@pytest.mark.parametrize("hook", ["restore", "resume"])
async def test_then_a_destination_that_can_be_asked_is(hook: str, no_leaks: None) -> None:
    """State and Complete are in flight: what is not taken over yet stays at the source."""
    options = SendOptions(deadlines=_DEADLINES)
    with _running_guest() as guest, _landing() as landing:

        async def cancelled() -> None:
            while not sending._attempt.committed:
                await asyncio.sleep(0)
            sending._task.cancel()
            # The first one is waited out; more of them change nothing.
            await asyncio.sleep(2 * _DEADLINES.commit_grace_s)
            sending._task.cancel()
            await asyncio.sleep(_DEADLINES.commit_grace_s)

        landing.script[hook] = cancelled
        async with (
            aiomigrate.receive(landing, _LOCAL) as reception,
            aiomigrate.send(guest, str(reception.address), options) as sending,
        ):
            outcome, received = await asyncio.gather(
                sending.result(), reception.result(), return_exceptions=True
            )
        if hook == "resume":
            assert isinstance(outcome, Report)
            assert isinstance(received, Report)
            assert received.confirmed
            assert guest.ended
            return
        assert isinstance(outcome, MigrationCancelled)
        assert "Complete was unanswered; the destination says that it discarded" in outcome.what
        assert isinstance(received, MigrationFailed)
        assert guest.running
        assert "discard" in landing.calls


async def test_waiting_for_the_result_can_be_cancelled_without_harm(no_leaks: None) -> None:
    with _running_guest() as guest, _landing() as landing:
        async with (
            aiomigrate.receive(landing, _LOCAL) as reception,
            aiomigrate.send(guest, str(reception.address)) as sending,
        ):
            waiting = asyncio.create_task(sending.result())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            assert (await sending.result()).owner is Owner.DESTINATION
            await reception.result()
