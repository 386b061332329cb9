"""The ownership query: whatever was lost, and in whatever order it comes, at most one side has the
VM, and the source learns which.
"""

import asyncio
import logging
import secrets
import select
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aiomigrate
from aiomigrate import (
    Deadlines,
    GuestNotStarted,
    Limits,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    Phase,
    ReceiveOptions,
    Report,
    SendOptions,
)
from aiomigrate.inquiries import Inquiries
from aiomigrate.journal import Record, Standing, list_journal, read_record
from aiomigrate.outcome import Finding, find_all
from aiomigrate.protocol import ALL_EXTENSIONS, Extension
from aiomigrate.transport import Connection
from tests.engine.engine_breaks import complete_breaks_off
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import ERROR, OK, SMALL, SMALL_CONFIG, Raw, Server, memory, request
from tests.support.image import PAGE
from tests.support.peer import ABANDON, COMPLETE, CONFIG, START, STATE
from tests.support.vms import STATE_JSON, Guest, Landing, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")
virtual = pytest.mark.asyncio(loop_factories=["virtual"])

_LOCAL = "tcp:127.0.0.1:0"
SESSION, JOIN, OWNER = 0x8000, 0x8001, 0x8003
OFFER = struct.pack("<HI", 0, Extension.SESSION | Extension.OWNERSHIP)
ACCEPTED = struct.pack("<HIHQ", 1, Extension.SESSION | Extension.OWNERSHIP, 0, 0)
COMMITTED, ABORTED = (struct.pack("<HB5xQ", 1, verdict, 0) for verdict in (1, 2))
TOKEN = secrets.token_bytes(16)
HASTY = SendOptions(deadlines=Deadlines(settle_s=0.05))


async def _begin(raw: Raw, *, up_to_state: bool = True) -> None:
    """A migration with a token, by hand."""
    await raw.send(request(START, headers=OFFER))
    assert await raw.receive(16) == ACCEPTED
    await raw.ask(request(SESSION, TOKEN))
    if up_to_state:
        await raw.ask(request(CONFIG, SMALL_CONFIG))
        await raw.ask(memory([(0, PAGE)]))
        await raw.ask(request(STATE, STATE_JSON))


async def _query(address: object, token: bytes = TOKEN) -> bytes:
    """What a query is answered, whole; the connection is closed in good order."""
    with await Raw.connect(address) as raw:
        await raw.send(request(OWNER, token))
        return await raw.receive(16)


async def _turns() -> None:
    """Whatever can go on does."""
    for _ in range(50):
        await asyncio.sleep(0)


def _fails(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


async def _records(journal: Path) -> list[Record]:
    """Those of the only migration."""

    def read() -> list[Record]:
        (names,) = list_journal(journal).values()
        return [read_record(journal, name)[0] for name in names]

    return await asyncio.to_thread(read)


async def _standings(journal: Path) -> set[Standing]:
    return {record.state for record in await _records(journal)}


async def _finding(journal: Path) -> Finding:
    (finding,) = await asyncio.to_thread(find_all, journal)
    return finding


async def _heard(reception: aiomigrate.Reception) -> None:
    """Wait until a query waits for its answer."""
    attempt: Any = reception._attempt
    inquiries: Inquiries = attempt._inquiries
    while len(inquiries._tasks) < 2 or inquiries._strangers:
        await asyncio.sleep(0)


# The destination is asked


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
        async with aiomigrate.receive(landing, _LOCAL, options) as reception:
            with await Raw.connect(reception.address) as raw:
                await _begin(raw, up_to_state=False)
                await raw.ask(request(CONFIG, SMALL_CONFIG))
                await raw.ask(memory([(0, PAGE)]))
                await raw.send(request(STATE, STATE_JSON) + request(COMPLETE))
                await restoring.wait()
                assert await _query(reception.address) == ABORTED
                assert await _standings(journal) == {Standing.ABORTED}
                assert (await raw.rest())[0] == b""
            with pytest.raises(MigrationFailed, match="asked who owns the VM") as caught:
                await reception.result()
        assert caught.value.owner is Owner.SOURCE
        assert landing.calls == ["configure", "restore", "discard"]


async def test_complete_behind_a_query_is_refused_or_never_read() -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await _begin(raw)
                assert await _query(reception.address) == ABORTED
                await raw.send_in_vain(request(COMPLETE))
                assert (await raw.rest())[0] in (b"", ERROR)
            with pytest.raises(MigrationFailed):
                await reception.result()
        assert landing.calls == ["configure", "restore", "discard"]


@pytest.mark.parametrize("configured", [False, True])
async def test_a_query_while_memory_comes_is_a_fence_too(configured: bool) -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await _begin(raw, up_to_state=False)
                if configured:
                    await raw.ask(request(CONFIG, SMALL_CONFIG))
                assert await _query(reception.address) == ABORTED
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
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await _begin(raw)
                await raw.send(request(COMPLETE))
                await resuming.wait()
                with await Raw.connect(reception.address) as asking:
                    await asking.send(request(OWNER, TOKEN))
                    await _heard(reception)
                    await _turns()
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
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await _begin(raw)
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
        landing.script["restore"] = _fails(RuntimeError("no room"))
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await _begin(raw, up_to_state=False)
                await raw.ask(request(CONFIG, SMALL_CONFIG))
                await raw.ask(memory([(0, PAGE)]))
                await raw.send(request(STATE, STATE_JSON) + request(COMPLETE))
                assert await raw.receive(16) == ERROR
                raw.close(reset=True)
            assert await _query(reception.address) == ABORTED
            with pytest.raises(MigrationFailed, match="no room"):
                await reception.result()
        assert landing.calls == ["configure", "restore", "discard"]


async def test_an_error_that_was_read_needs_no_query() -> None:
    """The listener is gone as soon as that is certain: this test would not end in time else."""
    with Guest(SMALL) as guest, Landing() as landing:
        landing.script["restore"] = _fails(RuntimeError("no room"))
        sent, received = await migrate(guest, landing)
        assert guest.running
    assert isinstance(sent, MigrationFailed)
    assert isinstance(received, MigrationFailed)


async def test_a_source_that_asks_has_read_the_answer() -> None:
    """Its clean end confirms the VM, though the main connection was reset."""
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                landing.script["resume"] = lambda: raw.close(reset=True)
                await _begin(raw)
                await raw.send(request(COMPLETE))
                while reception.progress.phase is not Phase.COMPLETING or landing.runs is None:
                    await asyncio.sleep(0)
            assert await _query(reception.address) == COMMITTED
            report = await reception.result()
        assert landing.calls[-1] == "confirmed"
    assert report.confirmed


async def test_strangers_and_other_tokens_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await _begin(raw, up_to_state=False)
                assert await _query(reception.address, bytes(16)) == ERROR
                await raw.ask(request(CONFIG, SMALL_CONFIG))
                await raw.ask(memory([(0, PAGE)]))
                await raw.ask(request(STATE, STATE_JSON))
                assert await _query(reception.address, bytes(16)) == ERROR
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
        async with aiomigrate.receive(landing, _LOCAL, options) as reception:
            attempt: Any = reception._attempt
            with await Raw.connect(reception.address) as raw:
                await _begin(raw)
                strangers = []
                for _ in range(6):
                    stranger = await Raw.connect(reception.address)
                    strangers.append(stranger)
                    await stranger.send(request(OWNER, bytes(16)))
                    assert await stranger.receive(16) == ERROR
                await _turns()
                assert len(attempt._inquiries._tasks) == 1 + 2  # who accepts is one of them
                assert await _query(reception.address) == ABORTED
                for stranger in strangers:
                    stranger.close()
            with pytest.raises(MigrationFailed):
                await reception.result()


@virtual
async def test_it_does_not_stay_for_ever(clock: VirtualClockLoop) -> None:
    with Landing() as landing:
        options = ReceiveOptions(linger_s=7)
        async with aiomigrate.receive(landing, _LOCAL, options) as reception:
            with await Raw.connect(reception.address) as raw:
                await _begin(raw)
                raw.close(reset=True)
            began = clock.time()
            with pytest.raises(MigrationFailed):
                await reception.result()
            assert clock.time() - began == pytest.approx(7, abs=0.5)


# State may have been sent, with Complete behind it, and not have come


async def _with_memory(raw: Raw) -> None:
    await _begin(raw, up_to_state=False)
    await raw.ask(request(CONFIG, SMALL_CONFIG))
    await raw.ask(memory([(0, PAGE)]))


@pytest.mark.parametrize("came", [b"", request(STATE, STATE_JSON)[:9], request(STATE, b"x")[:16]])
async def test_it_stays_where_state_may_be_lost(came: bytes) -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await _with_memory(raw)
                await raw.send(came)
                raw.end()
                assert (await raw.rest())[0] == b""
            assert await _query(reception.address) == ABORTED
            with pytest.raises(MigrationFailed):
                await reception.result()
        assert landing.calls == ["configure", "discard"]


@pytest.mark.parametrize("where", ["no memory", "main", "lane"])
async def test_it_does_not_stay_where_state_cannot_have_been_sent(where: str) -> None:
    """Not before memory, nor while some is unanswered: this test would not end in time else."""
    cut = memory([(0, PAGE)])[:-1]
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                if where == "no memory":
                    await _begin(raw, up_to_state=False)
                    await raw.ask(request(CONFIG, SMALL_CONFIG))
                else:
                    await _with_memory(raw)
                if where == "main":
                    await raw.send(cut)
                with await Raw.connect(reception.address) as lane:
                    if where == "lane":
                        await lane.ask(request(JOIN, TOKEN + bytes([1, 0, 0, 0])))
                        await lane.send(cut)
                        while not _begun(reception):
                            await asyncio.sleep(0)
                    raw.end()
                    with pytest.raises(MigrationFailed):
                        await reception.result()
        assert landing.calls == ["configure", "discard"]


def _begun(reception: aiomigrate.Reception) -> bool:
    """Whether a lane is in the middle of a request."""
    attempt: Any = reception._attempt
    return any(lane.begun for lane in attempt._arrivals.lanes)


async def test_staying_after_a_failure_can_be_cancelled() -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await _begin(raw)
                raw.close(reset=True)
            while reception.progress.phase is not Phase.FAILED:
                await asyncio.sleep(0)
            await _turns()
            assert reception.cancel()
            with pytest.raises(MigrationFailed) as caught:
                await reception.result()
        assert not isinstance(caught.value, MigrationCancelled)
        assert landing.calls == ["configure", "restore", "discard"]


# The source asks


def _main(migration: aiomigrate.Migration) -> Any:
    """The connection of a source's main core."""
    attempt: Any = migration._attempt
    return attempt._main.connection


async def _both(
    guest: Guest,
    landing: Landing,
    prepare: Callable[[aiomigrate.Migration, aiomigrate.Reception], None],
    journal: Path,
) -> tuple[Report | BaseException, Report | BaseException]:
    """A migration of which `prepare` sees both ends before it begins."""
    receiving = ReceiveOptions(journal=journal)
    async with aiomigrate.receive(landing, _LOCAL, receiving) as reception:
        options = SendOptions(journal=journal)
        async with aiomigrate.send(guest, str(reception.address), options) as sending:
            prepare(sending, reception)
            results = await asyncio.gather(
                sending.result(), reception.result(), return_exceptions=True
            )
    return results[0], results[1]


async def test_a_lost_answer_is_settled_as_committed(tmp_path: Path) -> None:
    with Guest(SMALL) as guest, Landing() as landing:

        def prepare(sending: aiomigrate.Migration, _: aiomigrate.Reception) -> None:
            async def resume() -> None:
                assert await _standings(tmp_path) == {Standing.MAY_BE_GIVEN, Standing.MAY_BE_TAKEN}
                assert not sending.cancel()
                _main(sending).abort()

            landing.script["resume"] = resume

        sent, received = await _both(guest, landing, prepare, tmp_path)
        assert guest.ended
        assert not guest.running
        assert landing.runs is True
        assert landing.calls[-1] == "confirmed"
    assert isinstance(sent, Report)
    assert isinstance(received, Report)
    assert received.confirmed
    assert await _standings(tmp_path) == {Standing.THEIRS, Standing.CONFIRMED}
    finding = await _finding(tmp_path)
    assert finding.owner is Owner.DESTINATION


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

        sent, received = await _both(guest, landing, prepare, tmp_path)
        assert guest.calls[-3:] == ["take_back", "resume", "stop"]
        assert guest.running
        assert landing.calls == ["configure", "restore", "discard"]
    assert isinstance(sent, MigrationFailed)
    assert sent.owner is Owner.SOURCE
    assert "the destination says that it discarded the VM" in sent.what
    assert isinstance(received, MigrationFailed)
    assert await _standings(tmp_path) == {Standing.OURS, Standing.ABORTED}
    finding = await _finding(tmp_path)
    assert finding.owner is Owner.SOURCE


async def _serve_up_to_complete(server: Server, *, start: bytes) -> Raw:
    """A destination by hand, which has read Complete and not answered it."""
    raw = await server.accept()
    while True:
        command, _ = await server.take_memory(raw)
        if command == COMPLETE:
            return raw
        await raw.send(start if command == START else OK)


@pytest.mark.parametrize("asked", [True, False])
async def test_a_destination_that_is_gone_for_good(asked: bool, tmp_path: Path) -> None:
    """`asked` is False of a plain peer: nobody connects again, and the outcome is unknown."""
    with Guest(SMALL) as guest:
        with Server() as server:
            options = SendOptions(journal=tmp_path, deadlines=Deadlines(settle_s=0.05))
            async with aiomigrate.send(guest, server.address, options) as sending:
                raw = await _serve_up_to_complete(server, start=ACCEPTED if asked else OK)
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
    (record,) = await _records(tmp_path)
    assert (record.state, record.ownership) == (Standing.MAY_BE_GIVEN, asked)
    finding = await _finding(tmp_path)
    assert finding.owner is Owner.UNKNOWN
    assert ("--ask" in finding.advice) is asked


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_without_the_extension_all_is_as_before(side: str) -> None:
    without = ALL_EXTENSIONS & ~Extension.OWNERSHIP
    with Guest(SMALL) as guest, Landing() as landing:
        sending = SendOptions(extensions=without if side == "source" else ALL_EXTENSIONS)
        receiving = ReceiveOptions(extensions=without if side == "destination" else ALL_EXTENSIONS)
        async with aiomigrate.receive(landing, _LOCAL, receiving) as reception:
            address = str(reception.address)
            async with aiomigrate.send(guest, address, sending) as migration:
                landing.script["resume"] = lambda: _main(migration).abort()
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
            raw = await _serve_up_to_complete(server, start=ACCEPTED)
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
            raw = await _serve_up_to_complete(server, start=ACCEPTED)
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
            raw = await server.accept()
            while (await server.take_memory(raw))[0] != STATE:
                await raw.send(OK)
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
    waiting = asyncio.Event()

    async def writable(connection: Connection, within: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Connection, "write_now", lambda *_: 0)
    monkeypatch.setattr(Connection, "writable", writable)
    with Guest(SMALL) as guest, Landing() as landing:

        async def cancel(sending: aiomigrate.Migration) -> None:
            await waiting.wait()
            assert sending.cancel()

        options = ReceiveOptions(linger_s=0.05)
        async with aiomigrate.receive(landing, _LOCAL, options) as reception:
            async with aiomigrate.send(guest, str(reception.address)) as sending:
                cancelling = asyncio.create_task(cancel(sending))
                with pytest.raises(MigrationCancelled):
                    await sending.result()
                await cancelling
            with pytest.raises(MigrationFailed, match="reset"):
                await reception.result()
        assert guest.running
        assert "resume" not in landing.calls


# Journals


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_a_journal_that_cannot_be_written_fails_in_time(side: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    journal = tmp_path / "file" / "journal"
    with Guest(SMALL) as guest, Landing() as landing:
        sent, received = await migrate(
            guest,
            landing,
            sending=SendOptions(journal=journal if side == "source" else None),
            receiving=ReceiveOptions(journal=journal if side == "destination" else None),
        )
        assert guest.running
        assert "resume" not in landing.calls
        assert landing.calls[-1] == "discard"
    for error in (sent, received):
        assert isinstance(error, MigrationError)
        assert error.owner is Owner.SOURCE
    blamed = sent if side == "source" else received
    assert f"{side}: journal {journal}: writing failed: Not a directory" in str(blamed)


@pytest.mark.parametrize("fails", [False, True])
async def test_what_cannot_be_noted_afterwards_is_a_warning(fails: bool, tmp_path: Path) -> None:
    with Guest(SMALL) as guest, Landing() as landing:

        def move() -> None:
            (tmp_path / "journal").rename(tmp_path / "moved")
            (tmp_path / "journal").touch()

        async def break_journal() -> None:
            await asyncio.to_thread(move)
            if fails:
                raise GuestNotStarted("no KVM")

        landing.script["resume"] = break_journal
        sent, received = await _both(guest, landing, lambda *_: None, tmp_path / "journal")
        assert guest.running is fails
    assert await _standings(tmp_path / "moved") == {Standing.MAY_BE_GIVEN, Standing.MAY_BE_TAKEN}
    if fails:
        assert isinstance(sent, MigrationFailed)
        return
    assert isinstance(sent, Report)
    assert isinstance(received, Report)
    for report, state in ((sent, "theirs"), (received, "owned")):
        assert any(f"the VM is {state}, but that is not" in one for one in report.warnings)


async def test_a_vm_that_is_taken_over_while_cancelled_is_noted(tmp_path: Path) -> None:
    """Its record would say for ever that it may have been taken."""
    resuming, go_on = asyncio.Event(), asyncio.Event()

    async def resume() -> None:
        resuming.set()
        await go_on.wait()

    with Landing() as landing:
        landing.script["resume"] = resume
        options = ReceiveOptions(journal=tmp_path)
        async with aiomigrate.receive(landing, _LOCAL, options) as reception:
            with await Raw.connect(reception.address) as raw:
                await _begin(raw)
                await raw.send(request(COMPLETE))
                await resuming.wait()
                reception._task.cancel()
                await _turns()
                go_on.set()
                assert isinstance(await reception.result(), Report)
        assert landing.runs
    assert await _standings(tmp_path) == {Standing.OWNED}


async def test_a_vm_that_stayed_is_noted_before_the_destination_has_answered(
    tmp_path: Path,
) -> None:
    """The guest runs on already, and to abandon a migration may take its time."""
    patient = SendOptions(journal=tmp_path, deadlines=Deadlines(abandon_s=3600))

    async def hand_over() -> None:
        while not await asyncio.to_thread(list_journal, tmp_path):
            await asyncio.sleep(0)  # the first record is being written
        raise RuntimeError("no lock")

    with Guest(SMALL) as guest, Server() as server:
        guest.script["hand_over"] = hand_over
        async with aiomigrate.send(guest, server.address, patient) as sending:
            raw = await server.accept()
            while (await server.take_memory(raw))[0] != ABANDON:
                await raw.send(OK)
            while await _standings(tmp_path) != {Standing.OURS}:
                await asyncio.sleep(0)
            assert not sending._task.done()
            assert guest.running
            await raw.send(OK)
            raw.close()
            with pytest.raises(MigrationFailed, match="no lock"):
                await sending.result()


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_a_journal_that_cannot_be_meant_leaves_no_doubt(side: str) -> None:
    """What the disk did not refuse is told as what it did: the source gets its Error."""
    journal = "nothing\0like this"
    with Guest(SMALL) as guest, Landing() as landing:
        sent, received = await migrate(
            guest,
            landing,
            sending=SendOptions(journal=journal if side == "source" else None),
            receiving=ReceiveOptions(journal=journal if side == "destination" else None),
        )
        assert guest.running
        assert landing.calls == ["configure", "restore", "discard"]
    for error in (sent, received):
        assert isinstance(error, MigrationError)
        assert error.owner is Owner.SOURCE
    assert "null byte" in str(sent if side == "source" else received)
