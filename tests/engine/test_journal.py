"""Records on disk: round trips, strictness, and that there is always a whole one."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.journal import (
    Journal,
    JournalError,
    Record,
    Side,
    Standing,
    list_journal,
    migration_id,
    read_record,
)
from aiomigrate.memory.document import DocumentError

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
TOKEN = bytes(range(16))
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
moments = st.datetimes(
    min_value=datetime(1990, 1, 1),  # noqa: DTZ001  # hypothesis wants it naive
    timezones=st.just(UTC),
)
_SOURCE = [Standing.MAY_BE_GIVEN, Standing.THEIRS, Standing.OURS]


def _standings(side: Side) -> st.SearchStrategy[Standing]:
    choices = [one for one in Standing if (one in _SOURCE) == (side is Side.SOURCE)]
    return st.sampled_from(choices)


@st.composite
def records(draw: st.DrawFn) -> Record:
    side = draw(st.sampled_from(Side))
    return Record(
        token=draw(st.binary(min_size=16, max_size=16)),
        side=side,
        peer=draw(text),
        ownership=draw(st.booleans()),
        vm=draw(text),
        stored=draw(st.booleans()),
        state=draw(_standings(side)),
        began=draw(moments),
        changed=draw(moments),
    )


def record(state: Standing = Standing.MAY_BE_GIVEN, token: bytes = TOKEN) -> Record:
    side = Side.SOURCE if state in _SOURCE else Side.DESTINATION
    return Record(
        token=token,
        side=side,
        peer="tcp:10.0.0.2:6000",
        ownership=True,
        vm="/vms/a",
        stored=True,
        state=state,
        began=NOW,
        changed=NOW,
    )


@given(records())
def test_round_trip(one: Record) -> None:
    assert Record.decode(one.encode()) == one


def test_the_id_names_a_migration_and_hides_its_token() -> None:
    assert re.fullmatch("[0-9a-f]{16}", record().id)
    assert record().id == migration_id(TOKEN) == record(Standing.ABORTED).id
    assert record(token=bytes(16)).id != record().id
    assert record().id not in TOKEN.hex()


def _changed(member: str, to: object) -> bytes:
    document: dict[str, Any] = json.loads(record().encode())
    if to is ...:
        del document[member]
    else:
        document[member] = to
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not JSON"),
        (b"[]", "not an object"),
        (_changed("version", 2), "version 2 was written by a newer aiomigrate"),
        (_changed("version", 0), "no version 0"),
        (_changed("more", 1), "unknown member 'more'"),
        (_changed("token", "xy"), "not hexadecimal"),
        (_changed("token", "00"), "has 1 bytes, not 16"),
        (_changed("id", "0" * 16), "id of the document is not that of its token"),
        (_changed("side", "both"), "none of destination, source"),
        (_changed("state", "owned"), "none of may have been given away, ours, theirs"),
        (_changed("state", ...), "has no state"),
        (_changed("ownership", 1), "no bool"),
        (_changed("began", "2026-08-01T12:00:00"), "no time zone"),
    ],
)
def test_what_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(DocumentError, match=why):
        Record.decode(raw)


@given(st.sampled_from(sorted(json.loads(record().encode()))), st.none() | st.integers() | text)
def test_any_member_can_be_anything(member: str, to: object) -> None:
    try:
        decoded = Record.decode(_changed(member, to))
    except DocumentError:
        return
    assert decoded.encode() == _changed(member, to) or member in ("peer", "vm")


def test_what_is_written_is_for_its_owner_only(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    journal = Journal(place)
    journal.write(record())
    journal.close()
    (file,) = place.iterdir()
    assert file.name == f"{record().id}.source.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert len(file.read_bytes()) < 1000
    assert list_journal(place) == {record().id: (file.name,)}


def test_a_record_is_locked_until_its_writer_lets_go(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for state in (Standing.MAY_BE_GIVEN, Standing.OURS):
        journal.write(record(state))
        assert read_record(tmp_path, record().name) == (record(state), True)
    journal.close()
    assert read_record(tmp_path, record().name) == (record(Standing.OURS), False)


def test_a_record_that_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock said nothing of the new one."""
    journal = Journal(tmp_path)
    journal.write(record())
    pread = os.pread

    def replacing(fd: int, size: int, at: int) -> bytes:
        monkeypatch.undo()
        journal.write(record(Standing.THEIRS))
        return pread(fd, size, at)

    monkeypatch.setattr(os, "pread", replacing)
    assert read_record(tmp_path, record().name) == (record(Standing.THEIRS), True)
    journal.close()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    name = record().name
    with pytest.raises(JournalError, match="No such file"):
        read_record(tmp_path, name)
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(JournalError, match=f"{name}: the document has no version"):
        read_record(tmp_path, name)
    (tmp_path / name).write_bytes(record(token=bytes(16)).encode())
    with pytest.raises(JournalError, match="it holds the record of"):
        read_record(tmp_path, name)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(JournalError, match="Illegal seek"):
        read_record(tmp_path, name)


def test_a_journal_without_a_directory_is_empty(tmp_path: Path) -> None:
    assert list_journal(tmp_path / "none") == {}
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="Not a directory"):
        list_journal(tmp_path / "file")


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename"])
def test_a_full_disk_keeps_the_old_record(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.write(record())

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(JournalError, match="No space left on device"):
        journal.write(record(Standing.OURS))
    monkeypatch.undo()
    assert read_record(tmp_path, record().name) == (record(), True)
    assert [file.name for file in tmp_path.iterdir()] == [record().name]
    journal.close()


def test_what_cannot_be_meant_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="null byte"):
        Journal("a\0b").write(record())
    with pytest.raises(JournalError, match="not JSON serializable"):
        Journal(tmp_path).write(replace(record(), vm=cast("str", tmp_path)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(JournalError, match="Permission denied"):
        Journal(tmp_path / "journal").write(record())


_CHILD = """
import os, signal, sys
from datetime import UTC, datetime
from aiomigrate.journal import Journal, Record, Side, Standing

directory, left = sys.argv[1], int(sys.argv[2])
now = datetime(2026, 8, 1, 12, tzinfo=UTC)
one = Record(token=bytes(range(16)), side=Side.SOURCE, peer="p", ownership=True, vm="v",
             stored=False, state=Standing.MAY_BE_GIVEN, began=now, changed=now)
journal = Journal(directory)
journal.write(one)

def dying(call):
    def step(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return step

for name in ("open", "fchmod", "pwrite", "fsync", "rename", "close"):
    setattr(os, name, dying(getattr(os, name)))
journal.write(one.now(Standing.THEIRS))
"""


def test_a_writer_that_is_killed_leaves_a_whole_record(tmp_path: Path) -> None:
    """At each of its system calls."""
    seen = []
    for step in range(30):
        place = tmp_path / str(step)
        code = subprocess.run(
            [sys.executable, "-c", _CHILD, str(place), str(step)], check=False
        ).returncode
        found, held = read_record(place, record().name)
        assert not held
        seen.append(found.state)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert len(seen) > 6
    assert seen == sorted(seen, key=[Standing.MAY_BE_GIVEN, Standing.THEIRS].index)
    assert set(seen) == {Standing.MAY_BE_GIVEN, Standing.THEIRS}
