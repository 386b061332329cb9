"""What a journal keeps when it has many records, and what it never loses."""

import asyncio
import os
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate import (
    OutcomeUnknown,
    Owner,
    ReceiveOptions,
    SendOptions,
    pruning,
    receive,
    send,
)
from aiomigrate.journal import Journal, Record, Side, Standing, list_journal
from aiomigrate.outcome import find, find_all
from aiomigrate.protocol import ALL_EXTENSIONS, Extension
from aiomigrate.pruning import prune
from tests.support.hostile import SMALL
from tests.support.vms import Guest, Landing, migrate

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
SOURCE = {Standing.MAY_BE_GIVEN, Standing.THEIRS, Standing.OURS}
NEEDED = {Standing.MAY_BE_GIVEN, Standing.MAY_BE_TAKEN, Standing.OWNED}


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "MANY", 8)
    monkeypatch.setattr(pruning, "_FEWER", 2)


def record(number: int, state: Standing, *, ownership: bool = True) -> Record:
    return Record(
        token=number.to_bytes(16, "big"),
        side=Side.SOURCE if state in SOURCE else Side.DESTINATION,
        peer="tcp:10.0.0.2:6000",
        ownership=ownership,
        vm=f"vm-{number}",
        stored=False,
        state=state,
        began=NOW,
        changed=NOW,
    )


def write(place: Path, records: Iterable[Record]) -> None:
    """One a second, the first one long ago."""
    place.mkdir(exist_ok=True)
    for age, one in enumerate(records):
        (place / one.name).write_bytes(one.encode())
        os.utime(place / one.name, (1_000_000 + age, 1_000_000 + age))


def numbers(place: Path) -> list[int]:
    return sorted(int(one.records[0].vm.removeprefix("vm-")) for one in find_all(place))


def test_few_are_all_kept(tmp_path: Path) -> None:
    write(tmp_path, [record(n, Standing.THEIRS) for n in range(8)])
    prune(tmp_path)
    assert numbers(tmp_path) == [*range(8)]


def test_of_many_the_oldest_go(tmp_path: Path) -> None:
    write(tmp_path, [record(n, Standing.THEIRS) for n in range(12)])
    prune(tmp_path)
    assert numbers(tmp_path) == [*range(6, 12)]


@pytest.mark.parametrize("state", Standing)
@pytest.mark.parametrize("ownership", [True, False])
def test_what_is_needed_stays(state: Standing, ownership: bool, tmp_path: Path) -> None:
    """Of a destination's record its absence says that it never owned the VM."""
    old = [record(n, state, ownership=ownership) for n in range(4)]
    write(tmp_path, [*old, *(record(n, Standing.OURS) for n in range(4, 12))])
    prune(tmp_path)
    if state in NEEDED:
        assert numbers(tmp_path) == [0, 1, 2, 3, 10, 11]
    else:
        assert numbers(tmp_path) == [*range(6, 12)]


def test_a_record_that_settles_the_other_sides_stays_with_it(tmp_path: Path) -> None:
    both = [record(0, Standing.MAY_BE_GIVEN), record(0, Standing.ABORTED)]
    write(tmp_path, [*both, *(record(n, Standing.THEIRS) for n in range(1, 12))])
    prune(tmp_path)
    (finding,) = find(tmp_path, "vm-0")
    assert finding.owner is Owner.SOURCE
    assert len(finding.records) == 2


def test_a_record_of_a_migration_that_goes_on_stays(tmp_path: Path) -> None:
    held = Journal(tmp_path)
    held.write(record(0, Standing.CONFIRMED))
    write(tmp_path, [record(n, Standing.THEIRS) for n in range(1, 12)])
    os.utime(tmp_path / record(0, Standing.CONFIRMED).name, (1, 1))
    prune(tmp_path)
    assert 0 in numbers(tmp_path)
    held.close()
    write(tmp_path, [record(n, Standing.THEIRS) for n in range(12, 20)])
    prune(tmp_path)
    assert 0 not in numbers(tmp_path)


def test_what_cannot_be_read_stays(tmp_path: Path) -> None:
    write(tmp_path, [record(n, Standing.THEIRS) for n in range(12)])
    damaged = tmp_path / record(0, Standing.THEIRS).name
    damaged.write_bytes(b"{}")
    os.utime(damaged, (1, 1))
    prune(tmp_path)
    assert damaged.exists()
    assert len(list_journal(tmp_path)) == 6


def test_what_killed_writers_left_goes_a_day_later(tmp_path: Path) -> None:
    for name in (
        ".a.source.json.partial-0123abcd",
        ".a.json.partial-12345678",
        ".b",
        "b.partial-1",
    ):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    os.utime(tmp_path / ".a.json.partial-12345678", (time.time() - 3600,) * 2)
    prune(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".a.json.partial-12345678", ".b", "b.partial-1"]


def test_a_directory_that_is_made_there_is_left_to_those_that_make_it(tmp_path: Path) -> None:
    (tmp_path / ".vm.partial-0123abcd").mkdir()
    os.utime(tmp_path / ".vm.partial-0123abcd", (1, 1))
    write(tmp_path, [record(n, Standing.THEIRS) for n in range(12)])
    prune(tmp_path)
    assert (tmp_path / ".vm.partial-0123abcd").is_dir()
    assert numbers(tmp_path) == [*range(6, 12)]


@pytest.mark.parametrize("first", [True, False])
def test_two_processes_prune_as_much_as_one(
    first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one does all of it when this one has listed the records, or looked at one."""
    judge = pruning._is_dispensable

    def meanwhile(journal: Path, name: str) -> bool:
        monkeypatch.setattr(pruning, "_is_dispensable", judge)
        if first:
            prune(journal)
        judged = judge(journal, name)
        if not first:
            prune(journal)
        return judged

    monkeypatch.setattr(pruning, "_is_dispensable", meanwhile)
    write(tmp_path, [record(n, Standing.THEIRS) for n in range(12)])
    prune(tmp_path)
    assert numbers(tmp_path) == [*range(6, 12)]


@given(
    states=st.lists(st.tuples(st.sampled_from(Standing), st.booleans()), max_size=24),
)
def test_nothing_that_is_needed_is_lost(
    states: list[tuple[Standing, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("journal")
    records = [record(n, state, ownership=o) for n, (state, o) in enumerate(states)]
    write(place, records)
    before = {one.migration: one for one in find_all(place)}
    prune(place)
    after = {one.migration: one for one in find_all(place)}
    gone = before.keys() - after.keys()
    assert all(after[name] == before[name] for name in after)
    assert all(before[name].settled for name in gone)
    assert len(gone) == 0 or len(after) >= 6
    needed = sum(state in NEEDED for state, _ in states)
    assert len(after) <= max(8, needed, 6)


async def test_what_a_source_may_look_for_that_cannot_ask_stays(tmp_path: Path) -> None:
    """It has a token, and with it the id of the destination's record: whoever finds none here takes
    the VM for the source's.
    """
    extensions = ALL_EXTENSIONS & ~Extension.OWNERSHIP
    places = [tmp_path / "source", tmp_path / "destination"]
    with Guest(SMALL) as guest, Landing() as landing:
        async with receive(
            landing,
            "tcp:127.0.0.1:0",
            ReceiveOptions(journal=places[1], extensions=extensions),
        ) as reception:
            async with send(
                guest,
                str(reception.address),
                SendOptions(journal=places[0]),
            ) as migration:
                attempt: Any = migration._attempt

                def lose() -> None:
                    attempt._main.connection.abort()

                landing.script["resume"] = lose
                with pytest.raises(OutcomeUnknown):
                    await migration.result()
            await reception.result()
    ours, (theirs,) = await asyncio.gather(
        asyncio.to_thread(list_journal, places[0]), asyncio.to_thread(find_all, places[1])
    )
    assert list(ours) == [theirs.migration]
    assert theirs.owner is Owner.DESTINATION
    many = [record(n, Standing.THEIRS) for n in range(12)]
    await asyncio.to_thread(write, places[1], many)
    (file,) = (one.name for one in theirs.records)
    await asyncio.to_thread(os.utime, places[1] / file, (1, 1))
    await asyncio.to_thread(prune, places[1])
    assert theirs in await asyncio.to_thread(find_all, places[1])


async def test_each_migration_prunes_the_journals_of_both_sides(tmp_path: Path) -> None:
    places = [tmp_path / "source", tmp_path / "destination"]
    for place in places:
        await asyncio.to_thread(write, place, [record(n, Standing.THEIRS) for n in range(12)])
    with Guest(SMALL) as guest, Landing() as landing:
        await migrate(
            guest,
            landing,
            sending=SendOptions(journal=places[0]),
            receiving=ReceiveOptions(journal=places[1]),
        )
    for place in places:
        found = await asyncio.to_thread(find_all, place)
        assert len(found) == 6
        peers = [one.records[0].peer for one in found]
        assert sum(peer.startswith("tcp:127.0.0.1:") for peer in peers) == 1


async def test_a_journal_that_cannot_be_pruned_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: object) -> None:
        raise OSError("a bad disk")

    monkeypatch.setattr(pruning, "_remove_partial", fails)
    with Guest(SMALL) as guest, Landing() as landing:
        sent, received = await migrate(guest, landing, sending=SendOptions(journal=tmp_path))
    assert not isinstance(sent, Exception)
    assert not isinstance(received, Exception)
    assert "old records stay in the journal: a bad disk" in caplog.text
