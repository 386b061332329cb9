"""A journal whose disk does not answer, or fails: the guest does not wait for it, and no side says
more than is written.
"""

import asyncio
import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiomigrate import (
    MigrationFailed,
    Owner,
    ReceiveOptions,
    Report,
    SendOptions,
    receive,
    send,
)
from aiomigrate.executor import JobExecutor
from aiomigrate.journal import Record, Side, Standing, list_journal, read_record
from aiomigrate.memory.directory import replace_file
from aiomigrate.protocol import ALL_EXTENSIONS, Extension
from tests.engine.engine_hostile import LOCAL
from tests.engine.engine_ownership import main_of
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import SMALL
from tests.support.vms import Guest, Landing, migrate

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.asyncio(loop_factories=["virtual"]),
]


class Disk:
    """What the journals are on: it does not take a record of `state` before it is repaired."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: VirtualClockLoop) -> None:
        self.refuses: Standing | None = None
        self.fails = False
        """Whether it says so."""
        self._repaired = threading.Event()

        def replaced(directory: int, name: str, data: bytes) -> int:
            if self.refuses and f'"{self.refuses}"'.encode() in data:
                if self.fails:
                    raise OSError(errno.EIO, "Input/output error")
                self._repaired.wait()
            return replace_file(directory, name, data)

        start: Callable[..., asyncio.Future[None]] = JobExecutor.start

        def started(
            executor: JobExecutor, job: Callable[..., None], *arguments: object
        ) -> asyncio.Future[None]:
            states = [one.state for one in arguments if isinstance(one, Record)]
            if self.refuses in states and not self.fails:
                clock.stuck.add(executor._pool)
            return start(executor, job, *arguments)

        monkeypatch.setattr("aiomigrate.journal.replace_file", replaced)
        monkeypatch.setattr(JobExecutor, "start", started)

    def repair(self) -> None:
        """What waits for it is written."""
        self._repaired.set()


@pytest.fixture
def disk(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualClockLoop, no_leaks: None
) -> Iterator[Disk]:
    made = Disk(monkeypatch, clock)
    yield made
    made.repair()


async def _migrate(
    guest: Guest, landing: Landing, tmp_path: Path, extensions: Extension = ALL_EXTENSIONS
) -> tuple[Report | BaseException, Report | BaseException]:
    """With a journal at each side."""
    receiving = ReceiveOptions(journal=tmp_path / "destination", extensions=extensions)
    sending = SendOptions(journal=tmp_path / "source")
    return await migrate(guest, landing, sending=sending, receiving=receiving)


def _standing(place: Path) -> Standing | None:
    """What the only record says; None if there is none."""
    for names in list_journal(place).values():
        (name,) = names
        return read_record(place, name)[0].state
    return None


async def _becomes(place: Path, state: Standing) -> None:
    """Wait until the only record says that."""
    while await asyncio.to_thread(_standing, place) is not state:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("side", "first", "last"),
    [
        (Side.SOURCE, Standing.MAY_BE_GIVEN, Standing.OURS),
        (Side.DESTINATION, Standing.MAY_BE_TAKEN, Standing.ABORTED),
    ],
)
async def test_what_must_be_written_first_is_not_waited_for_without_end(
    side: Side, first: Standing, last: Standing, tmp_path: Path, disk: Disk
) -> None:
    disk.refuses = first
    with Guest(SMALL) as guest, Landing() as landing:
        sent, received = await _migrate(guest, landing, tmp_path)
        assert guest.calls[-3:] == ["take_back", "resume", "stop"]
        assert guest.running
        assert landing.calls == ["configure", "restore", "discard"]
    for error in (sent, received):
        assert isinstance(error, MigrationFailed)
        assert error.owner is Owner.SOURCE
    blamed = sent if side is Side.SOURCE else received
    place = tmp_path / side
    assert f"{side}: journal {place}: the disk did not answer in 30 s" in str(blamed)
    assert await asyncio.to_thread(_standing, place) is None
    disk.repair()  # and what became of the VM follows, whoever has gone meanwhile
    await _becomes(place, last)


@pytest.mark.parametrize(
    "extensions", [ALL_EXTENSIONS, ALL_EXTENSIONS & ~Extension.CONFIRMATION], ids=["confirm", "end"]
)
@pytest.mark.parametrize("fails", [True, False])
async def test_a_source_confirms_what_it_has_written_only(
    fails: bool,
    extensions: Extension,
    tmp_path: Path,
    disk: Disk,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its record says that the VM may have been given away: the destination stays to be asked, and
    its record is not one that may be forgotten. Without Confirm a clean end would say that.
    """
    disk.refuses, disk.fails = Standing.THEIRS, fails
    with Guest(SMALL) as guest, Landing() as landing:
        sent, received = await _migrate(guest, landing, tmp_path, extensions)
        assert guest.ended
        assert landing.runs is True
        assert landing.calls[-1] == "resume"
    assert isinstance(sent, Report)
    assert isinstance(received, Report)
    assert any("the VM is theirs, but that is not in the journal" in one for one in sent.warnings)
    assert any("was not told that this is known" in one for one in sent.warnings)
    assert not received.confirmed
    assert "its source has not confirmed that it knows. Staying for 120 s" in caplog.text
    assert await asyncio.to_thread(_standing, tmp_path / "source") is Standing.MAY_BE_GIVEN
    assert await asyncio.to_thread(_standing, tmp_path / "destination") is Standing.OWNED
    if not fails:
        disk.repair()
        await _becomes(tmp_path / "source", Standing.THEIRS)


@pytest.mark.parametrize("written", [True, False])
async def test_a_source_that_had_to_ask_confirms_what_it_has_written_only(
    written: bool, tmp_path: Path, disk: Disk
) -> None:
    """The answer to Complete was lost; the end of its question says that it knows."""
    disk.refuses, disk.fails = None if written else Standing.THEIRS, True
    with Guest(SMALL) as guest, Landing() as landing:
        receiving = ReceiveOptions(journal=tmp_path / "destination")
        async with receive(landing, LOCAL, receiving) as reception:
            sending = SendOptions(journal=tmp_path / "source")
            async with send(guest, str(reception.address), sending) as migration:
                landing.script["resume"] = lambda: main_of(migration).abort()
                await migration.result()
            report = await reception.result()
        assert guest.ended
        assert landing.runs is True
    assert report.confirmed is written
    # A source that is killed before it has written down what it read ends the question, too.
    assert await asyncio.to_thread(_standing, tmp_path / "destination") is Standing.OWNED


@pytest.mark.parametrize(
    ("extensions", "state"),
    [
        (ALL_EXTENSIONS, Standing.CONFIRMED),
        (ALL_EXTENSIONS & ~Extension.CONFIRMATION, Standing.OWNED),
        (Extension.NONE, Standing.CONFIRMED),
    ],
    ids=["confirm", "end", "plain"],
)
async def test_a_record_is_needed_no_more_only_if_the_source_has_its_own(
    extensions: Extension, state: Standing, tmp_path: Path
) -> None:
    """That of a plain peer has another id, if there is one."""
    with Guest(SMALL) as guest, Landing() as landing:
        _, received = await _migrate(guest, landing, tmp_path, extensions)
    assert isinstance(received, Report)
    assert received.confirmed
    assert await asyncio.to_thread(_standing, tmp_path / "destination") is state


async def test_a_vm_that_was_taken_over_is_the_destinations_whatever_its_disk_says(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.refuses = Standing.OWNED
    with Guest(SMALL) as guest, Landing() as landing:
        sent, received = await _migrate(guest, landing, tmp_path)
        assert guest.ended
        assert landing.runs is True
    assert isinstance(sent, Report)
    assert isinstance(received, Report)
    assert received.confirmed
    assert any("the VM is owned, but that is not" in one for one in received.warnings)
    assert "the thread that waits for it lives, and this process" in caplog.text
    assert await asyncio.to_thread(_standing, tmp_path / "destination") is Standing.MAY_BE_TAKEN
    disk.repair()
    await _becomes(tmp_path / "destination", Standing.CONFIRMED)
