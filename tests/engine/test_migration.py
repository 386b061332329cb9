"""A migration as its embedder holds it: a context that tells how far it is, and how it ends."""

import asyncio
import logging
from contextlib import suppress

import pytest

import aiomigrate
from aiomigrate import MigrationCancelled, MigrationError, MigrationFailed, Phase, SendOptions
from tests.engine.engine_hooks import BRIEF, HASTY, fails
from tests.engine.engine_hostile import LOCAL
from tests.engine.engine_running import TWO, assert_moved
from tests.support.hostile import SMALL
from tests.support.image import PAGE
from tests.support.vms import MIB, Guest, Landing, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_progress_is_told_to_the_end() -> None:
    with Guest() as guest, Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            waiting = reception.progress
            async with aiomigrate.send(guest, str(reception.address)) as migration:
                seen = [progress async for progress in migration]
                report = await migration.result()
            await reception.result()
            done = reception.progress
    assert (waiting.phase, waiting.total_bytes) == (Phase.WAITING, 0)
    assert (done.phase, done.total_bytes) == (Phase.DONE, 4 * MIB)
    assert seen[0].phase == Phase.CONNECTING
    assert seen[-1].phase == Phase.DONE
    assert seen[-1].bytes_done == report.bytes
    assert seen[-1].total_bytes == 4 * MIB
    assert sum(connection.bytes for connection in seen[-1].connections) == report.bytes
    assert report.as_dict()["owner"] == "destination"
    assert seen[-1].as_dict()["connections"][0]["name"] == "main"


async def test_leaving_the_context_raises_what_nobody_asked_for() -> None:
    with Guest() as guest, Landing() as landing:
        guest.script["config"] = fails(RuntimeError("no config"))
        with pytest.raises(MigrationFailed):  # noqa: PT012 - it is leaving the context that raises
            async with aiomigrate.receive(landing, LOCAL) as reception:
                with pytest.raises(MigrationFailed, match="no config"):
                    async with aiomigrate.send(guest, str(reception.address)):
                        pass


@pytest.mark.parametrize("at_once", [True, False])
async def test_leaving_the_context_with_an_error_cancels(at_once: bool) -> None:
    captured = asyncio.Event()

    async def capture() -> None:
        captured.set()
        await asyncio.Event().wait()

    with Guest() as guest, Landing() as landing:
        guest.script["capture"] = capture
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - contexts are what is tested
            async with aiomigrate.receive(landing, LOCAL) as reception:
                with pytest.raises(ZeroDivisionError):  # noqa: PT012
                    async with aiomigrate.send(guest, str(reception.address)):
                        if not at_once:
                            await captured.wait()
                        raise ZeroDivisionError
                if not at_once:
                    with pytest.raises(MigrationFailed, match="abandoned"):
                        await reception.result()
                raise ZeroDivisionError
        assert guest.running
        if at_once:
            assert guest.calls == []
        else:
            assert guest.calls[-3:] == ["capture", "resume", "stop"]
            assert landing.calls == ["configure", "discard"]


async def test_cancelling_at_once_is_told_as_such() -> None:
    with Guest() as guest, Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            async with aiomigrate.send(guest, str(reception.address)) as migration:
                assert migration.cancel()
                with pytest.raises(MigrationCancelled, match="the VM is with the source"):
                    await migration.result()
            assert reception.cancel()
            with pytest.raises(MigrationCancelled):
                await reception.result()
        assert (guest.calls, landing.calls) == ([], [])


async def test_it_is_too_late_to_cancel_after_the_end() -> None:
    with Guest() as guest, Landing() as landing:
        async with (
            aiomigrate.receive(landing, LOCAL) as reception,
            aiomigrate.send(guest, str(reception.address)) as migration,
        ):
            await migration.result()
            await reception.result()
            assert not migration.cancel()
            assert not reception.cancel()


# Silence


@pytest.mark.parametrize("connections", [1, 4])
async def test_a_migration_that_succeeds_is_quiet(
    connections: int, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 60.0  # kernels are compiled or loaded by whoever comes first
    caplog.set_level(logging.DEBUG)
    with Guest(TWO) as guest, Landing() as landing:
        guest.script["pause"] = lambda: guest.write(64 * PAGE, b"late")
        options = SendOptions(connections=connections, chunk_bytes=64 << 10)
        report = assert_moved(guest, landing, *await migrate(guest, landing, sending=options))
    assert report.warnings == ()
    names = {record.name for record in caplog.records}
    assert {"aiomigrate.source", "aiomigrate.destination"} <= names
    loud = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert loud == []


# What an error takes along


async def test_an_error_out_of_the_body_takes_the_failure_with_it() -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        guest.script["config"] = fails(RuntimeError("no config"))
        with pytest.raises(ZeroDivisionError) as caught:  # noqa: PT012 - leaving raises
            async with (
                aiomigrate.receive(landing, LOCAL, BRIEF) as reception,
                aiomigrate.send(guest, str(reception.address), HASTY) as sending,
            ):
                async for _ in sending:
                    pass
                raise ZeroDivisionError
        ours, theirs = caught.value.__notes__
    assert "no config" in ours
    assert "the VM is with the source" in ours
    assert "abandoned" in theirs or "the migration was cancelled" in theirs


async def test_a_cancelled_body_takes_the_failure_with_it() -> None:
    notes: list[str] = []
    captured = asyncio.Event()

    async def capture() -> None:
        captured.set()
        await asyncio.Event().wait()

    async def embed(guest: Guest, address: str, *, leaves: bool) -> None:
        try:
            async with aiomigrate.send(guest, address):
                if not leaves:
                    await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            notes.extend(error.__notes__)
            raise

    for leaves in (False, True):  # in its body, and while it waits for the end
        notes.clear()
        captured.clear()
        with Guest(SMALL) as guest, Landing() as landing:
            guest.script["capture"] = capture
            async with aiomigrate.receive(landing, LOCAL, BRIEF) as reception:
                task = asyncio.create_task(embed(guest, str(reception.address), leaves=leaves))
                await captured.wait()
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                with pytest.raises(MigrationFailed, match="abandoned"):
                    await reception.result()
            assert guest.running
        (note,) = notes
        assert note.startswith("the migration was cancelled; the VM is with the source")


async def test_an_unknown_outcome_is_not_lost_behind_another_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        landing.script["resume"] = fails(RuntimeError("half way"))
        with pytest.raises(ZeroDivisionError) as caught:  # noqa: PT012 - leaving raises
            async with (
                aiomigrate.receive(landing, LOCAL, BRIEF) as reception,
                aiomigrate.send(guest, str(reception.address), HASTY) as sending,
            ):
                with suppress(MigrationError):
                    await sending.result()
                raise ZeroDivisionError
    assert all("it is unknown who has the VM" in note for note in caught.value.__notes__)
    told = [record for record in caplog.records if "it is unknown" in record.getMessage()]
    assert [(record.name, record.levelno) for record in told] == [
        ("aiomigrate", logging.WARNING)
    ] * 2


async def test_an_error_after_a_migration_that_succeeded_is_left_alone() -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        with pytest.raises(ZeroDivisionError) as caught:  # noqa: PT012 - leaving raises
            async with (
                aiomigrate.receive(landing, LOCAL, BRIEF) as reception,
                aiomigrate.send(guest, str(reception.address), HASTY) as sending,
            ):
                await sending.result()
                await reception.result()
                raise ZeroDivisionError
        assert landing.runs is True
    assert not hasattr(caught.value, "__notes__")
