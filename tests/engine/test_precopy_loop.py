"""The pre-copy loop on the other event loop."""

import asyncio

import pytest

from aiomigrate import Report, SendOptions
from tests.support.image import PAGE, Mapping
from tests.support.leaks import Resources
from tests.support.vms import MIB, Guest, Landing, migrate

_TWO = (
    Mapping(0, 0, 3 * MIB, "mem0", virtio_mem=False, file_offset=0),
    Mapping(4, 1 << 32, 2 * MIB, "mem0", virtio_mem=True, file_offset=0),
)


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_running_guest_moves_on_uvloop(connections: int) -> None:
    assert type(asyncio.get_running_loop()).__module__ == "uvloop"
    # Taken here: uvloop opens sockets of its own between a fixture and its test.
    before = Resources.now()
    with Guest(_TWO) as guest, Landing() as landing:
        guest.script["collect 1"] = lambda: guest.write(2 * PAGE, b"early")
        guest.script["pause"] = lambda: guest.write(64 * PAGE, b"late")
        options = SendOptions(connections=connections, chunk_bytes=64 << 10)
        sent, received = await migrate(guest, landing, sending=options)
        assert isinstance(sent, Report), sent
        assert isinstance(received, Report), received
        assert landing.digest() == guest.digest() == guest.at_pause
    assert Resources.left_since(before) == []
