import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.signals import sigint_ignored

COMMAND = [sys.executable, "-m", "aiomigrate.testing"]


@contextmanager
def running(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_relays_and_prints_a_line_for_each_fault_and_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        address = f"tcp:127.0.0.1:{target.getsockname()[1]}"
        faults = ["--fault", "conn=0,dir=up,cut=3", "--fault", "delay=0.01"]
        with running("tcp:127.0.0.1:0", address, *faults) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.endswith(f": relays to {address}\n")
            where = first.removeprefix("tcp:127.0.0.1:").partition(":")[0]
            with socket.create_connection(("127.0.0.1", int(where)), 10) as near:
                far, _ = target.accept()
                with far:
                    near.sendall(b"abcdef")
                    assert far.recv(100, socket.MSG_WAITALL) == b"abc"
            assert process.stdout.readline() == "connection 0, up: struck by conn=0,dir=up,cut=3\n"
            assert process.stdout.readline() == "connection 0: cut after 3 bytes up, 0 down\n"
            process.send_signal(signal.SIGINT)
            assert process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_good_order_though_it_began_in_the_background(
    number: int, tmp_path: Path
) -> None:
    listens = tmp_path / "relay.sock"
    with sigint_ignored(), running(f"unix:{listens}", f"unix:{tmp_path}/target") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"unix:{listens}: relays to")
        process.send_signal(number)
        assert process.wait() == 0
    assert not listens.exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["tcp:127.0.0.1:0", "tcp:127.0.0.1:1", "--fault", "cut"], "'cut' needs a number, not ''"),
        (["tcp:127.0.0.1:0", "nowhere"], "'nowhere' is no address"),
        (["tcp:192.0.2.1:9", "tcp:127.0.0.1:1"], "tcp:192.0.2.1:9: cannot listen"),
    ],
)
def test_what_cannot_be_is_a_usage_error(arguments: list[str], why: str) -> None:
    process = subprocess.run([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True, check=False)
    assert process.returncode == 2
    assert why in process.stderr
