"""`aiomigrate probe` as a process: its tables, its JSON, its exit status, and its end."""

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from tests.cli.conftest import ROOT, Program, one_sentence
from tests.support.certificates import Authority
from tests.support.signals import sigint_ignored
from tests.support.sockets import free_port

PYTHON = shlex.quote(sys.executable)
# Understands nothing, and says so.
NO = (
    "import socket, sys\n"
    "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
    "while True:\n"
    "    connection, _ = listener.accept()\n"
    "    connection.recv(16)\n"
    "    connection.sendall(bytes([2]) + bytes(15))\n"
)
CHECK = {"name", "wants", "source", "verdict", "seen", "seconds"}


def own_receiver(port: int, into: Path) -> str:
    """The command that starts ours."""
    receive = f"aiomigrate.cli receive tcp:127.0.0.1:{port} --into {shlex.quote(str(into))}"
    return f"cd {shlex.quote(str(ROOT))} && exec {PYTHON} -m {receive}"


def broken_receiver(port: int, script: Path) -> str:
    script.write_text(NO)
    return f"exec {PYTHON} {shlex.quote(str(script))} {port}"


def only(*prefixes: str) -> list[str]:
    return [word for prefix in prefixes for word in ("--only", prefix)]


def test_our_receiver_started_anew_for_each_check(program: Program, tmp_path: Path) -> None:
    port = free_port()
    status, out, err = program(
        "probe", f"tcp:127.0.0.1:{port}", "--json", "--patience-s", "30",
        *only("stranger/port-scan", "legal/", "memory/pipelined", "close/in-content"),
        "--command", own_receiver(port, tmp_path / "vm"),
    ).end()  # fmt: skip
    assert one_sentence(err).startswith(f"aiomigrate: probing tcp:127.0.0.1:{port}. Point it only")
    document: dict[str, Any] = json.loads(out)
    checks = document["checks"]
    assert status == 0, checks
    assert document.keys() == {"address", "patience_s", "counts", "checks"}
    assert document["counts"] == {"ok": 4, "finding": 0, "note": 0, "not run": 0}
    assert all(check.keys() == CHECK for check in checks)
    assert {check["name"]: check["seen"] for check in checks} == {
        "stranger/port-scan": "it still waits",
        "legal/to-state": "Start, Config, Memory, State: Ok",
        "memory/pipelined": "Ok, Ok, Error",
        "close/in-content": "closed",
    }
    assert not (tmp_path / "vm").exists()


def test_findings_and_what_was_wanted_instead(program: Program, tmp_path: Path) -> None:
    port = free_port()
    status, out, _ = program(
        "probe", f"tcp:127.0.0.1:{port}", *only("first/unknown", "start/plain", "order/start"),
        "--command", broken_receiver(port, tmp_path / "no.py"),
    ).end()  # fmt: skip
    assert status == 1
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    assert [line[:2] for line in lines[:2]] == [["ok", "first/unknown"], ["finding", "start/plain"]]
    assert lines[1][2].endswith("Error")
    assert lines[2] == ["→", "wanted:", "answered Ok"]
    assert lines[3][:2] == ["not", "run"]
    assert lines[3][2].endswith("Start before it: Error")
    assert out.splitlines()[-1] == "1 ok, 1 finding, 1 not run"


def test_a_receiver_that_listens_no_more(program: Program, tmp_path: Path) -> None:
    receiver = program("receive", "tcp:127.0.0.1:0", "--into", tmp_path / "vm")
    address = receiver.address()
    status, out, _ = program(
        "probe", address, "--patience-s", "2", *only("start/wrong-version", "start/plain", "legal/")
    ).end()
    assert receiver.last_event()[0] == 1
    assert status == 1
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["ok", "ok", "not"]
    assert "the receiver no longer listens" in lines[2]
    assert lines[-1] == "→ --command starts a fresh receiver for each check"


def test_through_tls(program: Program, tmp_path: Path) -> None:
    authority = Authority()
    right = authority.directory(tmp_path / "right")
    wrong = authority.directory(tmp_path / "wrong", issuer=Authority())
    receiver = program("receive", "tcp:127.0.0.1:0", "--into", tmp_path / "vm", "--tls-dir", right)
    address = receiver.address()
    said = refusal(program, address, "--tls-dir", wrong, *only("start/plain"))
    assert said.endswith("the peer does not know the authority of this side's certificate")
    assert "No such file" in refusal(program, address, "--tls-dir", tmp_path, *only("start/plain"))
    # It still waits.
    status, out, _ = program("probe", address, "--tls-dir", right, *only("start/plain")).end()
    assert (status, out.splitlines()[-1]) == (0, "1 ok")
    assert receiver.last_event()[0] == 1


def refusal(program: Program, *arguments: str | Path) -> str:
    status, out, err = program("probe", *arguments).end()
    assert (status, out) == (2, "")
    return err.splitlines()[-1]


def test_what_cannot_be_meant(program: Program, tmp_path: Path) -> None:
    address = f"tcp:127.0.0.1:{free_port()}"
    assert "is no address" in refusal(program, "somewhere")
    assert "no check begins with nothing/" in refusal(program, address, *only("nothing/"))
    assert "no stored VM to probe with" in refusal(program, address, "--vm", tmp_path)
    assert "--pid is for" in refusal(program, address, "--pid", "1", "--command", "true")
    nobody = refusal(program, address, "--patience-s", "0.2")
    assert nobody == f"aiomigrate: {address}: cannot connect: Connection refused"


def test_a_cancelled_probe_ends_what_it_started(program: Program, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    os.mkfifo(note)
    for number in (signal.SIGINT, signal.SIGTERM):
        with sigint_ignored():  # as in a job in the background
            process = program(
                "probe", f"tcp:127.0.0.1:{free_port()}", "--patience-s", "60",
                "--command", f"echo $$ > {note}; exec sleep 60",
            )  # fmt: skip
        pid = int(note.read_text())
        process.signal(number)
        status, _, err = process.end()
        assert (status, err.splitlines()[-1]) == (130, "aiomigrate: cancelled")
        assert not os.path.exists(f"/proc/{pid}")


def test_help_says_that_the_receiver_may_be_lost(program: Program) -> None:
    _, out, _ = program("probe", "--help").end()
    said = " ".join(out.replace("│", " ").split())
    assert "Point it only at a receiver that may be lost" in said
    assert "It never sends Complete" in said
