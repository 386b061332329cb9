"""How the service's sockets are opened."""

import asyncio
import json
import os
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
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
        # Its name is the certificate's business, where there is one.
        host = b"localhost" if context is None else b"vms.example.com"
        request = b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"
        writer.write(request % host)
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


@pytest.fixture
def over_tls(
    service: Service, tcp: socket.socket, place: Path
) -> AbstractAsyncContextManager[None]:
    """While it is entered, the service is served on `tcp`."""
    return serve(service, tcp, tls_dir=place / "tls")


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
async def test_handshakes_are_no_work_of_the_loops(
    over_tls: AbstractAsyncContextManager[None],
    tcp: socket.socket,
    contexts: dict[str, ssl.SSLContext | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signature with a long key takes longer than migrations may wait."""
    steps: list[threading.Thread] = []
    shake = ssl.SSLSocket.do_handshake

    def noted(tls: ssl.SSLSocket) -> None:
        if tls.server_side:
            steps.append(threading.current_thread())
        shake(tls)

    monkeypatch.setattr(ssl.SSLSocket, "do_handshake", noted)
    async with over_tls:
        assert await ping(tcp, contexts["right"]) == b"HTTP/1.1 200"
    assert steps  # one is enough where the peer has answered before it looks again
    assert threading.main_thread() not in steps


async def test_long_requests_and_answers_and_what_does_not_end(
    over_tls: AbstractAsyncContextManager[None],
    tcp: socket.socket,
    contexts: dict[str, ssl.SSLContext | None],
    no_leaks: None,
) -> None:
    """One that listens to events is let go when the service ends."""
    right = contexts["right"]
    async with over_tls:
        events, listening = await asyncio.open_connection(*tcp.getsockname(), ssl=right)
        listening.write(b"GET /events HTTP/1.1\r\nHost: l\r\n\r\n")
        assert b": listening\n\n" in await events.readuntil(b"listening\n\n")
        asking, writer = await asyncio.open_connection(*tcp.getsockname(), ssl=right)
        body = b'{"destination_url":"' + b"x" * 300_000 + b'"}'
        writer.write(
            b"PUT /api/v1/vm.snapshot HTTP/1.1\r\nHost: l\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        writer.write(body)
        assert (await asking.readline()).startswith(b"HTTP/1.1 500")  # no VM; and it was read whole
        headers = await asking.readuntil(b"\r\n\r\n")
        await asking.readexactly(int(headers.partition(b"Content-Length: ")[2].split(b"\r")[0]))
        writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: l\r\n\r\n")
        headers = await asking.readuntil(b"\r\n\r\n")
        long = int(headers.partition(b"Content-Length: ")[2].split(b"\r")[0])
        assert json.loads(await asking.readexactly(long))["openapi"]
        writer.transport.abort()  # in the middle of nothing, and nobody minds
        assert await ping(tcp, right) == b"HTTP/1.1 200"
    assert await events.read() == b"\r\n0\r\n\r\n", "it was told the end"
    listening.transport.abort()


@BOTH_LOOPS
async def test_whoever_says_nothing_keeps_nobody_out(
    over_tls: AbstractAsyncContextManager[None],
    tcp: socket.socket,
    contexts: dict[str, ssl.SSLContext | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiomigrate.api.secure._STRANGERS", 2)
    async with over_tls:
        silent = [await asyncio.open_connection(*tcp.getsockname()) for _ in range(3)]
        assert await silent[0][0].read() == b"", "it was silent for longest"
        assert await ping(tcp, contexts["right"]) == b"HTTP/1.1 200"
        for _, writer in silent:
            writer.transport.abort()


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
