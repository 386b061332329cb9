"""A source that does not know who owns the VM asks, and what it does with the answer."""

import asyncio
import select
import struct
from pathlib import Path
from typing import Any

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
from aiomigrate.journal import Standing
from aiomigrate.protocol import ALL_EXTENSIONS, Extension
from aiomigrate.transport import Connection
from tests.engine.engine_breaks import complete_breaks_off, complete_waits
from tests.engine.engine_hooks import HASTY
from tests.engine.engine_hostile import LOCAL
from tests.engine.engine_ownership import (
    ACCEPTED,
    COMMITTED,
    OWNER,
    both,
    finding,
    main_of,
    records,
    standings,
)
from tests.support.hostile import ERROR, OK, SMALL, Server
from tests.support.peer import COMPLETE, STATE
from tests.support.vms import Guest, Landing

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_lost_answer_is_settled_as_committed(tmp_path: Path) -> None:
    with Guest(SMALL) as guest, Landing() as landing:

        def prepare(sending: aiomigrate.Migration, _: aiomigrate.Reception) -> None:
            async def resume() -> None:
                assert await standings(tmp_path) == {Standing.MAY_BE_GIVEN, Standing.MAY_BE_TAKEN}
                assert not sending.cancel()
                main_of(sending).abort()

            landing.script["resume"] = resume

        sent, received = await both(guest, landing, prepare, tmp_path)
        assert guest.ended
        assert not guest.running
        assert landing.runs is True
        assert landing.calls[-1] == "confirmed"
    assert isinstance(sent, Report)
    assert isinstance(received, Report)
    assert received.confirmed
    assert await standings(tmp_path) == {Standing.THEIRS, Standing.OWNED}
    assert (await finding(tmp_path)).owner is Owner.DESTINATION


async def test_complete_that_nobody_read_is_settled_as_aborted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_now = Connection.write_now

    with Guest(SMALL) as guest, Landing() as landing:

        def prepare(_: aiomigrate.Migration, reception: aiomigrate.Reception) -> None:
            attempt: Any = reception._attempt

            def written(connection: Connection, data: bytes) -> int:
                taken = write_now(connection, data)
                main, _ = attempt._arrivals._main.result()
                main.abort()  # Complete lies there
                return taken

            monkeypatch.setattr(Connection, "write_now", written)

        sent, received = await both(guest, landing, prepare, tmp_path)
        assert guest.calls[-3:] == ["take_back", "resume", "stop"]
        assert guest.running
        assert landing.calls == ["configure", "restore", "discard"]
    assert isinstance(sent, MigrationFailed)
    assert sent.owner is Owner.SOURCE
    assert "the destination says that it discarded the VM" in sent.what
    assert isinstance(received, MigrationFailed)
    assert await standings(tmp_path) == {Standing.OURS, Standing.ABORTED}
    assert (await finding(tmp_path)).owner is Owner.SOURCE


@pytest.mark.parametrize("asked", [True, False])
async def test_a_destination_that_is_gone_for_good(asked: bool, tmp_path: Path) -> None:
    """`asked` is False of a plain peer: nobody connects again, and the outcome is unknown."""
    with Guest(SMALL) as guest:
        with Server() as server:
            options = SendOptions(journal=tmp_path, deadlines=Deadlines(settle_s=0.05))
            async with aiomigrate.send(guest, server.address, options) as sending:
                raw = await server.up_to(COMPLETE, ACCEPTED if asked else OK)
                if asked:
                    server.close()
                raw.close()
                with pytest.raises(OutcomeUnknown) as caught:
                    await sending.result()
            if not asked:
                assert not select.select([server._listener], [], [], 0)[0]
        assert guest.calls[-2:] == ["lost", "stop"]
        assert not guest.running
    assert ("nobody answered in 0.05 s" in caught.value.what) is asked
    (record,) = await records(tmp_path)
    assert (record.state, record.ownership) == (Standing.MAY_BE_GIVEN, asked)
    found = await finding(tmp_path)
    assert found.owner is Owner.UNKNOWN
    assert ("--ask" in found.advice) is asked


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_without_the_extension_all_is_as_before(side: str) -> None:
    without = ALL_EXTENSIONS & ~Extension.OWNERSHIP
    with Guest(SMALL) as guest, Landing() as landing:
        sending = SendOptions(extensions=without if side == "source" else ALL_EXTENSIONS)
        receiving = ReceiveOptions(extensions=without if side == "destination" else ALL_EXTENSIONS)
        async with aiomigrate.receive(landing, LOCAL, receiving) as reception:
            address = str(reception.address)
            async with aiomigrate.send(guest, address, sending) as migration:
                landing.script["resume"] = lambda: main_of(migration).abort()
                with pytest.raises(OutcomeUnknown, match="the answer to Complete was lost"):
                    await migration.result()
            report = await reception.result()  # at once: nobody can ask
        assert guest.calls[-2:] == ["lost", "stop"]
        assert not report.confirmed


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (ERROR, "does not know this migration"),
        (b"", "nobody answered"),
        (struct.pack("<HB5xQ", 1, 3, 0), "nobody answered"),
    ],
)
async def test_an_answer_that_says_nothing_leaves_it_unknown(reply: bytes, why: str) -> None:
    with Guest(SMALL) as guest, Server() as server:

        async def answer() -> None:
            while True:
                with await server.accept() as asking:
                    command, token = await server.request(asking)
                    assert (command, len(token)) == (OWNER, 16)
                    await asking.send(reply)

        async with aiomigrate.send(guest, server.address, HASTY) as sending:
            raw = await server.up_to(COMPLETE, ACCEPTED)
            answering = asyncio.create_task(answer())
            raw.close()
            with pytest.raises(OutcomeUnknown, match=why):
                await sending.result()
            answering.cancel()
            await asyncio.wait([answering])
        assert not guest.running


async def test_an_answer_is_asked_for_until_it_comes() -> None:
    with Guest(SMALL) as guest, Server() as server:
        async with aiomigrate.send(guest, server.address) as sending:
            raw = await server.up_to(COMPLETE, ACCEPTED)
            raw.close()
            (await server.accept()).close()
            with await server.accept() as asking:
                await server.request(asking)
                await asking.send(COMMITTED)
                assert await asking.rest() == (b"", "eof")
            assert isinstance(await sending.result(), Report)
        assert guest.ended


async def test_a_write_error_does_not_hide_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete broke off in the middle; the Error that came before says whose the VM is."""
    with Guest(SMALL) as guest, Server() as server:
        begun = complete_breaks_off(monkeypatch)
        async with aiomigrate.send(guest, server.address) as sending:
            raw = await server.up_to(STATE)
            await raw.send(OK)
            await begun.wait()
            await raw.send(ERROR)
            with pytest.raises(MigrationFailed, match="the destination refused Complete"):
                await sending.result()
            raw.close()
        assert guest.calls[-3:] == ["take_back", "resume", "stop"]


async def test_cancelled_while_complete_waits_behind_unsent_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None of it was handed over: the VM never left."""
    waiting = complete_waits(monkeypatch)
    with Guest(SMALL) as guest, Landing() as landing:

        async def cancel(sending: aiomigrate.Migration) -> None:
            await waiting.wait()
            assert sending.cancel()

        options = ReceiveOptions(linger_s=0.05)
        async with aiomigrate.receive(landing, LOCAL, options) as reception:
            async with aiomigrate.send(guest, str(reception.address)) as sending:
                cancelling = asyncio.create_task(cancel(sending))
                with pytest.raises(MigrationCancelled):
                    await sending.result()
                await cancelling
            with pytest.raises(MigrationFailed, match="reset"):
                await reception.result()
        assert guest.running
        assert "resume" not in landing.calls
