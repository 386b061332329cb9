"""State and Complete in one flight: a round trip less, and the VM still has one owner."""

import asyncio
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import (
    Deadlines,
    MigrationCancelled,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    ReceiveOptions,
    Report,
    SendOptions,
)
from aiomigrate.journal import Journal, Record, Standing
from aiomigrate.protocol import Extension, SourceMain
from tests.engine.engine_breaks import complete_breaks_off, complete_waits
from tests.engine.engine_hooks import fails
from tests.engine.engine_hostile import LOCAL
from tests.engine.engine_ownership import ABORTED, ACCEPTED, COMMITTED, OWNER, standings
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import ERROR, OK, SMALL, SMALL_CONFIG, Raw, Server, memory, request
from tests.support.image import PAGE
from tests.support.peer import ABANDON, COMPLETE, CONFIG, START, STATE
from tests.support.turns import turns
from tests.support.vms import STATE_JSON, Guest, Landing, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")

FAST = SendOptions(fast_switchover=True)
# How the flight comes about: a peer that can be asked, or a plain one and the option.
FLIGHTS = [(ACCEPTED, SendOptions()), (OK, FAST)]
flying = pytest.mark.parametrize(("start", "options"), FLIGHTS, ids=["asked", "plain"])


def _assert_taken_back(guest: Guest) -> None:
    assert guest.calls[-3:] == ["take_back", "resume", "stop"]
    assert guest.running


# Who flies


@flying
async def test_complete_does_not_wait_for_the_answer_to_state(
    start: bytes, options: SendOptions
) -> None:
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address, options) as sending:
            with await server.up_to(STATE, start) as raw:
                assert await server.request(raw) == (COMPLETE, b"")
                await raw.send(OK * 2)
                assert isinstance(await sending.result(), Report)
        assert guest.ended


@pytest.mark.parametrize("start", [OK, struct.pack("<HIHQ", 1, Extension.SESSION, 0, 0)])
async def test_towards_a_peer_that_cannot_be_asked_it_waits(start: bytes) -> None:
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address) as sending:
            with await server.up_to(STATE, start) as raw:
                await turns()
                assert not raw.unread()
                assert sending.progress.phase == "switchover"
                await raw.send(OK)
                assert await server.request(raw) == (COMPLETE, b"")
                await raw.send(OK)
                await sending.result()


# State is refused while Complete is written


@flying
async def test_an_error_to_state_says_that_complete_was_not_executed(
    start: bytes, options: SendOptions
) -> None:
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address, options) as sending:
            with await server.up_to(STATE, start) as raw:
                assert await server.request(raw) == (COMPLETE, b"")
                assert not sending.cancel()
                await raw.send(ERROR)
                # In good order, so that the destination knows that it was read; nobody asks.
                assert await raw.rest() == (b"", "eof")
                with pytest.raises(MigrationFailed, match="the destination refused State"):
                    await sending.result()
        _assert_taken_back(guest)


@flying
@pytest.mark.parametrize("reset", [False, True])
async def test_a_lost_answer_to_state_leaves_the_owner_in_doubt(
    reset: bool, start: bytes, options: SendOptions
) -> None:
    """A destination that can be asked settles that; it is the price towards a plain one."""
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address, options) as sending:
            raw = await server.up_to(STATE, start)
            assert await server.request(raw) == (COMPLETE, b"")
            raw.close(reset=reset)
            if start == ACCEPTED:
                with await server.accept() as asking:
                    command, _ = await server.request(asking)
                    assert command == OWNER
                    await asking.send(ABORTED)
                with pytest.raises(MigrationFailed, match="State, with Complete behind it"):
                    await sending.result()
                _assert_taken_back(guest)
                return
            with pytest.raises(OutcomeUnknown, match="State, with Complete behind it, was lost"):
                await sending.result()
        assert guest.calls[-2:] == ["lost", "stop"]
        assert not guest.running


async def test_the_query_may_say_that_it_was_taken_over() -> None:
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address) as sending:
            raw = await server.up_to(STATE, ACCEPTED)
            await raw.send(OK)
            assert await server.request(raw) == (COMPLETE, b"")
            raw.close()
            with await server.accept() as asking:
                await server.request(asking)
                await asking.send(COMMITTED)
            assert isinstance(await sending.result(), Report)
        assert guest.ended


async def test_cancelled_in_flight_it_is_unknown_if_nobody_answers() -> None:
    options = SendOptions(deadlines=Deadlines(commit_grace_s=0.05, settle_s=0.05))
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address, options) as sending:
            with await server.up_to(STATE, ACCEPTED) as raw:
                assert await server.request(raw) == (COMPLETE, b"")
                sending._task.cancel()
                with pytest.raises(OutcomeUnknown, match=r"cancelled while .* asked who owns the"):
                    await sending.result()
        assert guest.calls[-2:] == ["lost", "stop"]
        assert not guest.running


@flying
async def test_a_write_error_does_not_hide_the_error_to_state(
    start: bytes, options: SendOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete broke off in the middle; what came before says whose the VM is."""
    with Guest(SMALL) as guest, Server() as server:
        begun = complete_breaks_off(monkeypatch)
        async with aiomigrate.send(guest, server.address, options) as sending:
            with await server.up_to(STATE, start) as raw:
                await begun.wait()
                await raw.send(ERROR)
                with pytest.raises(MigrationFailed, match="the destination refused State"):
                    await sending.result()
        _assert_taken_back(guest)


async def test_complete_behind_a_refused_state_is_never_executed() -> None:
    """Both lie in the destination's socket, and the source stays to read its Error."""
    restoring, go_on = asyncio.Event(), asyncio.Event()

    async def restore() -> None:
        restoring.set()
        await go_on.wait()
        raise RuntimeError("no room")

    with Landing() as landing:
        landing.script["restore"] = restore
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await raw.ask(request(START))
                await raw.ask(request(CONFIG, SMALL_CONFIG))
                await raw.ask(memory([(0, PAGE)]))
                await raw.send(request(STATE, STATE_JSON) + request(COMPLETE))
                await restoring.wait()
                await turns()
                go_on.set()
                assert await raw.receive(16) == ERROR
                assert not await raw.receive(1)
                raw.end()
            with pytest.raises(MigrationFailed, match="no room"):
                await reception.result()
        assert landing.calls == ["configure", "restore", "discard"]


@pytest.mark.parametrize("options", [SendOptions(), SendOptions(extensions=Extension.NONE), FAST])
async def test_a_state_that_our_destination_refuses(options: SendOptions) -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        landing.script["restore"] = fails(RuntimeError("no room"))
        sent, received = await migrate(guest, landing, sending=options)
        _assert_taken_back(guest)
        assert landing.calls == ["configure", "restore", "discard"]
    assert isinstance(sent, MigrationFailed)
    assert "the destination refused State" in sent.what
    assert isinstance(received, MigrationFailed)


# Before the commit point


def _block_journal(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The disk takes no record until this is set."""
    written = threading.Event()
    write = Journal.write

    def wait(journal: Journal, record: Record) -> None:
        written.wait()
        write(journal, record)

    monkeypatch.setattr(Journal, "write", wait)
    return written


@flying
async def test_nothing_of_complete_leaves_before_the_record_is_on_the_disk(
    start: bytes, options: SendOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = _block_journal(monkeypatch)
    options = SendOptions(fast_switchover=options.fast_switchover, journal=tmp_path)
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address, options) as sending:
            with await server.up_to(STATE, start) as raw:
                await turns()
                assert not raw.unread()
                written.set()
                assert await server.request(raw) == (COMPLETE, b"")
                assert await standings(tmp_path) == {Standing.MAY_BE_GIVEN}
                await raw.send(OK * 2)
                await sending.result()


@flying
async def test_cancelled_behind_state_it_is_abandoned(
    start: bytes, options: SendOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = _block_journal(monkeypatch)
    options = SendOptions(fast_switchover=options.fast_switchover, journal=tmp_path)
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address, options) as sending:
            with await server.up_to(STATE, start) as raw:
                assert sending.cancel()
                await turns()
                assert not raw.unread()
                written.set()  # a job that has begun is waited for
                await raw.send(OK)
                assert await server.request(raw) == (ABANDON, b"")
                await raw.send(OK)
                with pytest.raises(MigrationCancelled):
                    await sending.result()
        _assert_taken_back(guest)


@flying
@pytest.mark.parametrize("said", [ERROR, OK, b""], ids=["error", "ok", "nothing"])
async def test_what_was_said_before_a_hang_up_is_told(
    said: bytes,
    start: bytes,
    options: SendOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing of Complete is handed to a connection whose other end is gone."""
    written = _block_journal(monkeypatch)
    options = SendOptions(fast_switchover=options.fast_switchover, journal=tmp_path)
    original = SourceMain.complete
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address, options) as sending:
            raw = await server.up_to(STATE, start)

            def complete(core: SourceMain, *, paused: bool) -> bytes:
                raw._sock.send(said)  # the kernel has it before this returns
                raw.close()
                return original(core, paused=paused)

            monkeypatch.setattr(SourceMain, "complete", complete)
            written.set()
            with pytest.raises(MigrationFailed) as caught:
                await sending.result()
        told = "refused State" if said == ERROR else "hung up before Complete was sent"
        assert f"the destination {told}" in caught.value.what
        assert caught.value.owner is Owner.SOURCE
        _assert_taken_back(guest)


@flying
async def test_an_error_to_state_while_the_disk_is_slow(
    start: bytes, options: SendOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = _block_journal(monkeypatch)
    options = SendOptions(fast_switchover=options.fast_switchover, journal=tmp_path)
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address, options) as sending:
            with await server.up_to(STATE, start) as raw:
                await raw.send(ERROR)
                await turns()
                written.set()
                assert await raw.rest() == (b"", "eof")
                with pytest.raises(MigrationFailed, match="the destination refused State"):
                    await sending.result()
        _assert_taken_back(guest)


@flying
async def test_cancelled_while_complete_waits_behind_state(
    start: bytes, options: SendOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket is full of State: none of Complete was handed over, and the VM never left."""
    waiting = complete_waits(monkeypatch)
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address, options) as sending:
            with await server.up_to(STATE, start) as raw:
                await waiting.wait()
                assert sending.cancel()
                with pytest.raises(MigrationCancelled):
                    await sending.result()
                assert await raw.rest() == (b"", "reset")
        _assert_taken_back(guest)


# What the report says


@pytest.mark.asyncio(loop_factories=["virtual"])
@pytest.mark.parametrize(
    "options",
    [SendOptions(), SendOptions(extensions=Extension.NONE), FAST],
    ids=["extensions", "plain", "fast"],
)
async def test_restoring_and_waiting_are_told_apart(
    options: SendOptions, clock: VirtualClockLoop
) -> None:
    def taking(seconds: float) -> Callable[[], object]:
        return lambda: clock.skip(seconds)

    with Guest(SMALL) as guest, Landing() as landing:
        guest.script |= {"pause": taking(1.0), "collect 2": taking(2.0), "capture": taking(3.0)}
        guest.script |= {"hand_over": taking(4.0)}
        landing.script |= {"restore": taking(5.0), "resume": taking(6.0)}
        receiving = ReceiveOptions(extensions=options.extensions)
        sent, _ = await migrate(guest, landing, sending=options, receiving=receiving)
    assert isinstance(sent, Report)
    assert sent.downtime == aiomigrate.Downtime(
        pause_ms=1000,
        last_pass_ms=2000,
        capture_ms=3000,
        hand_over_ms=4000,
        restore_ms=5000,
        waiting_ms=6000,
    )
    assert sent.downtime_ms == 21_000


@pytest.mark.asyncio(loop_factories=["virtual"])
async def test_both_answers_at_once_are_all_restoring(clock: VirtualClockLoop) -> None:
    """The source sees no moment between them."""
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address, FAST) as sending:
            with await server.up_to(STATE, OK) as raw:
                assert await server.request(raw) == (COMPLETE, b"")
                clock.skip(7.0)
                await raw.send(OK * 2)
                report = await sending.result()
    assert report.downtime is not None
    assert (report.downtime.restore_ms, report.downtime.waiting_ms) == (7000, 0)
