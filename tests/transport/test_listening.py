import asyncio
import errno
import os
import socket
import stat
import struct
from pathlib import Path

import pytest

from aiomigrate.transport import (
    Address,
    BusyError,
    ConnectionClosed,
    Listener,
    ListenFailed,
    TcpAddress,
    UnixAddress,
    connect,
    listen,
    parse_address,
)
from tests.support.clock import VirtualClockLoop

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])
virtual = pytest.mark.asyncio(loop_factories=["virtual"])


@pytest.fixture(params=["tcp4", "tcp6", "unix"])
def kind(request: pytest.FixtureRequest) -> str:
    """Without TLS, whose handshakes have tests of their own."""
    return str(request.param)


class FailingSocket:
    """The listener's socket, whose accept fails with the next of `errors` while there are any."""

    def __init__(self, sock: socket.socket, errors: list[int]) -> None:
        self.sock = sock
        self.errors = errors
        self.calls = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.calls += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self.sock.accept()

    def close(self) -> None:
        self.sock.close()


def failing(listener: Listener, *errors: int) -> FailingSocket:
    sock = FailingSocket(listener._sock, list(errors))
    listener._sock = sock  # type: ignore[assignment]
    return sock


def raw_client(address: Address) -> socket.socket:
    if isinstance(address, UnixAddress):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address.path)
        return sock
    return socket.create_connection((address.host, address.port))


async def test_the_listener_knows_its_real_port(listener: Listener, address: Address) -> None:
    if isinstance(address, UnixAddress):
        assert listener.address == address
    else:
        assert isinstance(listener.address, TcpAddress)
        assert listener.address.port > 0
        assert listener.address.host in {"127.0.0.1", "::1"}
    assert str(listener.address) in repr(listener)


async def test_accepted_connections_are_named_after_their_peer(listener: Listener) -> None:
    client = raw_client(listener.address)
    accepted = await listener.accept()
    if isinstance(listener.address, UnixAddress):
        assert (accepted.name, accepted.peer_host) == (str(listener.address), "")
    else:
        host, port = client.getsockname()[:2]
        assert accepted.name == str(TcpAddress(host, port))
        assert accepted.peer_host == host
    assert os.get_blocking(accepted._fd) is False
    client.close()
    accepted.close()


async def test_an_ipv4_peer_of_a_listener_on_all_addresses_has_its_ipv4_address() -> None:
    listener = await listen(parse_address("tcp:[::]:0", listening=True))
    assert isinstance(listener.address, TcpAddress)
    client = raw_client(TcpAddress("127.0.0.1", listener.address.port))
    accepted = await listener.accept()
    assert accepted.peer_host == "127.0.0.1"
    assert accepted.name.startswith("tcp:127.0.0.1:")
    for end in (client, accepted, listener):
        end.close()


async def test_strangers_that_reset_before_they_are_accepted_end_nothing(
    listener: Listener,
) -> None:
    stranger = raw_client(listener.address)
    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stranger.close()
    client = await connect(listener.address)
    await client.write(b"hello")
    accepted = await listener.accept()
    if accepted.hung_up():  # Linux hands it over; others report ECONNABORTED
        accepted.close()
        accepted = await listener.accept()
    assert await accepted.read_exactly(5) == b"hello"
    accepted.close()
    client.close()


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.ENETUNREACH])
async def test_errors_of_a_new_connection_end_nothing(listener: Listener, number: int) -> None:
    failing(listener, number, number)
    client = raw_client(listener.address)
    (await listener.accept()).close()
    client.close()


async def test_errors_of_the_listener_itself_are_told(listener: Listener) -> None:
    failing(listener, errno.EINVAL)
    with pytest.raises(Exception, match="accept: Invalid argument"):
        await listener.accept()


@virtual
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_a_lack_of_descriptors_is_waited_out_without_spinning(
    listener: Listener,
    clock: VirtualClockLoop,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    client = raw_client(listener.address)
    start = clock.time()
    sock = failing(listener, *[number] * 40)
    (await listener.accept()).close()
    assert clock.time() - start == pytest.approx(10.0)
    assert sock.calls == 41
    assert [record.levelname for record in caplog.records] == ["WARNING"], "said once"
    client.close()


async def test_accepting_is_for_one_task(listener: Listener) -> None:
    waiting = asyncio.create_task(listener.accept())
    await asyncio.sleep(0)
    with pytest.raises(BusyError, match="two tasks accept"):
        await listener.accept()
    waiting.cancel()
    await asyncio.wait([waiting])


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancelled_accept_leaves_nothing_on_the_loop(
    listener: Listener, turns: int
) -> None:
    waiting = asyncio.create_task(listener.accept())
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not asyncio.get_running_loop().remove_reader(listener._sock.fileno())
    client = raw_client(listener.address)
    (await listener.accept()).close()
    client.close()


async def test_closing_wakes_who_accepts(listener: Listener) -> None:
    waiting = asyncio.create_task(listener.accept())
    for _ in range(3):
        await asyncio.sleep(0)
    fd = listener._sock.fileno()
    listener.close()
    listener.close()
    assert not asyncio.get_running_loop().remove_reader(fd)
    with pytest.raises(ConnectionClosed):
        await waiting
    with pytest.raises(ConnectionClosed):
        await listener.accept()
    assert "closed" in repr(listener)


async def test_a_socket_file_is_its_owners_only_and_goes_with_the_listener(
    tmp_path: Path,
) -> None:
    path = tmp_path / "socket"
    listener = await listen(UnixAddress(str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listener.close()
    assert not path.exists()


async def test_a_socket_file_of_somebody_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first = await listen(UnixAddress(str(path)))
    path.rename(tmp_path / "moved")
    second = await listen(UnixAddress(str(path)))
    first.close()
    assert path.exists()
    path.unlink()
    second.close()


async def test_a_path_that_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.write_text("precious")
    with pytest.raises(ListenFailed, match=r"the path exists; remove it .*Cloud Hypervisor"):
        await listen(UnixAddress(str(path)))
    assert path.read_text() == "precious"


async def test_a_port_in_use_is_said(listener: Listener) -> None:
    if isinstance(listener.address, TcpAddress):
        with pytest.raises(ListenFailed, match="cannot listen: Address already in use") as caught:
            await listen(listener.address)
        assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (UnixAddress("/nonexistent/folder/socket"), "No such file or directory"),
        (TcpAddress("192.0.2.1", 6000), "Cannot assign requested address"),
        (TcpAddress("x" * 64, 6000), "too long"),
    ],
)
async def test_what_cannot_be_listened_on_is_said(address: Address, says: str) -> None:
    with pytest.raises(ListenFailed, match=says):
        await listen(address)
