"""The ownership query by hand, at either end, and what the journals say of who owns the VM."""

import asyncio
import secrets
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiomigrate
from aiomigrate import ReceiveOptions, Report, SendOptions
from aiomigrate.journal import Record, Standing, list_journal, read_record
from aiomigrate.outcome import Finding, find_all
from aiomigrate.protocol import Extension
from tests.engine.engine_hostile import LOCAL
from tests.support.hostile import SMALL_CONFIG, Raw, memory, request
from tests.support.image import PAGE
from tests.support.peer import CONFIG, START, STATE
from tests.support.vms import STATE_JSON, Guest, Landing

__all__ = [
    "ABORTED",
    "ACCEPTED",
    "COMMITTED",
    "JOIN",
    "OFFER",
    "OWNER",
    "SESSION",
    "TOKEN",
    "begin",
    "both",
    "finding",
    "main_of",
    "query",
    "records",
    "standings",
]

SESSION, JOIN, OWNER = 0x8000, 0x8001, 0x8003
OFFER = struct.pack("<HI", 0, Extension.SESSION | Extension.OWNERSHIP)
ACCEPTED = struct.pack("<HIHQ", 1, Extension.SESSION | Extension.OWNERSHIP, 0, 0)
COMMITTED, ABORTED = (struct.pack("<HB5xQ", 1, verdict, 0) for verdict in (1, 2))
TOKEN = secrets.token_bytes(16)


async def begin(raw: Raw, *, up_to_state: bool = True) -> None:
    """A migration with a token, by hand."""
    await raw.send(request(START, headers=OFFER))
    assert await raw.receive(16) == ACCEPTED
    await raw.ask(request(SESSION, TOKEN))
    if up_to_state:
        await raw.ask(request(CONFIG, SMALL_CONFIG))
        await raw.ask(memory([(0, PAGE)]))
        await raw.ask(request(STATE, STATE_JSON))


async def query(address: object, token: bytes = TOKEN) -> bytes:
    """What a query is answered, whole; the connection is closed in good order."""
    with await Raw.connect(address) as raw:
        await raw.send(request(OWNER, token))
        return await raw.receive(16)


async def records(journal: Path) -> list[Record]:
    """Those of the only migration."""

    def read() -> list[Record]:
        (names,) = list_journal(journal).values()
        return [read_record(journal, name)[0] for name in names]

    return await asyncio.to_thread(read)


async def standings(journal: Path) -> set[Standing]:
    return {record.state for record in await records(journal)}


async def finding(journal: Path) -> Finding:
    (found,) = await asyncio.to_thread(find_all, journal)
    return found


def main_of(migration: aiomigrate.Migration) -> Any:
    """The connection of a source's main core."""
    attempt: Any = migration._attempt
    return attempt._main.connection


async def both(
    guest: Guest,
    landing: Landing,
    prepare: Callable[[aiomigrate.Migration, aiomigrate.Reception], None],
    journal: Path,
) -> tuple[Report | BaseException, Report | BaseException]:
    """A migration of which `prepare` sees both ends before it begins."""
    receiving = ReceiveOptions(journal=journal)
    async with aiomigrate.receive(landing, LOCAL, receiving) as reception:
        options = SendOptions(journal=journal)
        async with aiomigrate.send(guest, str(reception.address), options) as sending:
            prepare(sending, reception)
            results = await asyncio.gather(
                sending.result(), reception.result(), return_exceptions=True
            )
    return results[0], results[1]
