"""The units: what they execute runs under a manager of the test's; systemd judges the rest."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import DEPLOY, PROGRAM, executed
from tests.support.systemd import Manager

ANALYZE = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze"
)


def ask(path: Path, request: str, body: str = "") -> socket.socket:
    """Send a request; the connection that its answer comes on."""
    asked = socket.socket(socket.AF_UNIX)
    asked.connect(str(path))
    head = f"{request} HTTP/1.1\r\nHost: l\r\nContent-Length: {len(body)}\r\n\r\n"
    asked.sendall((head + body).encode())
    return asked


def test_the_service(api_socket: Path, tmp_path: Path) -> None:
    """It takes the socket of its unit, says what it does, and leaves the socket when it ends."""
    command = executed("aiomigrate.service", "ExecStart", tmp_path)
    with Manager(api_socket) as manager, manager.service(command) as service:
        waits = ask(api_socket, "GET /api/v1/vmm.ping")  # before it is there: that starts it
        assert "READY=1" in manager.hear_until("STATUS=migrations that run: 0")
        with waits:
            assert waits.recv(4096).startswith(b"HTTP/1.1 200")
        where = f'{{"receiver_url": "unix:{tmp_path}/vm.sock"}}'
        with ask(api_socket, "PUT /api/v1/vm.receive-migration", where):
            manager.hear_until("STATUS=migrations that run: 1")
            service.send_signal(signal.SIGTERM)
            said = manager.hear_until("STOPPING=1")
        assert said[-1].startswith("STATUS=ending: ")
        _, err = service.communicate(timeout=60)
        assert service.returncode == 0, err
    assert api_socket.exists()
    assert os.listdir(tmp_path / "state" / "aiomigrate" / "vms") == []


@pytest.mark.parametrize(
    ("name", "count", "why"),
    [
        ("other.sock", 1, "the service manager listens at unix:"),
        ("api.sock", 2, "passed 2 sockets"),
    ],
)
def test_a_socket_that_is_not_meant(
    api_socket: Path, tmp_path: Path, name: str, count: int, why: str
) -> None:
    command = executed("aiomigrate.service", "ExecStart", tmp_path)
    with (
        Manager(api_socket.with_name(name)) as manager,
        manager.service(command, count) as service,
    ):
        _, err = service.communicate(timeout=60)
        assert service.returncode == 2
        assert why in err


def test_what_comes_before_is_a_command(tmp_path: Path) -> None:
    command = executed("aiomigrate.service", "ExecStartPre", tmp_path)
    assert subprocess.run([*command, "--help"], check=False, capture_output=True).returncode == 0


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units where systemd looks for them, with the program that is there."""
    units = tmp_path / "units"
    shutil.copytree(DEPLOY, units)
    program = tmp_path / "aiomigrate"
    program.touch(mode=0o755)
    for unit in units.glob("**/*"):
        if unit.suffix in {".service", ".conf"}:
            unit.write_text(unit.read_text().replace(PROGRAM, str(program)))
    return units


@ANALYZE
@pytest.mark.parametrize("drop_in", [False, True])
def test_systemd_takes_them(installed: Path, drop_in: bool) -> None:
    if not drop_in:
        shutil.rmtree(installed / "aiomigrate.service.d")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", installed / "aiomigrate.service"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{installed}:"},
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@ANALYZE
def test_the_sandbox_is_as_tight_as_it_was() -> None:
    """The threshold is ten times the exposure, of which 0 is the least and 10 the most."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=11", "--no-pager",
         DEPLOY / "aiomigrate.service"],
        check=False,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
