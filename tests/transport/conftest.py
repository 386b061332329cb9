"""The contract of a connection is shown on asyncio's loop and on uvloop, over every kind of address.

Tests marked `virtual_clock` run on a loop whose time jumps to the next timer when no descriptor is
ready.
"""

import asyncio
import selectors
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from aiomigrate.transport import Address, Connection, Listener, connect, listen, parse_address


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits for a timer: the time that it would wait is added to `ahead`."""

    ahead = 0.0

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            return super().select(None)
        self.ahead += max(timeout, 0.0)
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """asyncio's loop on a clock that starts at 0 and only moves when there is nothing to do."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.ahead


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_clock: the loop's time jumps instead of passing")


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual_clock"):
        return {"virtual": VirtualClockLoop}
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=["tcp4", "tcp6", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    return parse_address(
        {
            "tcp4": "tcp:127.0.0.1:0",
            "tcp6": "tcp:[::1]:0",
            "unix": f"unix:{tmp_path}/socket",
        }[request.param],
        listening=True,
    )


@pytest.fixture
async def listener(address: Address) -> AsyncIterator[Listener]:
    made = await listen(address, quick_ack=True)
    yield made
    made.close()


@pytest.fixture
async def pair(listener: Listener) -> AsyncIterator[tuple[Connection, Connection]]:
    """A connecting and an accepted end."""
    near = await connect(listener.address)
    far = await listener.accept()
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sockets that take little before they would block, so that both sides must wait."""
    made = socket.socket

    def small(*args: int) -> socket.socket:
        sock = made(*args)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        return sock

    monkeypatch.setattr("aiomigrate.transport.sockets.socket.socket", small)
    yield
    monkeypatch.undo()
