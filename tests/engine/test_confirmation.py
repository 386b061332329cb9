"""Confirm: the destination stays to be asked until the source has said that it read its Ok."""

import asyncio
import struct
from pathlib import Path
from typing import Any

import pytest

import aiomigrate
from aiomigrate import Deadlines, OutcomeUnknown, ReceiveOptions, Report, SendOptions
from aiomigrate.journal import Standing
from aiomigrate.protocol import ALL_EXTENSIONS, Event, Extension
from aiomigrate.requests import read_request
from aiomigrate.testing import Cut, Direction, FaultRelay
from aiomigrate.transport import Connection
from tests.engine.engine_hostile import LOCAL
from tests.engine.engine_ownership import COMMITTED, OWNER, SESSION, TOKEN, main_of, standings
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import ERROR, OK, SMALL, SMALL_CONFIG, Raw, Server, memory, request
from tests.support.image import PAGE
from tests.support.peer import COMPLETE, CONFIG, START, STATE
from tests.support.tap import tap
from tests.support.vms import STATE_JSON, Guest, Landing

pytestmark = pytest.mark.usefixtures("no_leaks")
virtual = pytest.mark.asyncio(loop_factories=["virtual"])

CONFIRM = 0x8005
WITHOUT = ALL_EXTENSIONS & ~Extension.CONFIRMATION
ASKED = Extension.SESSION | Extension.OWNERSHIP | Extension.CONFIRMATION
ACCEPTED = struct.pack("<HIHQ", 1, ASKED, 0, 0)
OFFER = struct.pack("<HI", 0, ASKED)


# Both are ours


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ALL_EXTENSIONS, ALL_EXTENSIONS),
        (WITHOUT, ALL_EXTENSIONS),
        (ALL_EXTENSIONS, WITHOUT),
        (Extension.NONE, ALL_EXTENSIONS),
        (ALL_EXTENSIONS, Extension.NONE),
    ],
)
@pytest.mark.parametrize("resumes", [True, False])
async def test_the_source_knows(ours: Extension, theirs: Extension, resumes: bool) -> None:
    """By Confirm, or else by its clean end, after which the destination does not stay: this test
    would not end in time else.
    """
    with Guest(SMALL, resumes=resumes) as guest, Landing() as landing:
        async with (
            aiomigrate.receive(landing, LOCAL, ReceiveOptions(extensions=theirs)) as reception,
            tap(str(reception.address)) as (address, connections),
            aiomigrate.send(guest, address, SendOptions(extensions=ours)) as sending,
        ):
            sent, received = await asyncio.gather(sending.result(), reception.result())
        assert guest.ended
        assert landing.calls[-1] == "confirmed"
    assert isinstance(sent, Report)
    assert received.confirmed
    confirmed = bytes(connections[0].up).endswith(request(CONFIRM))
    assert confirmed is (ours == theirs == ALL_EXTENSIONS)


async def _answers_of(extensions: Extension) -> int:
    """How many answers a migration of SMALL gets on its main connection."""
    with Guest(SMALL) as guest, Landing() as landing:
        async with (
            aiomigrate.receive(landing, LOCAL) as reception,
            tap(str(reception.address)) as (address, connections),
            aiomigrate.send(guest, address, SendOptions(extensions=extensions)) as sending,
        ):
            await asyncio.gather(sending.result(), reception.result())
    return len(connections[0].down) // 16


@pytest.mark.parametrize("extensions", [ALL_EXTENSIONS, WITHOUT], ids=["with", "without"])
async def test_something_that_ends_tcp_loses_the_answer_to_complete(extensions: Extension) -> None:
    """The destination reads a clean end all the same, as if the source had closed: it took that
    for a confirmation, and was not there any more to be asked.
    """
    last = await _answers_of(extensions) - (Extension.CONFIRMATION in extensions)
    cut = Cut(connection=0, direction=Direction.DOWN, after=16 * (last - 1))
    sending = SendOptions(extensions=extensions, deadlines=Deadlines(settle_s=2.0))
    with Guest(SMALL) as guest, Landing() as landing:
        async with (
            aiomigrate.receive(landing, LOCAL) as reception,
            FaultRelay(str(reception.address), faults=[cut]) as relay,
        ):
            async with aiomigrate.send(guest, relay.address, sending) as migration:
                if Extension.CONFIRMATION not in extensions:
                    with pytest.raises(OutcomeUnknown):
                        await migration.result()
                    assert not guest.ended
                else:
                    assert isinstance(await migration.result(), Report)
                    assert guest.ended
            received = await reception.result()
        assert landing.runs is True
        assert not guest.running
    assert received.confirmed


# The destination


async def _up_to_complete(raw: Raw) -> None:
    await raw.send(request(START, headers=OFFER))
    assert await raw.receive(16) == ACCEPTED
    await raw.ask(request(SESSION, TOKEN))
    await raw.ask(request(CONFIG, SMALL_CONFIG))
    await raw.ask(memory([(0, PAGE)]))
    await raw.send(request(STATE, STATE_JSON) + request(COMPLETE))
    assert await raw.receive(32) == OK * 2


@virtual
@pytest.mark.parametrize("last", [b"", request(CONFIRM)[:9], request(STATE)])
async def test_a_clean_end_is_no_confirmation(last: bytes, clock: VirtualClockLoop) -> None:
    with Landing() as landing:
        options = ReceiveOptions(linger_s=7)
        async with aiomigrate.receive(landing, LOCAL, options) as reception:
            with await Raw.connect(reception.address) as raw:
                await _up_to_complete(raw)
                await raw.send(last)
                raw.end()
                began = clock.time()
                report = await reception.result()
            assert clock.time() - began == pytest.approx(7, abs=0.5)
        assert landing.runs is True
        assert "confirmed" not in landing.calls
    assert not report.confirmed


async def test_after_a_clean_end_it_stays_to_be_asked() -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await _up_to_complete(raw)
            with await Raw.connect(reception.address) as asking:
                await asking.send(request(OWNER, TOKEN))
                assert await asking.receive(16) == COMMITTED
            assert (await reception.result()).confirmed


async def test_it_is_confirmed_though_the_answer_to_that_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def read_and_lose(connection: Connection, *arguments: Any) -> Event:
        event: Event = await read_request(connection, *arguments)
        connection.abort()
        return event

    monkeypatch.setattr("aiomigrate.takeover.read_request", read_and_lose)
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await _up_to_complete(raw)
                await raw.send(request(CONFIRM))
                assert await raw.rest() == (b"", "reset")
            assert (await reception.result()).confirmed


async def test_confirm_is_answered() -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await _up_to_complete(raw)
                await raw.send(request(CONFIRM))
                assert await raw.rest() == (OK, "eof")
            assert (await reception.result()).confirmed


# The source


@pytest.mark.parametrize("how", ["ok", "error", "nonsense", "end", "reset"])
async def test_whatever_becomes_of_the_confirmation(how: str) -> None:
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address) as sending:
            with await server.up_to(CONFIRM, ACCEPTED) as raw:
                assert not sending.cancel()
                said = {"ok": OK, "error": ERROR, "nonsense": bytes(16)}
                await raw.send(said.get(how, b""))
                if how not in said:
                    raw.close(reset=how == "reset")
                assert isinstance(await sending.result(), Report)
        assert guest.ended
        assert "resume" not in guest.calls


@virtual
async def test_its_answer_is_waited_for_briefly(clock: VirtualClockLoop) -> None:
    options = SendOptions(deadlines=Deadlines(confirm_s=3))
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address, options) as sending:
            with await server.up_to(CONFIRM, ACCEPTED):
                began = clock.time()
                report = await sending.result()
        assert clock.time() - began == pytest.approx(3, abs=0.1)
        assert guest.ended
    assert report.downtime_ms < 3000  # the guest runs there meanwhile


async def test_cancelled_while_it_is_confirmed() -> None:
    """There is nothing left to cancel."""
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address) as sending:
            with await server.up_to(CONFIRM, ACCEPTED) as raw:
                sending._task.cancel()
                await asyncio.sleep(0)
                await raw.send(OK)
                assert isinstance(await sending.result(), Report)
        assert guest.ended
        assert "resume" not in guest.calls


async def test_what_is_confirmed_is_on_the_disk(tmp_path: Path) -> None:
    """The destination goes with it: nobody could be asked any more."""
    with Guest(SMALL) as guest, Server() as server:
        options = SendOptions(journal=tmp_path)
        async with aiomigrate.send(guest, server.address, options) as sending:
            with await server.up_to(CONFIRM, ACCEPTED) as raw:
                assert await standings(tmp_path) == {Standing.THEIRS}
                await raw.send(OK)
                await sending.result()


async def test_nothing_is_confirmed_to_a_destination_that_was_asked() -> None:
    """Its main connection is gone, and it knows."""
    with Guest(SMALL) as guest, Landing() as landing:
        async with (
            aiomigrate.receive(landing, LOCAL) as reception,
            aiomigrate.send(guest, str(reception.address)) as sending,
        ):
            landing.script["resume"] = lambda: main_of(sending).abort()
            sent, received = await asyncio.gather(sending.result(), reception.result())
        assert guest.ended
    assert isinstance(sent, Report)
    assert received.confirmed
