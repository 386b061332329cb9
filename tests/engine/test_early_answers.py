"""A destination that answers a Memory when it has read the table: what counts is what was sent."""

import asyncio
import contextlib
from typing import Any

import aiomigrate
from aiomigrate import SendOptions
from tests.support.hostile import OK, Server
from tests.support.image import PAGE, Mapping
from tests.support.peer import CONFIG, MEMORY, START, STATE
from tests.support.turns import until
from tests.support.vms import MIB, Guest

# Its first half holds data: more than the sockets of a connection.
RAM = Mapping(0, 0, 32 * MIB, "mem0", virtio_mem=False, file_offset=0)


async def _begin(server: Server, main: object) -> None:
    for command in (START, CONFIG):
        assert (await server.request(main))[0] == command  # type: ignore[arg-type]
        await main.send(OK)  # type: ignore[attr-defined]


async def test_a_memory_that_is_answered_before_it_was_sent_is_sent_to_its_end() -> None:
    options = SendOptions(connections=2, chunk_bytes=RAM.size)
    with Guest([RAM]) as guest, Server(receive_buffer=PAGE) as server:
        migration: Any = aiomigrate.send(guest, server.address, options)
        sending: list[bool] = []

        def look() -> None:
            """The iteration is over."""
            lanes = migration._attempt._lanes.lanes
            sending.append(any(lane._sending for lane in lanes))

        guest.script["collect 1"] = look
        async with asyncio.TaskGroup() as group:
            group.create_task(_to_its_end(migration))
            with await server.accept() as main:
                await _begin(server, main)
                with await server.accept() as one, await server.accept() as other:
                    for lane in (one, other):
                        await lane.receive(2)
                    await until(lambda: one.unread() or other.unread())
                    carrier = one if one.unread() else other
                    command, table = await server.request(carrier)
                    assert (command, len(table)) == (MEMORY, 16)
                    await carrier.send(OK)
                    assert len(await carrier.receive(RAM.size // 2)) == RAM.size // 2
                    assert (await server.request(main))[0] == STATE
        assert sending == [False]
        assert guest.running


async def _to_its_end(migration: aiomigrate.Migration) -> None:
    with contextlib.suppress(aiomigrate.MigrationError):
        async with migration:
            pass
