"""What tests of hostile input to `receive` have in common."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import aiomigrate
from aiomigrate import MigrationFailed, Owner, ReceiveOptions, Reception
from tests.support.hostile import ROLE_MEMORY, SMALL_CONFIG, Raw, memory, request
from tests.support.image import PAGE
from tests.support.peer import CONFIG, START, STATE
from tests.support.vms import STATE_JSON, Landing

__all__ = ["GOOD", "LOCAL", "failure_of", "main_and_lane", "reach", "receiving"]

LOCAL = "tcp:127.0.0.1:0"
# What comes before a state is reached; the name is that of the last request.
GOOD = {
    "Start": request(START),
    "Config": request(CONFIG, SMALL_CONFIG),
    "Memory": memory([(0, PAGE)]),
    "State": request(STATE, STATE_JSON),
}


@asynccontextmanager
async def receiving(
    landing: Landing, options: ReceiveOptions | None = None
) -> AsyncIterator[Reception]:
    """A reception whose error the test looks at by itself."""
    reception = aiomigrate.receive(landing, LOCAL, options)
    async with reception:
        yield reception


async def reach(raw: Raw, state: str) -> None:
    """Have every request up to `state` answered with Ok."""
    for name, data in GOOD.items():
        await raw.ask(data)
        if name == state:
            return


@asynccontextmanager
async def main_and_lane(reception: Reception) -> AsyncIterator[tuple[Raw, Raw]]:
    """A plain source's main connection up to Config, and a lane of which one Memory was taken."""
    with await Raw.connect(reception.address) as main, await Raw.connect(reception.address) as lane:
        await reach(main, "Config")
        await lane.ask(ROLE_MEMORY + memory([(0, PAGE)]))
        yield main, lane


async def failure_of(reception: Reception) -> MigrationFailed:
    """How it failed: the VM is with the source."""
    with pytest.raises(MigrationFailed) as caught:
        await reception.result()
    assert type(caught.value) is MigrationFailed
    assert caught.value.owner is Owner.SOURCE
    return caught.value
