"""What a migration notes of who owns the VM, when, and what becomes of it where it cannot."""

import asyncio
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import (
    Deadlines,
    GuestNotStarted,
    MigrationError,
    MigrationFailed,
    Owner,
    ReceiveOptions,
    Report,
    SendOptions,
)
from aiomigrate.journal import Standing, list_journal
from tests.engine.engine_hostile import LOCAL
from tests.engine.engine_ownership import begin, both, standings
from tests.support.hostile import OK, SMALL, Raw, Server, request
from tests.support.peer import ABANDON, COMPLETE
from tests.support.turns import turns
from tests.support.vms import Guest, Landing, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")


async def _noted(
    side: str, guest: Guest, landing: Landing, journal: Path | str
) -> tuple[Report | BaseException, Report | BaseException]:
    """A migration of which one side keeps a journal."""
    return await migrate(
        guest,
        landing,
        sending=SendOptions(journal=journal if side == "source" else None),
        receiving=ReceiveOptions(journal=journal if side == "destination" else None),
    )


virtual = pytest.mark.asyncio(loop_factories=["virtual"])


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_a_journal_that_cannot_be_written_fails_in_time(side: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    journal = tmp_path / "file" / "journal"
    with Guest(SMALL) as guest, Landing() as landing:
        sent, received = await _noted(side, guest, landing, journal)
        assert guest.running
        assert "resume" not in landing.calls
        assert landing.calls[-1] == "discard"
    for error in (sent, received):
        assert isinstance(error, MigrationError)
        assert error.owner is Owner.SOURCE
    blamed = sent if side == "source" else received
    assert f"{side}: journal {journal}: writing failed: Not a directory" in str(blamed)


@virtual  # the destination is not confirmed, and stays for a while
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
        sent, received = await both(guest, landing, lambda *_: None, tmp_path / "journal")
        assert guest.running is fails
    assert await standings(tmp_path / "moved") == {Standing.MAY_BE_GIVEN, Standing.MAY_BE_TAKEN}
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
        async with aiomigrate.receive(landing, LOCAL, options) as reception:
            with await Raw.connect(reception.address) as raw:
                await begin(raw)
                await raw.send(request(COMPLETE))
                await resuming.wait()
                reception._task.cancel()
                await turns()
                go_on.set()
                assert isinstance(await reception.result(), Report)
        assert landing.runs
    assert await standings(tmp_path) == {Standing.OWNED}


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
            raw = await server.up_to(ABANDON)
            while await standings(tmp_path) != {Standing.OURS}:
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
        sent, received = await _noted(side, guest, landing, journal)
        assert guest.running
        assert landing.calls == ["configure", "restore", "discard"]
    for error in (sent, received):
        assert isinstance(error, MigrationError)
        assert error.owner is Owner.SOURCE
    assert "null byte" in str(sent if side == "source" else received)
