"""A migration with a token by hand, at a destination, and lanes that join it."""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiomigrate import ReceiveOptions, Reception
from tests.engine.engine_hostile import receiving
from tests.support.hostile import SMALL_CONFIG, Raw, request
from tests.support.image import PAGE
from tests.support.peer import COMPLETE, CONFIG, START, STATE
from tests.support.vms import STATE_JSON, Landing

__all__ = [
    "JOIN",
    "OFFER",
    "RETIRE_LANE",
    "SESSION",
    "TOKEN",
    "begin",
    "end",
    "join",
    "migrating",
    "page",
    "retire",
]

SESSION, JOIN, RETIRE_LANE = 0x8000, 0x8001, 0x8002
TOKEN = bytes(range(16))
# SESSION and RETIRE_LANE
OFFER = 3


def join(number: int, token: bytes = TOKEN) -> bytes:
    return request(JOIN, token + struct.pack("<I", number))


def retire(number: int) -> bytes:
    return request(RETIRE_LANE, struct.pack("<I", number))


async def begin(main: Raw, offer: int = OFFER) -> None:
    """Start with an offer that is accepted, Session and Config."""
    await main.send(request(START, headers=struct.pack("<HI", 0, offer)))
    assert await main.receive(16) == struct.pack("<HIHQ", 1, offer, 0, 0)
    await main.ask(request(SESSION, TOKEN))
    await main.ask(request(CONFIG, SMALL_CONFIG))


async def end(main: Raw) -> None:
    """State and Complete."""
    await main.ask(request(STATE, STATE_JSON))
    await main.ask(request(COMPLETE))
    main.close()


@asynccontextmanager
async def migrating(
    landing: Landing, options: ReceiveOptions | None = None, offer: int = OFFER
) -> AsyncIterator[tuple[Reception, Raw]]:
    """A migration with a token whose Config was accepted: its main connection."""
    async with receiving(landing, options) as reception:
        with await Raw.connect(reception.address) as main:
            await begin(main, offer)
            yield reception, main


def page(landing: Landing, number: int) -> bytes:
    return landing.view(0)[number * PAGE : (number + 1) * PAGE]
