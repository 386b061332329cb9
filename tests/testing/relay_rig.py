"""Two ends with a fault relay between them, as bare sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from aiomigrate.testing import Direction, Fault, FaultRelay
from aiomigrate.transport.readiness import Readiness
from tests.support import sockets
from tests.support.leaks import Resources

__all__ = [
    "DOWN",
    "MIB",
    "UP",
    "Rig",
    "both_loops",
    "read_rest",
    "receive",
    "relayed",
    "send",
    "virtual",
]

both_loops = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])
virtual = pytest.mark.asyncio(loop_factories=["virtual"])

MIB = 1 << 20
UP, DOWN = Direction.UP, Direction.DOWN


class Rig:
    """The relay, and the sockets on both sides of it. Made by `relayed`."""

    def __init__(self, relay: FaultRelay, target: socket.socket, opened: ExitStack) -> None:
        self.relay = relay
        self.target = target
        self._opened = opened

    async def connect(self) -> socket.socket:
        """A new connection to the relay."""
        # The kernel connects at once to a listener on this machine, whoever runs.
        sock = self._opened.enter_context(sockets.connect(self.relay.address, timeout=10.0))
        sock.setblocking(False)
        return sock

    async def accept(self) -> socket.socket:
        """The next connection at the target."""
        await Readiness(asyncio.get_running_loop(), self.target.fileno()).wait()
        sock = self._opened.enter_context(self.target.accept()[0])
        sock.setblocking(False)
        return sock

    async def pair(self) -> tuple[socket.socket, socket.socket]:
        """A new connection: its near end, and its end at the target."""
        return await self.connect(), await self.accept()


@asynccontextmanager
async def relayed(
    *faults: Fault,
    target: str = "tcp:127.0.0.1:0",
    listen: str = "tcp:127.0.0.1:0",
    seed: int = 0,
    leaves_nothing: bool = True,
) -> AsyncIterator[Rig]:
    """A target, and a relay to it with `faults`. What is left in the end is a failure.

    (That is seen from inside of the loop: uvloop has a socket pair of its own for each run of it.)
    """
    before = Resources.now() if leaves_nothing else None
    with ExitStack() as opened:
        listener = opened.enter_context(sockets.listen(target))
        listener.setblocking(False)
        address = sockets.text_of(listener)
        async with FaultRelay(address, faults=faults, listen=listen, seed=seed) as relay:
            yield Rig(relay, listener, opened)
    if before is not None:
        assert Resources.left_since(before) == []


async def send(sock: socket.socket, data: bytes) -> None:
    """All of `data`."""
    view = memoryview(data)
    while view:
        await Readiness(asyncio.get_running_loop(), sock.fileno(), write=True).wait()
        view = view[sock.send(view) :]


async def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, or what there is before an end of stream."""
    data = bytearray()
    while len(data) < size:
        piece = await _receive_some(sock, size - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


async def read_rest(sock: socket.socket) -> tuple[bytes, str]:
    """All that still comes, and how it ends: "end" or "reset"."""
    data = bytearray()
    while True:
        try:
            piece = await _receive_some(sock, 1 << 20)
        except ConnectionResetError:
            return bytes(data), "reset"
        if not piece:
            return bytes(data), "end"
        data += piece


async def _receive_some(sock: socket.socket, limit: int) -> bytes:
    await Readiness(asyncio.get_running_loop(), sock.fileno()).wait()
    return sock.recv(limit)
