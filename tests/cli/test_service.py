"""`aiomigrate serve`, and the commands that ask a service, as real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aiomigrate.cli.app import app
from tests.cli.conftest import MIB, Process, Program, make_vm, one_sentence
from tests.support.image import Mapping
from tests.support.vms import store_vm

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def vms(tmp_path: Path) -> Path:
    """Where stored VMs are: `web-1`."""
    (tmp_path / "vms").mkdir()
    make_vm(tmp_path / "vms" / "web-1")
    return tmp_path / "vms"


@pytest.fixture
def served(program: Program, vms: Path, tmp_path: Path) -> Process:
    """A service for them."""
    return start(program, vms, tmp_path)


def start(program: Program, vms: Path, tmp_path: Path, name: str = "api.sock") -> Process:
    service = program("serve", "--api-socket", tmp_path / name, "--vms", vms)
    assert service.address() == f"unix:{tmp_path / name}"
    return service


@pytest.fixture
def ask(served: Process, tmp_path: Path) -> Ask:
    """Run a command against the service: status, stdout, stderr."""
    return partial(run, tmp_path / "api.sock")


def run(socket_path: Path, command: str, *arguments: str) -> tuple[int, str, str]:
    """In this process: what is under test is in another."""
    done = CliRunner().invoke(app, [command, "--api-socket", str(socket_path), *arguments])
    return done.exit_code, done.stdout, done.stderr


def put(socket_path: Path, path: str, body: dict[str, Any]) -> int:
    """As curl would."""
    content = json.dumps(body).encode()
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(str(socket_path))
        head = f"PUT /api/v1/{path} HTTP/1.1\r\nHost: l\r\nContent-Length: {len(content)}\r\n\r\n"
        asked.sendall(head.encode() + content)
        return int(asked.recv(4096).split()[1])


def test_it_ends_in_good_order(served: Process, tmp_path: Path) -> None:
    served.signal(signal.SIGTERM)
    status, _, err = served.end()
    assert status == 0
    assert "ending: " in err
    assert not (tmp_path / "api.sock").exists()


def test_tcp_is_explicit(vms: Path, tmp_path: Path) -> None:
    listen = ["--vms", str(vms), "--listen", "tcp:127.0.0.1:0"]
    status, _, err = run(tmp_path / "api.sock", "serve", *listen)
    assert status == 2
    assert "--insecure" in one_sentence(err)
    status, _, err = run(tmp_path / "api.sock", "serve", *listen[:2], "--tls-dir", str(tmp_path))
    assert status == 2
    assert "--tls-dir is for --listen" in one_sentence(err)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    status, _, err = run(tmp_path / "api.sock", "serve", "--vms", str(tmp_path / "nowhere"))
    assert (status, "no such directory" in one_sentence(err)) == (2, True)


def test_no_service(tmp_path: Path) -> None:
    for command in ("ps", "watch", "cancel", "tune", "outcome"):
        status, _, err = run(tmp_path / "api.sock", command)
        assert status == 2
        assert "no service answers" in one_sentence(err)


def test_nothing_to_speak_of(ask: Ask, tmp_path: Path) -> None:
    status, out, _ = ask("ps", "--json")
    assert (status, json.loads(out)) == (0, [])
    for command in ("watch", "cancel", "outcome"):
        status, _, err = ask(command)
        assert status == 2
        assert one_sentence(err) == f"aiomigrate: {tmp_path}/api.sock: there is no migration"


def test_from_one_service_to_another(
    ask: Ask, program: Program, tmp_path: Path, vms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "others").mkdir()
    receiver = program("receive", "tcp:127.0.0.1:0", "--into", tmp_path / "others" / "web-1")
    body = {"destination_url": receiver.address(), "prefer": "downtime"}
    assert put(tmp_path / "api.sock", "vm.send-migration?vm=web-1", body) == 204
    status, out, _ = ask("watch", "--vm", "web-1")
    event = json.loads(out.splitlines()[-1])
    assert (status, event["event"], event["owner"]) == (0, "report", "destination")
    assert receiver.last_event()[0] == 0
    listed = json.loads(ask("ps", "--json")[1])
    assert [one["state"] for one in listed] == ["done"]
    name = listed[0]["id"]
    monkeypatch.setenv("COLUMNS", "40")
    status, out, _ = ask("ps")
    assert status == 0
    words = out.splitlines()[1].split()
    assert words[:6] == [name, "web-1", "to", listed[0]["url"], "done", "100%"]
    status, out, _ = ask("outcome", name)
    assert (status, out) == (0, f"{name}  the VM is with the destination: it is done\n")
    status, _, err = ask("cancel", name)
    assert (status, "is over" in one_sentence(err)) == (1, True)
    # The journal calls it the same.
    done = CliRunner().invoke(app, ["outcome", name])
    assert done.exit_code == 0
    assert name in done.stdout


def test_watching_changing_and_cancelling(
    ask: Ask, served: Process, program: Program, tmp_path: Path, vms: Path
) -> None:
    """Of a migration that would take half a minute."""
    large = Mapping(0, 0, 64 * MIB, "mem0", virtio_mem=False, file_offset=0)
    store_vm(vms / "web-2", [large])
    receiver = program("receive", "tcp:127.0.0.1:0", "--into", tmp_path / "taken")
    body = {"destination_url": receiver.address(), "rate_limit": MIB}
    assert put(tmp_path / "api.sock", "vm.send-migration?vm=web-2", body) == 204
    name = json.loads(ask("ps", "--json")[1])[0]["id"]
    status, out, err = ask("tune", name, "--downtime-ms", "7", "--rate-limit", "1MiB")
    assert (status, out, err) == (0, "", "")
    status, _, err = ask("tune", name)
    assert (status, "nothing is to be changed" in one_sentence(err)) == (2, True)
    status, _, err = ask("tune", name, "--rate-limit", "fast")
    assert (status, "is no size" in one_sentence(err)) == (2, True)
    status, out, _ = ask("outcome", name)
    assert status == 3
    status, out, _ = ask("cancel", name)
    assert (status, out) == (0, f"{name}: the migration was cancelled; the VM is with the source\n")
    status, out, err = ask("watch", name)
    assert status == 130
    assert json.loads(out.splitlines()[-1])["owner"] == "source"
    served.signal(signal.SIGTERM)
    _, _, log = served.end()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    about = [line for line in lines if line.get("migration") == name]
    assert [line["event"] for line in about if "changed" in line["event"]]
    for line in about:
        assert set(line) >= {"event", "level", "logger", "timestamp", "connection", "phase"}


@pytest.mark.parametrize("missing", ["aiohttp", "pydantic", "prometheus_client"])
def test_without_the_extra_it_says_what_is_missing(missing: str, tmp_path: Path) -> None:
    code = (
        "import sys; from importlib import util; find = util.find_spec; "
        f"util.find_spec = lambda name: None if name == {missing!r} else find(name); "
        f"sys.argv = ['aiomigrate', 'ps', '--api-socket', {str(tmp_path / 'x')!r}]; "
        "from aiomigrate.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"aiomigrate: services need {missing}, which is not installed: "
        "pip install 'aiomigrate[cli,api]'\n"
    )
