"""A running guest that moves as it should, through a relay if the way has faults."""

import asyncio
from collections.abc import Iterable

import aiomigrate
from aiomigrate import ReceiveOptions, Report, SendOptions
from aiomigrate.protocol import Extension
from aiomigrate.testing import Fault, FaultRelay
from tests.support.image import PAGE, Mapping
from tests.support.vms import MIB, STATE_JSON, Guest, Landing

__all__ = ["CHUNK", "TWO", "assert_moved", "through"]

CHUNK = 64 << 10

TWO = (
    Mapping(4, 1 << 32, 2 * MIB, "mem0", virtio_mem=True, file_offset=0),
    Mapping(0, 0, 3 * MIB + 5 * PAGE, "mem0", virtio_mem=False, file_offset=0),
)


async def through(
    guest: Guest,
    landing: Landing,
    faults: Iterable[Fault],
    options: SendOptions,
    extensions: Extension | None = None,
) -> tuple[Report | BaseException, Report | BaseException, FaultRelay]:
    """Migrate through a relay."""
    receiving = ReceiveOptions() if extensions is None else ReceiveOptions(extensions=extensions)
    async with (
        aiomigrate.receive(landing, "tcp:127.0.0.1:0", receiving) as reception,
        FaultRelay(str(reception.address), faults=faults) as relay,
        aiomigrate.send(guest, relay.address, options) as migration,
    ):
        sent, received = await asyncio.gather(
            migration.result(), reception.result(), return_exceptions=True
        )
    return sent, received, relay


def assert_moved(
    guest: Guest,
    landing: Landing,
    sent: Report | BaseException,
    received: Report | BaseException,
) -> Report:
    """Both sides say so, and it is there as it was when it was paused: the source's report."""
    for side in (sent, received):
        if isinstance(side, BaseException):
            raise side
    assert landing.digest() == guest.digest() == guest.at_pause
    assert (landing.config, landing.state) == (guest.config_bytes, STATE_JSON)
    assert landing.runs is guest.resumes
    assert isinstance(sent, Report)
    return sent
