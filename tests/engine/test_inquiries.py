"""The ownership query at a destination: whatever was lost, and in whatever order it comes, at most
one side has the VM.
"""

import asyncio
import logging
import struct
from pathlib import Path
from typing import Any

import pytest

import aiomigrate
from aiomigrate import (
    GuestNotStarted,
    Limits,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    Phase,
    ReceiveOptions,
    Report,
)
from aiomigrate.inquiries import Inquiries
from aiomigrate.journal import Standing
from tests.engine.engine_hooks import fails
from tests.engine.engine_hostile import LOCAL
from tests.engine.engine_ownership import ABORTED, COMMITTED, OWNER, TOKEN, begin, query, standings
from tests.support.hostile import ERROR, OK, SMALL, SMALL_CONFIG, Raw, memory, request
from tests.support.image import PAGE
from tests.support.peer import COMPLETE, CONFIG, START, STATE
from tests.support.turns import turns, until
from tests.support.vms import STATE_JSON, Guest, Landing, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")


async def _heard(reception: aiomigrate.Reception) -> None:
    """Wait until a query waits for its answer."""
    attempt: Any = reception._attempt
    inquiries: Inquiries = attempt._inquiries
    await until(lambda: len(inquiries._tasks) > 1 and not inquiries._strangers)


async def test_complete_lies_in_the_old_socket_when_the_query_comes(tmp_path: Path) -> None:
    """It is never executed, although the main connection lives."""
    journal = tmp_path / "journal"
    restoring = asyncio.Event()

    async def restore() -> None:
        restoring.set()
        await asyncio.Event().wait()

    with Landing() as landing:
        landing.script["restore"] = restore
        options = ReceiveOptions(journal=journal)
        async with aiomigrate.receive(landing, LOCAL, options) as reception:
            with await Raw.connect(reception.address) as raw:
                await begin(raw, up_to_state=False)
                await raw.ask(request(CONFIG, SMALL_CONFIG))
                await raw.ask(memory([(0, PAGE)]))
                await raw.send(request(STATE, STATE_JSON) + request(COMPLETE))
                await restoring.wait()
                assert await query(reception.address) == ABORTED
                assert await standings(journal) == {Standing.ABORTED}
                assert (await raw.rest())[0] == b""
            with pytest.raises(MigrationFailed, match="asked who owns the VM") as caught:
                await reception.result()
        assert caught.value.owner is Owner.SOURCE
        assert landing.calls == ["configure", "restore", "discard"]


async def test_complete_behind_a_query_is_refused_or_never_read() -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await begin(raw)
                assert await query(reception.address) == ABORTED
                await raw.send_in_vain(request(COMPLETE))
                assert (await raw.rest())[0] in (b"", ERROR)
            with pytest.raises(MigrationFailed):
                await reception.result()
        assert landing.calls == ["configure", "restore", "discard"]


@pytest.mark.parametrize("configured", [False, True])
async def test_a_query_while_memory_comes_is_a_fence_too(configured: bool) -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await begin(raw, up_to_state=False)
                if configured:
                    await raw.ask(request(CONFIG, SMALL_CONFIG))
                assert await query(reception.address) == ABORTED
            with pytest.raises(MigrationFailed, match="asked who owns the VM"):
                await reception.result()
        assert landing.calls == (["configure", "discard"] if configured else [])


@pytest.mark.parametrize("fails", [False, True])
async def test_a_query_during_resume_waits_for_its_end(fails: bool) -> None:
    resuming, go_on = asyncio.Event(), asyncio.Event()

    async def resume() -> None:
        resuming.set()
        await go_on.wait()
        if fails:
            raise GuestNotStarted("no KVM")

    with Landing() as landing:
        landing.script["resume"] = resume
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await begin(raw)
                await raw.send(request(COMPLETE))
                await resuming.wait()
                with await Raw.connect(reception.address) as asking:
                    await asking.send(request(OWNER, TOKEN))
                    await _heard(reception)
                    await turns()
                    assert not asking.unread()
                    assert not reception.cancel()
                    go_on.set()
                    assert await asking.receive(16) == (ABORTED if fails else COMMITTED)
                assert await raw.receive(16) == (ERROR if fails else OK)
            if fails:
                with pytest.raises(MigrationFailed, match="no KVM"):
                    await reception.result()
            else:
                assert isinstance(await reception.result(), Report)
        assert ("discard" in landing.calls) is fails
        assert landing.runs is (None if fails else True)


async def test_a_resume_that_failed_half_way_has_no_answer() -> None:
    resuming, asked = asyncio.Event(), asyncio.Event()

    async def resume() -> None:
        resuming.set()
        await asked.wait()
        raise RuntimeError("half way")

    with Landing() as landing:
        landing.script["resume"] = resume
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await begin(raw)
                await raw.send(request(COMPLETE))
                await resuming.wait()
                with await Raw.connect(reception.address) as asking:
                    await asking.send(request(OWNER, TOKEN))
                    await _heard(reception)
                    asked.set()
                    assert await asking.rest() == (b"", "eof")
                assert await raw.rest() == (b"", "eof")
            with pytest.raises(OutcomeUnknown, match="half way"):
                await reception.result()
        assert "discard" not in landing.calls


async def test_state_is_refused_while_complete_is_written_already() -> None:
    """And the source goes without having read that: it is told when it asks."""
    with Landing() as landing:
        landing.script["restore"] = fails(RuntimeError("no room"))
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await begin(raw, up_to_state=False)
                await raw.ask(request(CONFIG, SMALL_CONFIG))
                await raw.ask(memory([(0, PAGE)]))
                await raw.send(request(STATE, STATE_JSON) + request(COMPLETE))
                assert await raw.receive(16) == ERROR
                raw.close(reset=True)
            assert await query(reception.address) == ABORTED
            with pytest.raises(MigrationFailed, match="no room"):
                await reception.result()
        assert landing.calls == ["configure", "restore", "discard"]


async def test_an_error_that_was_read_needs_no_query() -> None:
    """The listener is gone as soon as that is certain: this test would not end in time else."""
    with Guest(SMALL) as guest, Landing() as landing:
        landing.script["restore"] = fails(RuntimeError("no room"))
        sent, received = await migrate(guest, landing)
        assert guest.running
    assert isinstance(sent, MigrationFailed)
    assert isinstance(received, MigrationFailed)


async def test_a_source_that_asks_has_read_the_answer() -> None:
    """Its clean end confirms the VM, though the main connection was reset."""
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                landing.script["resume"] = lambda: raw.close(reset=True)
                await begin(raw)
                await raw.send(request(COMPLETE))
                await until(lambda: landing.runs)
                assert reception.progress.phase is Phase.COMPLETING
            assert await query(reception.address) == COMMITTED
            report = await reception.result()
        assert landing.calls[-1] == "confirmed"
    assert report.confirmed


async def test_strangers_and_other_tokens_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await begin(raw, up_to_state=False)
                assert await query(reception.address, bytes(16)) == ERROR
                await raw.ask(request(CONFIG, SMALL_CONFIG))
                await raw.ask(memory([(0, PAGE)]))
                await raw.ask(request(STATE, STATE_JSON))
                assert await query(reception.address, bytes(16)) == ERROR
                for junk in (b"GET / HTTP/1.1\r\n\r\n", struct.pack("<H", 1), request(START)):
                    with await Raw.connect(reception.address) as stranger:
                        await stranger.send(junk)
                        stranger.end()
                        assert (await stranger.rest())[0] == b""
                silent = await Raw.connect(reception.address)
                await raw.ask(request(COMPLETE))
                raw.end()
                assert (await raw.rest())[0] == b""
            report = await reception.result()
            silent.close()
        assert landing.runs is True
    assert report.confirmed
    assert "asks about another migration" in caplog.text


async def test_those_with_another_token_are_not_held_without_limit() -> None:
    """Each is given time to read its Error, but not without end: there are only so many
    descriptors.
    """
    with Landing() as landing:
        options = ReceiveOptions(limits=Limits(max_strangers=2))
        async with aiomigrate.receive(landing, LOCAL, options) as reception:
            attempt: Any = reception._attempt
            with await Raw.connect(reception.address) as raw:
                await begin(raw)
                strangers = []
                for _ in range(6):
                    stranger = await Raw.connect(reception.address)
                    strangers.append(stranger)
                    await stranger.send(request(OWNER, bytes(16)))
                    assert await stranger.receive(16) == ERROR
                await turns()
                assert len(attempt._inquiries._tasks) == 1 + 2  # who accepts is one of them
                assert await query(reception.address) == ABORTED
                for stranger in strangers:
                    stranger.close()
            with pytest.raises(MigrationFailed):
                await reception.result()
