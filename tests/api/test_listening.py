"""How the service's sockets are opened."""

import asyncio
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiomigrate import UsageError
from aiomigrate.api import Service, open_tcp, open_unix, serve
from aiomigrate.transport import source_context
from tests.api.conftest import Client
from tests.support.certificates import Authority


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


# Over tcp

BOTH_LOOPS = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with open_tcp("tcp:127.0.0.1:0") as listener:
        yield listener


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tls` has the files of this service and its clients, `strangers` those of others."""
    path = tmp_path_factory.mktemp("certificates")
    Authority().directory(path / "tls")
    Authority().directory(path / "strangers")
    return path


async def ping(listener: socket.socket, context: ssl.SSLContext | None) -> bytes:
    """The beginning of the answer; empty if there is none."""
    try:
        reader, writer = await asyncio.open_connection(*listener.getsockname(), ssl=context)
        writer.write(b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n")
        answer = await reader.read(12)
        writer.transport.abort()
    except (ssl.SSLError, ConnectionError):
        return b""
    return answer


@pytest.fixture
def contexts(place: Path) -> dict[str, ssl.SSLContext | None]:
    """What clients show."""

    def trusting(tls_dir: Path | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(place / "tls" / "ca-cert.pem"))
        if tls_dir is not None:
            context.load_cert_chain(tls_dir / "client-cert.pem", tls_dir / "client-key.pem")
        return context

    too_old = trusting(place / "tls")
    too_old.maximum_version = ssl.TLSVersion.TLSv1_2
    return {
        "right": source_context(place / "tls"),
        "no certificate": trusting(None),
        "a stranger's": trusting(place / "strangers"),
        "TLS 1.2": too_old,
        "no TLS": None,
    }


@BOTH_LOOPS
@pytest.mark.parametrize("wrong", ["no certificate", "a stranger's", "TLS 1.2", "no TLS"])
async def test_only_who_has_a_certificate_is_served(
    service: Service,
    listener: socket.socket,
    tcp: socket.socket,
    place: Path,
    contexts: dict[str, ssl.SSLContext | None],
    wrong: str,
) -> None:
    """And over the unix socket, which needs none, everybody."""
    async with serve(service, listener, tcp, tls_dir=place / "tls"):
        assert not (await ping(tcp, contexts[wrong])).startswith(b"HTTP/")
        assert await ping(tcp, contexts["right"]) == b"HTTP/1.1 200"
        client = Client(Path(listener.getsockname()), service)
        assert (await client.get("vmm.ping")).status == 200


@BOTH_LOOPS
async def test_tcp_without_certificates_is_explicit(
    service: Service, listener: socket.socket, tcp: socket.socket
) -> None:
    with pytest.raises(UsageError, match="whoever reaches a tcp address may do everything"):
        async with serve(service, listener, tcp):
            pass
    async with serve(service, listener, tcp, insecure=True):
        assert await ping(tcp, None) == b"HTTP/1.1 200"


async def test_files_are_looked_at_before_anybody_is_served(
    service: Service, tcp: socket.socket, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "ca-cert.pem").write_bytes((place / "tls" / "ca-cert.pem").read_bytes())
    with pytest.raises(UsageError, match=r"server-cert\.pem: No such file or directory"):
        async with serve(service, tcp, tls_dir=tmp_path):
            pass
