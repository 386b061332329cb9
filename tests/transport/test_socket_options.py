"""The options of a connection's socket, and quick acknowledgement."""

import socket

import pytest

from aiomigrate.transport import Connection
from tests.transport.transport_pairs import Pair

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


async def test_a_socket_of_ours_has_the_options_of_the_reference(pair: Pair) -> None:
    for end in pair:
        if end.name.startswith("unix:"):
            assert end.peer_host == ""
            continue
        sock = end._sock
        assert end.peer_host in {"127.0.0.1", "::1"}
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        values = {
            option: sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (
                socket.TCP_KEEPIDLE,
                socket.TCP_KEEPINTVL,
                socket.TCP_KEEPCNT,
                socket.TCP_USER_TIMEOUT,
            )
        }
        assert list(values.values()) == [60, 15, 4, 120_000]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_quick_acknowledgement_is_asked_for_again_after_each_read(pair: Pair) -> None:
    near, far = pair
    if far.name.startswith("unix:"):
        assert not far._quick_ack.wanted
        return

    def quick(end: Connection) -> bool:
        return bool(end._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))

    # Answering at once is what makes Linux delay acknowledgements again.
    for _ in range(3):
        await near.write(b"ask")
        await far.read_exactly(3)
        await far.write(b"answer")
        await near.read_exactly(6)
    assert not quick(near)
    await near.write(b"ask")
    await far.read_exactly(3)
    assert quick(far)
