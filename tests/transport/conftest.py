"""The ends of a connection, over every kind of address."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiomigrate.transport import Address, Connection, Listener, connect, listen, parse_address


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
