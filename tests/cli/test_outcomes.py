"""`aiomigrate outcome`, and the journal that `send` and `receive` keep."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT, Program, one_sentence
from tests.support.peer import Peer

ANY_PORT = "tcp:127.0.0.1:0"


def _outcomes(program: Program, *arguments: str | Path) -> tuple[int, list[dict[str, Any]]]:
    status, out, err = program("outcome", "--json", *arguments).end()
    assert err == ""
    return status, json.loads(out)


def test_a_migration_that_succeeded(
    program: Program, vm: Path, tmp_path: Path, state: Path
) -> None:
    assert program("outcome").end() == (0, f"no migrations in {state}/aiomigrate\n", "")
    receiver = program("receive", ANY_PORT, "--into", tmp_path / "copy", "--linger", "60")
    sender = program("send", vm, receiver.address())
    assert sender.end()[0] == 0
    assert receiver.end()[0] == 0
    status, (found,) = _outcomes(program)
    assert (status, found["owner"]) == (0, "destination")
    assert [record["state"] for record in found["records"]] == ["theirs", "confirmed"]
    assert [record["vm"] for record in found["records"]] == [str(vm), str(tmp_path / "copy")]
    assert "token" not in json.dumps(found)
    for what in (found["migration"], vm, tmp_path / "copy"):
        assert _outcomes(program, what) == (0, [found])
    status, out, _ = program("outcome", found["migration"]).end()
    assert status == 0
    assert out.startswith(f"{found['migration']}  the VM is with the destination: ")


def test_a_journal_of_ones_own(program: Program, vm: Path, tmp_path: Path, state: Path) -> None:
    journal = tmp_path / "journal"
    with Peer() as peer:
        assert program("send", vm, peer.address, "--journal", journal).end()[0] == 0
    assert _outcomes(program) == (0, [])
    assert _outcomes(program, "--journal", journal)[1][0]["owner"] == "destination"


def _killed_sender(vm: Path, address: str) -> None:
    """A sender that is killed once the answer to Complete lies in its socket."""
    code = _KILLED_BEHIND_COMPLETE.format(root=str(ROOT))
    sender = subprocess.run(
        [sys.executable, "-c", code, "send", str(vm), address], check=False, capture_output=True
    )
    assert sender.returncode == -signal.SIGKILL, sender.stderr


def test_a_sender_that_is_killed_leaves_a_doubt(program: Program, vm: Path) -> None:
    with Peer() as peer:
        _killed_sender(vm, peer.address)
    status, (found,) = _outcomes(program, vm, "--ask")
    assert (status, found["owner"]) == (3, "unknown")
    assert "ended before it noted more" in found["why"]
    assert "which cannot be asked" in found["advice"]


def test_a_doubt_is_settled_by_asking(
    program: Program, vm: Path, tmp_path: Path, state: Path
) -> None:
    """The receiver lives, and the sender was killed before it could read the answer."""
    elsewhere = tmp_path / "journal"
    receiver = program("receive", ANY_PORT, "--into", tmp_path / "copy", "--journal", elsewhere)
    address = receiver.address()
    _killed_sender(vm, address)
    journal = next((state / "aiomigrate").glob("*.source.json"))
    assert '"may have been given away"' in journal.read_text()
    status, (found,) = _outcomes(program, vm, "--ask")
    assert (status, found["owner"]) == (0, "destination")
    assert '"theirs"' in journal.read_text()
    status, event, _ = receiver.last_event()
    assert (status, event["confirmed"]) == (0, True)


_KILLED_BEHIND_COMPLETE = """
import os, signal, sys
sys.path.insert(0, {root!r})
from aiomigrate.transport import Connection
taken = Connection.write_now
def killed(connection, data):
    taken(connection, data)
    # A destination that reads Complete from a source that has hung up gives the VM back.
    while not connection.unread():
        pass
    os.kill(os.getpid(), signal.SIGKILL)
Connection.write_now = killed
from aiomigrate.cli.main import main
main()
"""


def test_what_is_not_there_is_told(program: Program, vm: Path, tmp_path: Path) -> None:
    status, out, err = program("outcome", vm).end()
    assert (status, out) == (2, "")
    assert f"no migration of {vm} is in this journal" in one_sentence(err)
    (tmp_path / "file").touch()
    status, _, err = program("outcome", "--journal", tmp_path / "file").end()
    assert status == 2
    assert "Not a directory" in one_sentence(err)


@pytest.mark.parametrize("command", ["send", "receive"])
def test_a_journal_that_was_named_must_be_written(
    command: str, program: Program, vm: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    named = ("--journal", tmp_path / "file")
    copy = tmp_path / "copy"
    receiver = program(
        "receive", ANY_PORT, "--into", copy, *(named if command == "receive" else ())
    )
    sender = program("send", vm, receiver.address(), *(named if command == "send" else ()))
    statuses = sender.end()[0], receiver.end()[0]
    assert statuses == (1, 1)
    assert not copy.exists()


def test_a_linger_that_cannot_be_meant(program: Program, tmp_path: Path) -> None:
    status, _, err = program(
        "receive", ANY_PORT, "--into", tmp_path / "copy", "--linger", "0"
    ).end()
    assert status == 2
    assert "linger_s must be more than 0" in one_sentence(err)
