"""The door for clients with TLS: whom it holds, and for how long."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiomigrate.api import Service, open_tcp, serve
from tests.support.certificates import Authority
from tests.support.handshakes import HeldHandshakes


@pytest.fixture(scope="module")
def tls_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificates") / "tls"
    Authority().directory(path)
    return path


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with open_tcp("tcp:127.0.0.1:0") as listener:
        yield listener


async def test_no_more_handshakes_than_may_be(
    service: Service,
    tcp: socket.socket,
    tls_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also while each of them waits for a thread."""
    monkeypatch.setattr("aiomigrate.api.secure._STRANGERS", 2)
    handshakes = HeldHandshakes(monkeypatch)
    async with serve(service, tcp, tls_dir=tls_dir):
        clients = [await asyncio.open_connection(*tcp.getsockname()) for _ in range(8)]
        await handshakes.begun.wait()
        for _ in range(100):  # turns of the loop: each could take one
            await asyncio.sleep(0)
        held_at_once = handshakes.connections
        handshakes.go_on()
        for reader, _ in clients[:6]:
            assert await reader.read() == b"", "newer ones came"
        for _, writer in clients:
            writer.transport.abort()
    assert held_at_once == 3


async def test_who_is_in_a_handshake_at_the_end_is_let_go(
    service: Service, tcp: socket.socket, tls_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: the test's timeout is shorter than these."""
    monkeypatch.setattr("aiomigrate.api.secure._HANDSHAKE_S", 3600.0)
    monkeypatch.setattr("aiomigrate.api.http._GOODBYE_S", 3600.0)
    async with serve(service, tcp, tls_dir=tls_dir):
        silent = [await asyncio.open_connection(*tcp.getsockname()) for _ in range(2)]
        for _ in range(10):  # until they were taken
            await asyncio.sleep(0)
    for reader, writer in silent:
        assert await reader.read() == b""
        writer.transport.abort()
