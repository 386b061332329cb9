"""Changing a running migration: real connections on the virtual clock, slowed by the rate limit."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

import aiomigrate
from aiomigrate import (
    Departure,
    GuestMemory,
    GuestNotStarted,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    Phase,
    Reception,
    Report,
    SendOptions,
    TimeoutStrategy,
    UsageError,
    VmConfig,
)
from tests.support.clock import VirtualClockLoop
from tests.support.image import PAGE
from tests.support.vms import MIB, Guest, Landing, migrate

pytestmark = [
    pytest.mark.asyncio(loop_factories=["virtual"]),
    pytest.mark.usefixtures("no_leaks"),
]
Configure = Callable[[VmConfig, str], Awaitable[GuestMemory]]
_SLOW = SendOptions(rate_limit=MIB)
"""The guest's 2 MiB of data take 2 s."""


@asynccontextmanager
async def _under_way(
    guest: Guest, landing: Landing, options: SendOptions = _SLOW
) -> AsyncIterator[tuple[Departure, Reception]]:
    async with (
        aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception,
        aiomigrate.send(guest, str(reception.address), options) as migration,
    ):
        yield migration, reception


def _assert_moved(guest: Guest, landing: Landing) -> None:
    assert landing.digest() == guest.digest() == guest.at_pause
    assert landing.runs
    assert guest.ended


# The rate limit


@pytest.mark.parametrize("connections", [1, 4])
async def test_all_connections_together_keep_the_limit(
    clock: VirtualClockLoop, connections: int
) -> None:
    began = clock.time()
    with Guest() as guest, Landing() as landing:
        options = SendOptions(rate_limit=MIB, connections=connections)
        sent, _ = await migrate(guest, landing, sending=options)
        _assert_moved(guest, landing)
    assert isinstance(sent, Report)
    # The last chunk, of 100 KiB at the most, is not waited for.
    assert clock.time() - began == pytest.approx(2.0, abs=0.11)


async def test_a_paused_guest_does_not_wait_for_the_limit(clock: VirtualClockLoop) -> None:
    with Guest() as guest, Landing() as landing:
        guest.script["pause"] = lambda: guest.write(0, b"late" * (MIB // 4))
        sent, _ = await migrate(guest, landing, sending=_SLOW)
        _assert_moved(guest, landing)
    assert isinstance(sent, Report)
    assert sent.bytes == 3 * MIB
    assert sent.downtime_ms == 0
    assert clock.time() == pytest.approx(1002.0, abs=0.11)


@pytest.mark.parametrize(("limit", "ends"), [(0, 1.0), (4 * MIB, 1.25)])
async def test_a_new_limit_holds_at_once(clock: VirtualClockLoop, limit: int, ends: float) -> None:
    with Guest() as guest, Landing() as landing:
        async with _under_way(guest, landing) as (migration, reception):
            clock.call_later(1.0, lambda: migration.tune(rate_limit=limit))
            await migration.result()
            await reception.result()
        _assert_moved(guest, landing)
    assert clock.time() - 1000.0 == pytest.approx(ends, abs=0.11)


# Switching over


@pytest.mark.parametrize("connections", [1, 4])
async def test_switch_over_within_an_iteration(clock: VirtualClockLoop, connections: int) -> None:
    """While another client looks at the progress."""
    options = SendOptions(rate_limit=MIB, connections=connections)
    with Guest() as guest, Landing() as landing:
        async with _under_way(guest, landing, options) as (migration, reception):

            def switch_over() -> None:
                guest.write(0, b"sent already" * 1000)
                guest.write(3 * MIB, b"not sent yet" * 1000)
                assert guest.running
                migration.switch_over_now()

            clock.call_later(1.0, switch_over)
            guest.script["pause"] = lambda: paused.append(clock.time())
            paused: list[float] = []
            phases = [progress.phase async for progress in migration]
            report = await migration.result()
            await reception.result()
        assert paused == [pytest.approx(1001.0)]
        assert guest.calls.index("pause") < guest.calls.index("collect 1")
        _assert_moved(guest, landing)
    assert report.decisions[-1].startswith("pause the guest: it was asked for, and ")
    # The limit does not hold for the rest.
    assert clock.time() == pytest.approx(1001.0, abs=0.2)
    assert phases[-1] is Phase.DONE
    assert Phase.PRECOPY in phases


@pytest.mark.parametrize("times", [1, 2])
async def test_switch_over_before_memory_is_sent(clock: VirtualClockLoop, times: int) -> None:
    with Guest() as guest, Landing() as landing:
        async with _under_way(guest, landing) as (migration, reception):
            assert migration.progress.phase is Phase.CONNECTING
            for _ in range(times):
                migration.switch_over_now()
            await migration.result()
            await reception.result()
        assert guest.calls[:4] == ["config", "start", "pause", "collect 1"]
        _assert_moved(guest, landing)
    assert clock.time() < 1000.2


async def test_a_changed_downtime_decides_the_next_iteration(clock: VirtualClockLoop) -> None:
    def dirty() -> None:
        if guest.running:
            guest.write(0, b"%d" % guest.collects * MIB)

    with Guest() as guest, Landing() as landing:
        for number in range(1, 10):
            guest.script[f"collect {number}"] = dirty
        async with _under_way(guest, landing) as (migration, reception):
            clock.call_later(2.5, lambda: migration.tune(downtime_ms=1100))
            report = await migration.result()
            await reception.result()
        assert guest.calls.index("pause") == guest.calls.index("collect 2") + 1
        _assert_moved(guest, landing)
    assert report.decisions[0].startswith("send another iteration: ")
    assert report.decisions[1].endswith("the limit is 1100 ms")
    assert _SLOW.downtime_ms == 300


@pytest.mark.parametrize(
    "wrong",
    [
        {"downtime_ms": 0},
        {"rate_limit": 17},
        {"throttle_cap_percent": 100},
        {"downtime_ms": 5000, "rate_limit": -1},
    ],
)
async def test_a_value_that_cannot_be_meant_changes_nothing(
    clock: VirtualClockLoop, wrong: dict[str, int]
) -> None:
    with Guest() as guest, Landing() as landing:
        async with _under_way(guest, landing) as (migration, reception):
            with pytest.raises(UsageError, match=list(wrong)[-1]):
                migration.tune(**wrong)
            assert migration._sending.tuning.options == _SLOW
            await migration.result()
            await reception.result()
    assert clock.time() == pytest.approx(1002.0, abs=0.11)


# Too late


def _refused(migration: Departure, owner: Owner) -> str:
    with pytest.raises(MigrationError) as asked:
        migration.switch_over_now()
    with pytest.raises(MigrationError) as tuned:
        migration.tune(downtime_ms=1)
    assert not migration.cancel()
    assert asked.value.owner is tuned.value.owner is owner
    assert asked.value.what == tuned.value.what
    return tuned.value.what


async def test_nothing_can_be_changed_after_the_end(clock: VirtualClockLoop) -> None:
    with Guest() as guest, Landing() as landing:
        async with _under_way(guest, landing) as (migration, reception):
            await migration.result()
            await reception.result()
            assert "is over" in _refused(migration, Owner.DESTINATION)
    assert clock.time() < 1010


async def test_nothing_can_be_changed_from_the_commit_point_on(clock: VirtualClockLoop) -> None:
    refused: list[str] = []
    with Guest() as guest, Landing() as landing:
        async with _under_way(guest, landing) as (migration, reception):
            landing.script["resume"] = lambda: refused.append(_refused(migration, Owner.UNKNOWN))
            await migration.result()
            await reception.result()
        _assert_moved(guest, landing)
    assert refused == ["the VM is changing hands: too late for that"]
    assert clock.time() < 1010


async def test_nothing_can_be_changed_once_it_fails(clock: VirtualClockLoop) -> None:
    refused: list[str] = []
    with Guest() as guest, Landing() as landing:
        async with _under_way(guest, landing) as (migration, reception):

            def stopping() -> None:
                with pytest.raises(MigrationError, match="is failing") as caught:
                    migration.switch_over_now()
                refused.append(caught.value.owner)

            guest.script["stop"] = stopping
            clock.call_later(1.0, migration.cancel)
            with pytest.raises(MigrationCancelled):
                await migration.result()
            with pytest.raises(MigrationFailed):
                await reception.result()
            with pytest.raises(MigrationError, match="is over") as after:
                migration.tune(rate_limit=0)
        assert (refused, after.value.owner) == ([Owner.SOURCE], Owner.SOURCE)
        assert guest.running
    assert clock.time() < 1010


async def test_nothing_can_be_changed_where_the_outcome_is_unknown(
    clock: VirtualClockLoop,
) -> None:
    def fail() -> None:
        raise RuntimeError("after some instructions")

    with Guest() as guest, Landing() as landing:
        landing.script["resume"] = fail
        async with _under_way(guest, landing) as (migration, reception):
            with pytest.raises(OutcomeUnknown):
                await migration.result()
            with pytest.raises(OutcomeUnknown):
                await reception.result()
            assert "is over" in _refused(migration, Owner.UNKNOWN)
    assert clock.time() < 2000


# Cancelling


@pytest.mark.parametrize("asked", [False, True])
async def test_cancelled_within_an_iteration_twice(clock: VirtualClockLoop, asked: bool) -> None:
    def cancel() -> None:
        if asked:
            migration.switch_over_now()
        assert migration.cancel()
        assert migration.cancel()

    with Guest() as guest, Landing() as landing:
        async with _under_way(guest, landing) as (migration, reception):
            clock.call_later(1.0, cancel)
            with pytest.raises(MigrationCancelled):
                await migration.result()
            with pytest.raises(MigrationFailed):
                await reception.result()
        assert guest.calls == ["config", "start", "stop"]
        assert landing.calls == ["configure", "discard"]
    assert clock.time() == pytest.approx(1001.0)


# The time limit


@pytest.mark.parametrize("connections", [1, 3])
async def test_the_time_limit_within_an_iteration(
    clock: VirtualClockLoop, connections: int
) -> None:
    options = SendOptions(rate_limit=MIB, timeout_s=1, connections=connections)
    with Guest() as guest, Landing() as landing:
        sent, received = await migrate(guest, landing, sending=options)
        assert guest.calls == ["config", "start", "stop"]
        assert landing.calls == ["configure", "discard"]
    assert isinstance(sent, MigrationFailed)
    assert "1 s are over" in sent.what
    assert isinstance(received, MigrationFailed)
    assert clock.time() == pytest.approx(1001.0, abs=1e-3)


async def test_the_time_limit_is_ignored_within_an_iteration(clock: VirtualClockLoop) -> None:
    options = SendOptions(rate_limit=MIB, timeout_s=1, timeout_strategy=TimeoutStrategy.IGNORE)
    with Guest() as guest, Landing() as landing:
        sent, _ = await migrate(guest, landing, sending=options)
        _assert_moved(guest, landing)
    assert isinstance(sent, Report)
    assert clock.time() == pytest.approx(1001.0, abs=1e-3)


# The downtime


async def test_the_downtime_is_told_by_stages(clock: VirtualClockLoop) -> None:
    def taking(seconds: float) -> Callable[[], object]:
        return lambda: clock.skip(seconds)

    with Guest() as guest, Landing() as landing:
        guest.script |= {"pause": taking(1.0), "collect 2": taking(2.0), "capture": taking(3.0)}
        guest.script |= {"hand_over": taking(4.0), "collect 3": taking(0.5)}
        landing.script |= {"restore": taking(5.0), "resume": taking(6.0)}
        sent, received = await migrate(guest, landing)
    assert isinstance(sent, Report)
    assert isinstance(received, Report)
    assert sent.downtime == aiomigrate.Downtime(
        pause_ms=1000,
        last_pass_ms=2500,
        capture_ms=3000,
        hand_over_ms=4000,
        restore_ms=5000,
        waiting_ms=6000,
    )
    assert sent.downtime_ms == 21_500
    assert received.downtime is None


# After a failure the guest can be migrated again


def _without_memory(configure: Configure) -> Configure:
    async def configured(config: VmConfig, source: str) -> GuestMemory:
        memory = await configure(config, source)
        for fd in memory.files().values():
            os.ftruncate(fd, 0)
        return memory

    return configured


def _refuses(where: str, landing: Landing, monkeypatch: pytest.MonkeyPatch) -> SendOptions:
    """Have the next migration into `landing` fail there; the options to send it with."""

    def fail() -> None:
        raise GuestNotStarted("not today")

    match where:
        case "Config":
            landing.script["configure"] = fail
        case "Memory":
            monkeypatch.setattr(landing, "configure", _without_memory(landing.configure))
        case "State":
            landing.script["restore"] = fail
        case "Complete":
            landing.script["resume"] = fail
        case "in time":
            return SendOptions(rate_limit=MIB, timeout_s=1)
    return SendOptions()


@pytest.mark.parametrize("where", ["Config", "Memory", "State", "Complete", "in time"])
async def test_a_second_migration_succeeds(
    clock: VirtualClockLoop, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Guest() as guest:
        with Landing() as landing:
            options = _refuses(where, landing, monkeypatch)
            sent, received = await migrate(guest, landing, sending=options)
            assert landing.calls[-1] == "discard"
        assert isinstance(sent, MigrationFailed)
        assert isinstance(received, MigrationFailed)
        assert sent.owner is received.owner is Owner.SOURCE
        assert where == "in time" or ("refused" in sent.what and where in sent.what)
        assert guest.running
        assert not guest.dirty.on
        assert ("take_back" in guest.calls) == (where in ("State", "Complete"))
        assert ("resume" in guest.calls) == ("pause" in guest.calls)
        guest.write(7 * PAGE, b"between the two")
        with Landing() as landing:
            sent, received = await migrate(guest, landing)
            assert isinstance(sent, Report), sent
            assert isinstance(received, Report), received
            _assert_moved(guest, landing)
    assert clock.time() < 2000
