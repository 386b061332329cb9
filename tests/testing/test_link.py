import errno
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aiomigrate.testing import Link, LinkUnavailable, Namespace
from tests.testing.link_rig import TIMEOUT_S, connected, link

TCP_INFO_RTT = 68


def transfer(source: socket.socket, sink: socket.socket, size: int) -> None:
    """Send random bytes; they come whole."""
    data = os.urandom(size)
    sender = threading.Thread(target=source.sendall, args=(data,))
    sender.start()
    got = bytearray()
    while len(got) < size and (piece := sink.recv(1 << 20)):
        got += piece
    sender.join()
    assert got == data


@pytest.mark.parametrize("shape", [{}, {"delay_s": 0.02}, {"delay_s": 0.01, "rate": 50e6}])
def test_tcp_over_it_sees_the_round_trip(shape: dict[str, float]) -> None:
    with link(**shape) as over, connected(over) as (near, far):
        transfer(near, far, 4 << 20)
        transfer(far, near, 100_000)
        info = near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_RTT + 4)
        (rtt_us,) = struct.unpack_from("I", info, TCP_INFO_RTT)
        assert rtt_us >= 2e6 * shape.get("delay_s", 0.0)


@pytest.mark.parametrize("shape", [{}, {"delay_s": 0.01}], ids=["veth", "tun"])
def test_nothing_passes_while_it_is_down_and_goes_on_after(shape: dict[str, float]) -> None:
    with link(**shape) as over, connected(over) as (near, far):
        transfer(near, far, 1000)
        over.down()
        with over.near.call(socket.socket) as new, pytest.raises(OSError) as caught:
            new.connect((over.far_address, 1))
        assert caught.value.errno == errno.ENETUNREACH
        near.sendall(b"into the dark")
        # The first transmission, and some that repeat it, were then.
        far.settimeout(1.0)
        with pytest.raises(TimeoutError):
            far.recv(1)
        over.up()
        far.settimeout(TIMEOUT_S)
        assert far.recv(13, socket.MSG_WAITALL) == b"into the dark"
        transfer(far, near, 1000)


def test_processes_run_inside() -> None:
    with link() as over:
        script = "import socket; print(socket.create_server(('10.0.0.1', 0)).getsockname()[0])"
        command = [sys.executable, "-c", script]
        inside = over.near.call(subprocess.run, command, capture_output=True, check=True)
        assert inside.stdout == b"10.0.0.1\n"
        with socket.socket() as outside, pytest.raises(OSError) as caught:
            outside.bind((over.near_address, 0))
        assert caught.value.errno == errno.EADDRNOTAVAIL


def test_nothing_is_left_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), link(delay_s=0.01):
        raise ZeroDivisionError


def test_it_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with link():
        pass  # else there is no namespace to be without iproute2 in
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LinkUnavailable, match="iproute2's `ip` is not installed"):
        Link().__enter__()
    (tmp_path / "ip").symlink_to("/bin/false")
    with pytest.raises(LinkUnavailable, match="`ip link set lo up`: "):
        Namespace()


def test_without_the_right_to_it_it_says_so() -> None:
    if os.geteuid() != 0:
        pytest.skip("it gives up root's rights, and is not root")
    script = (
        "import os\n"
        "from aiomigrate.testing import Link, LinkUnavailable\n"
        "os.setuid(65534)\n"
        "try:\n"
        "    Link().__enter__()\n"
        "except LinkUnavailable as error:\n"
        "    print(error)\n"
    )
    unprivileged = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert unprivileged.stdout == (
        b"no network namespace can be made (unshare(2), which needs CAP_SYS_ADMIN): "
        b"Operation not permitted\n"
    )
