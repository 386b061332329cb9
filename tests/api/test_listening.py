"""How the service's sockets are opened."""

import os
import socket
import stat
from pathlib import Path

import pytest

from aiomigrate import UsageError
from aiomigrate.api import open_tcp, open_unix


def test_a_unix_socket_is_for_its_user_only(tmp_path: Path) -> None:
    before = os.umask(0)  # its mode does not come from that
    try:
        with open_unix(str(tmp_path / "api.sock")):
            mode = (tmp_path / "api.sock").stat().st_mode
    finally:
        os.umask(before)
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert not (tmp_path / "api.sock").exists()


def test_two_do_not_share_one(tmp_path: Path) -> None:
    with open_unix(str(tmp_path / "api.sock")) as listener:
        inode = (tmp_path / "api.sock").stat().st_ino
        with (
            pytest.raises(UsageError, match="another service listens there"),
            open_unix(str(tmp_path / "api.sock")),
        ):
            pass
        assert (tmp_path / "api.sock").stat().st_ino == inode
        assert listener.fileno() >= 0


def test_one_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "api.sock"))
    with open_unix(str(tmp_path / "api.sock")) as listener:
        listener.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "api.sock"))


def test_something_else_in_its_place_stays(tmp_path: Path) -> None:
    (tmp_path / "api.sock").write_text("precious")
    with (
        pytest.raises(UsageError, match="Address already in use"),
        open_unix(str(tmp_path / "api.sock")),
    ):
        pass
    assert (tmp_path / "api.sock").read_text() == "precious"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="No such file or directory"),
        open_unix(str(tmp_path / "nowhere" / "api.sock")),
    ):
        pass


def test_tcp() -> None:
    with open_tcp("tcp:127.0.0.1:0") as listener:
        listener.listen()
        host, port = listener.getsockname()
        taken = open_tcp(f"tcp:{host}:{port}")
        with pytest.raises(UsageError, match="Address already in use"), taken:
            pass
    for address in ("unix:/tmp/x", "tcp:127.0.0.1", "http://127.0.0.1"):
        with pytest.raises(UsageError), open_tcp(address):
            pass
