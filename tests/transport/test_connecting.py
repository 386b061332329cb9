import asyncio
import os
import socket
from pathlib import Path

import pytest

from aiomigrate.transport import (
    Address,
    ConnectFailed,
    Listener,
    TcpAddress,
    UnixAddress,
    connect,
    connecting,
    listen,
)
from aiomigrate.transport.sockets import Endpoint, stream_socket
from tests.support.clock import VirtualClockLoop

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])
virtual = pytest.mark.asyncio(loop_factories=["virtual"])


@pytest.fixture(params=["tcp4", "tcp6", "unix"])
def kind(request: pytest.FixtureRequest) -> str:
    """Without TLS, whose handshakes have tests of their own."""
    return str(request.param)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def resolving_to(monkeypatch: pytest.MonkeyPatch, *endpoints: Endpoint) -> None:
    async def resolve(address: Address) -> list[Endpoint]:
        return list(endpoints)

    monkeypatch.setattr(connecting, "resolve", resolve)


async def test_a_connection_is_named_after_its_address(listener: Listener) -> None:
    connection = await connect(listener.address)
    assert connection.name == str(listener.address)
    assert str(listener.address) in repr(connection)
    connection.close()


async def test_names_are_looked_up() -> None:
    listener = await listen(TcpAddress("localhost", 0))
    assert isinstance(listener.address, TcpAddress)
    connection = await connect(TcpAddress("localhost", listener.address.port))
    assert connection.name == f"tcp:localhost:{listener.address.port}"
    assert connection.peer_host == listener.address.host
    connection.close()
    listener.close()


async def test_all_addresses_of_a_name_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = await listen(TcpAddress("127.0.0.1", 0))
    assert isinstance(listener.address, TcpAddress)
    port = listener.address.port
    resolving_to(
        monkeypatch,
        (socket.AF_INET6, ("::1", port)),
        (socket.AF_INET, ("127.0.0.1", port)),
    )
    connection = await connect(TcpAddress("host", port))
    assert connection.peer_host == "127.0.0.1"
    connection.close()
    listener.close()


async def test_each_failed_try_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    port = unused_port()
    resolving_to(
        monkeypatch,
        (socket.AF_INET6, ("::1", port)),
        (socket.AF_INET, ("127.0.0.1", port)),
    )
    with pytest.raises(ConnectFailed) as caught:
        await connect(TcpAddress("host", port))
    assert caught.value.tries == ("::1: Connection refused", "127.0.0.1: Connection refused")
    assert isinstance(caught.value.__cause__, ExceptionGroup)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (UnixAddress("/nonexistent/socket"), "cannot connect: No such file or directory"),
        (TcpAddress("127.0.0.1", 0), "cannot connect: Connection refused"),
        (TcpAddress("x" * 64, 6000), "too long"),
    ],
)
async def test_why_there_is_no_connection_is_said(address: Address, says: str) -> None:
    with pytest.raises(ConnectFailed, match=says) as caught:
        await connect(address)
    assert isinstance(caught.value.__cause__, OSError | UnicodeError)


async def test_a_connection_to_itself_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may give a socket the port that it connects to, if nobody listens there."""
    port = unused_port()

    def bound(family: socket.AddressFamily) -> socket.socket:
        sock = stream_socket(family)
        sock.bind(("127.0.0.1", port))
        return sock

    monkeypatch.setattr(connecting, "stream_socket", bound)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ConnectFailed, match="nobody listens there, it reached itself"):
        await connect(TcpAddress("127.0.0.1", port))
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_name_that_nobody_knows_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(address: Address) -> list[Endpoint]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(connecting, "resolve", resolve)
    with pytest.raises(ConnectFailed, match="host:1: cannot connect: Name or service not known"):
        await connect(TcpAddress("host", 1))


class FullListener:
    """A listening socket whose backlog has no room: TCP drops what comes, a unix one refuses."""

    def __init__(self, family: int, where: object) -> None:
        self.sockets = [socket.socket(family)]
        self.sockets[0].bind(where)  # type: ignore[arg-type]
        self.sockets[0].listen(0)
        for _ in range(4):
            client = socket.socket(family)
            client.setblocking(False)
            client.connect_ex(self.sockets[0].getsockname())
            self.sockets.append(client)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@virtual
@pytest.mark.parametrize("unix", [False, True])
async def test_connecting_ends(clock: VirtualClockLoop, tmp_path: Path, unix: bool) -> None:
    path = str(tmp_path / "socket")
    full = FullListener(*((socket.AF_UNIX, path) if unix else (socket.AF_INET, ("127.0.0.1", 0))))
    where = full.sockets[0].getsockname()
    address = UnixAddress(path) if unix else TcpAddress(*where)
    start = clock.time()
    with pytest.raises(ConnectFailed, match="no answer in time"):
        await connect(address, within=10.0)
    assert clock.time() - start == pytest.approx(10.0)
    full.close()


@virtual
async def test_silent_addresses_share_the_time(
    clock: VirtualClockLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = FullListener(socket.AF_INET, ("127.0.0.1", 0))
    listener = await listen(TcpAddress("127.0.0.1", 0))
    assert isinstance(listener.address, TcpAddress)
    resolving_to(
        monkeypatch,
        (socket.AF_INET, full.sockets[0].getsockname()),
        (socket.AF_INET, ("127.0.0.1", listener.address.port)),
    )
    start = clock.time()
    connection = await connect(TcpAddress("host", 1), within=10.0)
    assert clock.time() - start == pytest.approx(5.0)
    for end in (connection, listener, full):
        end.close()


@virtual
async def test_a_look_up_ends(clock: VirtualClockLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(address: Address) -> list[Endpoint]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(connecting, "resolve", resolve)
    with pytest.raises(ConnectFailed, match="no answer in time"):
        await connect(TcpAddress("host", 1), within=10.0)


@pytest.mark.parametrize("unix", [False, True])
async def test_a_cancelled_connect_leaves_nothing_behind(tmp_path: Path, unix: bool) -> None:
    path = str(tmp_path / "socket")
    full = FullListener(*((socket.AF_UNIX, path) if unix else (socket.AF_INET, ("127.0.0.1", 0))))
    address = UnixAddress(path) if unix else TcpAddress(*full.sockets[0].getsockname())
    before = set(os.listdir("/proc/self/fd"))
    for turns in range(5):
        task = asyncio.create_task(connect(address))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert set(os.listdir("/proc/self/fd")) == before
    full.close()
