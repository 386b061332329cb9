"""The files of `tls_dir` are read, and their faults named, before anything is sent."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import ReceiveOptions, SendOptions, UsageError
from aiomigrate.checking import check
from tests.support.certificates import Authority
from tests.support.hostile import SMALL
from tests.support.vms import Guest, Landing

pytestmark = pytest.mark.usefixtures("no_leaks")

LISTEN = "tcp:127.0.0.1:0"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def _none(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_text(text)


def _another_key(path: Path) -> None:
    (path / "client-key.pem").write_bytes((path / "server-key.pem").read_bytes())


def _encrypted(path: Path) -> None:
    key = path / "client-key.pem"
    command = ["openssl", "pkcs8", "-topk8", "-in", str(key), "-passout", "pass:secret"]
    key.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)


def _fifo(path: Path) -> None:
    (path / "client-cert.pem").unlink()
    os.mkfifo(path / "client-cert.pem")


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (_none, "{}: the TLS directory: No such file or directory"),
    "no key": (lambda p: (p / "client-key.pem").unlink(), "{}/client-key.pem: No such file"),
    "no authority": (lambda p: (p / "ca-cert.pem").unlink(), "{}/ca-cert.pem: No such file"),
    "a fifo": (_fifo, "{}/client-cert.pem: it is no regular file"),
    "text for authorities": (_write("ca-cert.pem", "x"), "{}/ca-cert.pem: it holds no certificate"),
    "text for a certificate": (
        _write("client-cert.pem", "x"),
        "{}/client-cert.pem: it holds no certificate",
    ),
    "text for a key": (_write("client-key.pem", "x"), "{}/client-key.pem: it holds no private key"),
    "another key": (_another_key, "{}/client-key.pem: it is not the key of client-cert.pem"),
    "an encrypted key": (_encrypted, "{}/client-key.pem: the key is encrypted"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
async def test_files_are_checked_before_anything_is_sent(
    bad: str, authority: Authority, tmp_path: Path
) -> None:
    spoil, says = BAD_FILES[bad]
    tls_dir = authority.directory(tmp_path / "tls")
    spoil(tls_dir)
    says = says.format(tls_dir)
    options = SendOptions(tls_dir=tls_dir)
    with Guest(SMALL) as guest:
        with pytest.raises(UsageError) as caught:
            async with aiomigrate.send(guest, "tcp:127.0.0.1:9", options):
                pass
        assert says in str(caught.value)
        with pytest.raises(UsageError) as caught:
            await check(guest, "tcp:127.0.0.1:9", options)
        assert says in str(caught.value)
        assert guest.calls == []


async def test_a_destination_checks_its_files_before_it_listens(
    authority: Authority, tmp_path: Path
) -> None:
    tls_dir = authority.directory(tmp_path / "tls")
    (tls_dir / "server-key.pem").unlink()
    with Landing() as landing, pytest.raises(UsageError, match=r"server-key.pem: No such file"):
        async with aiomigrate.receive(landing, LISTEN, ReceiveOptions(tls_dir=tls_dir)):
            pass


async def test_tls_is_for_tcp(authority: Authority, tmp_path: Path) -> None:
    tls_dir = authority.directory(tmp_path / "tls")
    address = f"unix:{tmp_path}/socket"
    with Guest(SMALL) as guest, Landing() as landing:
        with pytest.raises(UsageError, match="TLS is for tcp addresses"):
            async with aiomigrate.send(guest, address, SendOptions(tls_dir=tls_dir)):
                pass
        with pytest.raises(UsageError, match="TLS is for tcp addresses"):
            async with aiomigrate.receive(landing, address, ReceiveOptions(tls_dir=tls_dir)):
                pass
