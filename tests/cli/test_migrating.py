"""`receive` and `send` as two processes, and against a peer that misbehaves."""

import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aiomigrate import SendOptions
from aiomigrate.cli.app import app
from tests.cli.conftest import Program, make_vm, one_sentence
from tests.support.image import GuestImage
from tests.support.peer import COMPLETE, COMPLETE_PAUSED, CONFIG, Peer, Script

ANY_PORT = "tcp:127.0.0.1:0"
JSON = ("--progress", "json")


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_vm_moves_and_is_not_sent_twice(program: Program, vm: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    receiver = program("receive", ANY_PORT, "--into", copy)
    sender = program("send", vm, receiver.address(), "--connections", "4", "--resume")
    sent_status, sent, sent_err = sender.last_event()
    status, received, err = receiver.last_event()
    assert (sent_status, sent_err, status, err) == (0, "", 0, "")
    assert sent["event"] == received["event"] == "report"
    assert sent["bytes"] == received["bytes"] == 3 << 20
    assert sent["running"] is received["running"] is received["confirmed"] is True
    assert GuestImage.of_directory(vm).differences_in(copy) == []
    for name in ("migration_config.json", "state.json"):
        assert (copy / name).read_bytes() == (vm / name).read_bytes()

    inspecting = program("inspect", copy, "--verify")
    again = program("send", vm, "tcp:127.0.0.1:1", *JSON)
    status, out, err = inspecting.end()
    assert (status, err) == (0, "")
    assert "memory-3, migration_config.json, state.json" in out
    assert "it can be sent" in out
    status, event, err = again.last_event()
    assert status == event["status"] == 2
    assert "it was given to tcp:127.0.0.1:" in one_sentence(err)
    assert "--force" in event["error"]


def test_a_person_sees_a_live_view(program: Program, vm: Path, tmp_path: Path) -> None:
    receiver = program("receive", ANY_PORT, "--into", tmp_path / "copy", *JSON)
    address = receiver.address()
    receiver.close_stdout()  # nobody reads its progress any more: it goes on all the same
    terminal, inside = os.openpty()
    try:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        sender = program("send", vm, address, stdout=inside, env=environment)
        os.close(inside)
        status, _, err = sender.end()
        screen = _all_of(terminal)
    finally:
        os.close(terminal)
    assert (status, err) == (0, "")
    assert "100%" in screen
    assert f"sent to {address}, paused: 3.0 MiB in" in screen
    status, _, err = receiver.end()
    assert (status, err) == (0, "")


def _all_of(terminal: int) -> str:
    """What was written to a terminal whose programs have ended: a read gives 4 KiB at most."""
    written = b""
    with suppress(OSError):  # EIO: that was all
        while part := os.read(terminal, 1 << 16):
            written += part
    return written.decode()


def test_check_only_asks(program: Program, vm: Path, tmp_path: Path) -> None:
    receiver = program("receive", ANY_PORT, "--into", tmp_path / "copy", "-v")
    sender = program("send", vm, receiver.address(), "--check")
    status, event, err = sender.last_event()
    assert (status, event["event"]) == (0, "checked")
    assert "it has stopped waiting" in one_sentence(err)
    status, event, err = receiver.last_event()
    assert (status, event["owner"]) == (1, "source")
    assert "abandoned" in event["error"]
    phases = [begin["phase"] for begin in event["history"]["phases"]]
    assert phases == ["waiting", "precopy", "failed"], "what it came to is told all the same"
    assert '"level": "info"' in err  # -v
    assert leftovers(tmp_path) == ["vm"]


def test_check_tells_a_damaged_file(program: Program, vm: Path, tmp_path: Path) -> None:
    # The first process stores checksums; then a byte changes.
    copy = tmp_path / "copy"
    receiver = program("receive", ANY_PORT, "--into", copy, "--progress", "none")
    address = receiver.complaint().split()[-1]
    assert program("send", vm, address, "--progress", "none").end() == (0, "", "")
    assert receiver.end() == (0, "", "")
    with (copy / "memory-0").open("r+b") as memory:
        memory.seek(1 << 20)
        memory.write(b"damaged")
    status, event, err = program("send", copy, "tcp:127.0.0.1:1", "--check").last_event()
    assert (status, event["event"]) == (1, "error")
    assert "memory-0 is damaged" in one_sentence(err)


def test_what_cannot_be_meant_begins_nothing(program: Program, vm: Path, tmp_path: Path) -> None:
    cases = {
        ("receive", ANY_PORT, "--into", vm): "the path exists already",
        ("receive", "here", "--into", tmp_path / "copy"): "'here' is no address",
        ("send", tmp_path / "none", "tcp:127.0.0.1:1"): "No such file or directory",
        ("send", vm, "unix:/none", "--connections", "2"): "more than one connection needs a tcp",
        ("send", vm, "tcp:127.0.0.1:1", "--connections", "129"): "connections must be 1 to 128",
        ("send", vm, "tcp:127.0.0.1:1", "--rate-limit", "fast"): "--rate-limit: 'fast' is no size",
        ("send", vm, "tcp:127.0.0.1:1", "--rate-limit", "1000"): "must be 0 or at least 1048576",
        ("send", vm, "tcp:127.0.0.1:1", "--throttle-cap", "100"): "must be 0 to 99, not 100",
    }
    running = {arguments: program(*arguments, "--progress", "none") for arguments in cases}
    for arguments, process in running.items():
        status, out, err = process.end()
        assert (status, out) == (2, ""), arguments
        assert cases[arguments] in one_sentence(err)
    assert leftovers(tmp_path) == ["vm"]


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ((), SendOptions()),
        (("--rate-limit", "100MiB"), SendOptions(rate_limit=100 << 20)),
        (("--rate-limit", "2000000"), SendOptions(rate_limit=2_000_000)),
        (("--throttle-cap", "40"), SendOptions(throttle_cap_percent=40)),
        (("--throttle-cap", "0"), SendOptions(throttle_cap_percent=0)),
        (("--fast-switchover",), SendOptions(fast_switchover=True)),
    ],
)
def test_what_the_options_of_send_mean(
    told: tuple[str, ...], meant: SendOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SendOptions] = []

    def run(directory: str, address: str, options: SendOptions, **_: object) -> int:
        asked.append(options)
        return 7

    monkeypatch.setattr("aiomigrate.cli.send.run", run)
    journal = tmp_path / "journal"
    arguments = ["send", "vm", "tcp:there:1", "--journal", str(journal), *told]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 7, result.output
    assert asked == [replace(meant, journal=str(journal))]


def test_failures_say_who_has_the_vm(program: Program, tmp_path: Path) -> None:
    scripts = {
        "refused": Script(error_at=CONFIG),
        "unknown": Script(close_at=COMPLETE_PAUSED),
    }
    found = {}
    for name, script in scripts.items():
        with Peer(script=script) as peer:
            vm = make_vm(tmp_path / name)
            status, event, err = program("send", vm, peer.address).last_event()
            assert one_sentence(err) == f"aiomigrate: {event['error']}"
            found[name] = status, event["status"], event["owner"]
            if name == "unknown":
                assert "may be running at the destination" in event["error"]
    assert found == {"refused": (1, 1, "source"), "unknown": (3, 3, "unknown")}


def test_nobody_listens(program: Program, vm: Path) -> None:
    status, event, err = program("send", vm, "tcp:127.0.0.1:1").last_event()
    assert (status, event["owner"]) == (1, "source")
    assert "tcp:127.0.0.1:1: cannot connect" in one_sentence(err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels(program: Program, tmp_path: Path, number: signal.Signals) -> None:
    receiver = program("receive", ANY_PORT, "--into", tmp_path / "copy", *JSON)
    receiver.address()
    assert receiver.event()["phase"] == "waiting"  # told once, not until a source comes
    receiver.signal(number)
    assert receiver.event()["phase"] == "failed"
    status, event, err = receiver.last_event()
    assert (status, event["status"], event["owner"]) == (130, 130, "source")
    assert err.splitlines()[0] == "aiomigrate: cancelling: the VM stays with the source"
    assert len(err.splitlines()) == 2
    assert leftovers(tmp_path) == []


def test_a_signal_that_comes_too_late_is_explained(program: Program, vm: Path) -> None:
    with Peer(script=Script(silent_at=COMPLETE)) as peer:
        sender = program("send", vm, peer.address, "--resume")
        peer.wait_for_requests(COMPLETE, 1)
        sender.signal(signal.SIGINT)
        assert "too late to cancel" in sender.complaint()
        sender.signal(signal.SIGTERM)
        assert "too late to cancel" in sender.complaint()
    # The peer is gone, and with it the answer.
    status, event, err = sender.last_event()
    assert (status, event["owner"]) == (3, "unknown")
    assert "the answer to Complete was lost" in one_sentence(err)


def test_verbose_errors_have_tracebacks(program: Program, vm: Path) -> None:
    process = program("send", vm, "tcp:127.0.0.1:1", "-vv", stdout=subprocess.DEVNULL)
    status, _, err = process.end()
    assert status == 1
    assert "Traceback (most recent call last)" in err
    assert "cannot connect" in err.splitlines()[-1]
