"""Who owns the VM, from what two crashed processes left on disk."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aiomigrate import (
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    ReceiveOptions,
    SendOptions,
    StoredDestination,
    UsageError,
    handover,
    receive,
    send,
)
from aiomigrate.inquiry import NoVerdict, next_answer
from aiomigrate.journal import Journal, JournalError, Record, Side, Standing, list_journal
from aiomigrate.memory.directory import leftovers, taken_by
from aiomigrate.memory.errors import StoredVmError
from aiomigrate.outcome import Finding, ask, find, find_all
from aiomigrate.protocol import Answer, Command, SourceMain, Verdict
from aiomigrate.transport import Connection, ConnectionLost
from tests.engine.engine_hostile import LOCAL
from tests.engine.engine_ownership import begin
from tests.support.certificates import Authority
from tests.support.hostile import SMALL, SMALL_CONFIG, Raw, request
from tests.support.peer import CONFIG
from tests.support.vms import Guest, Landing

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
TOKEN = bytes(range(16))
GIVEN, TAKEN = Standing.MAY_BE_GIVEN, Standing.MAY_BE_TAKEN
SOURCE = [GIVEN, Standing.THEIRS, Standing.OURS]


def _record(
    state: Standing, *, vm: str = "web-1", stored: bool = False, ownership: bool = True
) -> Record:
    return Record(
        token=TOKEN,
        side=Side.SOURCE if state in SOURCE else Side.DESTINATION,
        peer="tcp:127.0.0.1:1",
        ownership=ownership,
        vm=vm,
        stored=stored,
        state=state,
        began=NOW,
        changed=NOW,
    )


def _write(journal: Path, *records: Record) -> None:
    for record in records:
        entry = Journal(journal)
        entry.write(record)
        entry.close()


def _only(journal: Path) -> Finding:
    (finding,) = find_all(journal)
    return finding


@pytest.mark.parametrize(
    ("state", "owner"),
    [
        (GIVEN, Owner.UNKNOWN),
        (Standing.THEIRS, Owner.DESTINATION),
        (Standing.OURS, Owner.SOURCE),
        (TAKEN, Owner.UNKNOWN),
        (Standing.OWNED, Owner.DESTINATION),
        (Standing.CONFIRMED, Owner.DESTINATION),
        (Standing.ABORTED, Owner.SOURCE),
    ],
)
def test_what_one_record_says(state: Standing, owner: Owner, tmp_path: Path) -> None:
    _write(tmp_path, _record(state))
    finding = _only(tmp_path)
    assert finding.owner is owner
    assert finding.settled is (owner is not Owner.UNKNOWN)
    assert bool(finding.advice) is (owner is Owner.UNKNOWN)
    assert state in finding.why
    assert TOKEN.hex() not in repr(finding.why) + finding.advice


def test_two_records_settle_each_other(tmp_path: Path) -> None:
    says = {
        Standing.THEIRS: Owner.DESTINATION,
        Standing.OURS: Owner.SOURCE,
        Standing.OWNED: Owner.DESTINATION,
        Standing.CONFIRMED: Owner.DESTINATION,
        Standing.ABORTED: Owner.SOURCE,
    }
    theirs = [state for state in Standing if state not in SOURCE]
    for number, (ours, other) in enumerate(itertools.product(SOURCE, theirs)):
        place = tmp_path / str(number)
        _write(place, _record(ours), _record(other))
        finding = _only(place)
        said = {says[state] for state in (ours, other) if state in says}
        expected = said.pop() if len(said) == 1 else Owner.UNKNOWN
        assert finding.owner is expected, (ours, other)
        assert ("contradict" in finding.advice) is (len(said) == 2)
        assert [record.side for record in finding.records] == [Side.SOURCE, Side.DESTINATION]


@pytest.mark.parametrize("state", [GIVEN, TAKEN])
def test_a_process_that_is_still_at_work_is_waited_for(state: Standing, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(_record(state, vm=str(tmp_path / "vm"), stored=True))
    finding = _only(tmp_path)
    assert finding.owner is Owner.UNKNOWN
    assert "still at work" in finding.why
    journal.close()


def test_a_record_that_cannot_be_read_is_no_answer(tmp_path: Path) -> None:
    _write(tmp_path, _record(GIVEN))
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"{}")
    finding = _only(tmp_path)
    assert (finding.owner, finding.records) == (Owner.UNKNOWN, ())
    assert "has no version" in finding.why
    _write(tmp_path, _record(Standing.ABORTED))
    assert _only(tmp_path).owner is Owner.SOURCE


def test_a_migration_is_found_by_its_id_and_its_vm(tmp_path: Path) -> None:
    vm = str(tmp_path / "vm")
    _write(tmp_path / "journal", _record(GIVEN, vm=vm))
    (by_id,) = find(tmp_path / "journal", _record(GIVEN).id)
    assert find(tmp_path / "journal", vm) == [by_id]
    assert find(tmp_path / "journal", os.path.relpath(vm)) == [by_id]
    for other in ("0" * 16, "web-2"):
        with pytest.raises(UsageError, match="no migration of"):
            find(tmp_path / "journal", other)
    with pytest.raises(UsageError):
        find(tmp_path / "none", vm)
    (tmp_path / "file").touch()
    with pytest.raises(JournalError):
        find(tmp_path / "file", vm)


async def test_only_a_source_in_doubt_can_ask(tmp_path: Path) -> None:
    for number, record in enumerate(
        [_record(GIVEN, ownership=False), _record(Standing.OURS), _record(TAKEN)]
    ):
        place = tmp_path / str(number)
        await asyncio.to_thread(_write, place, record)
        finding = Finding(migration=record.id, owner=Owner.UNKNOWN, why="so", records=(record,))
        if record.state is Standing.OURS:
            finding = Finding(migration=record.id, owner=Owner.SOURCE, why="so", records=(record,))
        assert await ask(place, finding, within=0.05) is finding


async def test_nobody_answers(tmp_path: Path) -> None:
    await asyncio.to_thread(_write, tmp_path, _record(GIVEN))
    finding = Finding(
        migration=_record(GIVEN).id, owner=Owner.UNKNOWN, why="so", records=(_record(GIVEN),)
    )
    asked = await ask(tmp_path, finding, within=0.05)
    assert asked.owner is Owner.UNKNOWN
    assert asked.why.startswith("so; asked, but nobody answered in 0.05 s")


async def _nobody(*_: object, **__: object) -> Verdict:
    raise NoVerdict("it was cut off")


def _refuse(journal: Path, _: Record) -> None:
    raise JournalError(str(journal), "writing failed: No space left on device")


@pytest.mark.asyncio(loop_factories=["virtual"])
async def test_asking_goes_through_tls_and_names_what_is_wrong_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that lost the answer to Complete; its destination stays to be asked."""
    authority = Authority()
    right = authority.directory(tmp_path / "right")
    journal = tmp_path / "journal"

    async def lost(connection: Connection, core: SourceMain) -> Answer:
        answer = await next_answer(connection, core)
        if answer.command == Command.COMPLETE:
            connection.abort()
            raise ConnectionLost(connection.name, "read", errno=104, got="reset")
        return answer

    monkeypatch.setattr(handover, "next_answer", lost)
    monkeypatch.setattr(handover, "ask_owner", _nobody)
    wrong = {
        authority.directory(
            tmp_path / "unknown", issuer=Authority()
        ): "does not know the authority",
        authority.directory(tmp_path / "expired", expired=True): "certificate has expired",
        Authority().directory(
            tmp_path / "foreign"
        ): "the peer's certificate is not accepted: self-",
        None: "a TLS alert: it speaks TLS only",
    }
    with Guest(SMALL) as guest, Landing() as landing:
        receiving = ReceiveOptions(tls_dir=right, linger_s=1000.0)
        sending = SendOptions(tls_dir=right, journal=journal)
        async with receive(landing, "tcp:127.0.0.1:0", receiving) as reception:
            with pytest.raises(OutcomeUnknown):
                async with send(guest, str(reception.address), sending):
                    pass
            (doubt,) = await asyncio.to_thread(find_all, journal)
            for tls_dir, says in wrong.items():
                asked = await ask(journal, doubt, within=5.0, tls_dir=tls_dir)
                assert asked.owner is Owner.UNKNOWN
                assert says in asked.why
            with pytest.raises(UsageError, match="No such file"):
                await ask(journal, doubt, tls_dir=tmp_path / "nowhere")
            with monkeypatch.context() as full:
                full.setattr("aiomigrate.outcome._write", _refuse)
                asked = await ask(journal, doubt, tls_dir=right)
            assert asked.owner is Owner.DESTINATION
            assert "That is not noted" in asked.advice
            asked = await ask(journal, doubt, tls_dir=right)  # so it stays to be asked again
            assert asked.why == "the source noted: theirs"
            assert (await reception.result()).confirmed


# A stored VM: a receiver that is killed at each of its steps

_CHILD = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from aiomigrate.journal import Journal, Record, Side, Standing
from aiomigrate.memory.map import VmConfig
from aiomigrate.memory.storing import StoredVmWriter

journal, vm, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
now = datetime(2026, 8, 1, 12, tzinfo=UTC)
record = Record(token=bytes(range(16)), side=Side.DESTINATION, peer="p", ownership=True, vm=vm,
                stored=True, state=Standing.MAY_BE_TAKEN, began=now, changed=now)
entry = Journal(journal)
entry.write(record)
writer = StoredVmWriter(vm)
writer.belong_to(record.id)
memory = writer.configure(VmConfig.parse(Path(sys.argv[4]).read_bytes()))
writer.write_state(b"{}")
writer.sync()

def dying(call):
    def step(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return step

for name in ("pwrite", "fsync"):
    setattr(os, name, dying(getattr(os, name)))
from aiomigrate.memory import directory
directory.rename_new = dying(directory.rename_new)
writer.commit(True, "p", record.id)
entry.write(record.now(Standing.OWNED))
memory.close()
writer.close()
entry.close()
"""


def test_the_directory_decides_for_a_receiver_that_was_killed(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_bytes(
        b'{"memory_manager_data": {"guest_ram_mappings": [{"slot": 0, "gpa": 0, "size": 4096,'
        b' "zone_id": "mem0", "virtio_mem": false, "file_offset": 0}]}}'
    )
    owners = []
    # Before the manifest's bytes, the rename, and the fsync behind that; never.
    for step in (0, 2, 3, 99):
        place = tmp_path / str(step)
        place.mkdir()
        vm, journal = place / "vm", place / "journal"
        code = subprocess.run(
            [sys.executable, "-c", _CHILD, str(journal), str(vm), str(step), str(config)],
            check=False,
        ).returncode
        assert code == (0 if step == 99 else -signal.SIGKILL)
        finding = _only(journal)
        owners.append(finding.owner)
        assert finding.records[0].state == ("owned" if step == 99 else "may be taken over")
        assert finding.owner is (Owner.DESTINATION if vm.exists() else Owner.SOURCE)
        if not vm.exists():
            (left,) = place.glob(".vm.partial-*")
            assert str(left) in finding.advice
    assert owners == [Owner.SOURCE, Owner.SOURCE, Owner.DESTINATION, Owner.DESTINATION]


def _manifest(migration: str) -> str:
    """Of a VM that was taken by it."""
    taken = {
        "event": "taken",
        "at": NOW.isoformat(),
        "source": "p",
        "confirmed": False,
        "migration": migration,
    }
    return json.dumps({"version": 2, "running": True, "files": [], "history": [taken]})


def test_a_directory_of_something_else_says_no(tmp_path: Path) -> None:
    vm = tmp_path / "vm"
    assert not taken_by(str(vm), "0f")
    vm.mkdir()
    assert not taken_by(str(vm), "0f")
    manifest = vm / "aiomigrate.json"
    manifest.write_text(_manifest("0f"))
    assert taken_by(str(vm), "0f")
    assert not taken_by(str(vm), "0e")
    manifest.write_text("")
    with pytest.raises(StoredVmError, match="manifest cannot be used"):
        taken_by(str(vm), "0f")
    _write(tmp_path / "journal", _record(TAKEN, vm=str(vm), stored=True))
    assert _only(tmp_path / "journal").owner is Owner.UNKNOWN


def test_a_record_that_goes_meanwhile_is_no_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that ends prunes the journal: what goes is needed by nobody."""
    _write(tmp_path, _record(GIVEN))
    names = list_journal(tmp_path)
    names["0" * 16] = ("0" * 16 + ".source.json",)
    monkeypatch.setattr("aiomigrate.outcome.list_journal", lambda _: names)
    assert _only(tmp_path).migration == _record(GIVEN).id
    with pytest.raises(UsageError, match="no migration of 0000"):
        find(tmp_path, "0" * 16)


def test_a_directory_that_cannot_be_there_proves_nothing(tmp_path: Path) -> None:
    """The receiver made it in a directory that is gone: its file system may not be mounted."""
    _write(tmp_path / "journal", _record(TAKEN, vm=str(tmp_path / "vms" / "vm"), stored=True))
    finding = _only(tmp_path / "journal")
    assert finding.owner is Owner.UNKNOWN
    assert str(tmp_path / "vms") in finding.advice
    (tmp_path / "vms" / f".vm.partial-{finding.migration[:8]}").mkdir(parents=True)
    assert _only(tmp_path / "journal").owner is Owner.SOURCE


def test_a_directory_that_was_moved_is_not_one_that_never_was(tmp_path: Path) -> None:
    """Its receiver was killed right after the rename; whoever moved it has a VM."""
    vm = tmp_path / "vm"
    _write(tmp_path / "journal", _record(TAKEN, vm=str(vm), stored=True))
    vm.mkdir()
    (vm / "aiomigrate.json").write_text(_manifest(_record(TAKEN).id))
    assert _only(tmp_path / "journal").owner is Owner.DESTINATION
    vm.rename(tmp_path / "elsewhere")
    finding = _only(tmp_path / "journal")
    assert finding.owner is Owner.UNKNOWN
    assert f"Was {vm} moved or removed since 2026-08-01" in finding.advice


def test_what_another_receiver_has_left_proves_nothing(tmp_path: Path) -> None:
    """The VM was taken over and moved; a later one of its name came only half."""
    vm = tmp_path / "vm"
    _write(tmp_path / "journal", _record(TAKEN, vm=str(vm), stored=True))
    left = tmp_path / ".vm.partial-0badcafe"
    left.mkdir()
    finding = _only(tmp_path / "journal")
    assert finding.owner is Owner.UNKNOWN
    left.rename(tmp_path / f".vm.partial-{finding.migration[:8]}")
    assert _only(tmp_path / "journal").owner is Owner.SOURCE


@pytest.mark.parametrize("when_it_comes", [False, True])
async def test_what_a_receiver_is_making_names_its_migration(
    when_it_comes: bool, tmp_path: Path
) -> None:
    async with (
        StoredDestination(tmp_path / "vm", when_it_comes=when_it_comes) as destination,
        receive(destination, LOCAL) as reception,
    ):
        with await Raw.connect(reception.address) as raw:
            await begin(raw, up_to_state=False)
            await raw.ask(request(CONFIG, SMALL_CONFIG))
            made = await asyncio.to_thread(os.listdir, tmp_path)
        with pytest.raises(MigrationFailed):
            await reception.result()
    assert made == [f".vm.partial-{reception.id[:8]}"]
    assert await asyncio.to_thread(os.listdir, tmp_path) == []


def test_leftovers_are_those_that_nobody_holds(tmp_path: Path) -> None:
    """And of these only what was made by us: nothing else is removed."""
    ours = [".vm.partial-00000001", ".vm.partial-0badcafe"]
    others = [".other.partial-00000003", ".vm.partial-keep", ".vm.partial-x.partial-00000005"]
    for name in (*ours, *others, "vm"):
        (tmp_path / name).mkdir()
    (tmp_path / ".vm.partial-00000004").touch()
    assert leftovers(str(tmp_path / "none" / "vm")) == ()
    assert [os.path.basename(one) for one in leftovers(str(tmp_path / "vm"))] == ours
