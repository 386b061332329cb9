"""Opening a source's lanes: all of them, or none and the main connection carries the memory."""

import asyncio

from aiomigrate.errors import MigrationFailed
from aiomigrate.options import SendOptions
from aiomigrate.protocol import SourceLane
from aiomigrate.transport import Address, Connection, TcpAddress, TransportError, connect

__all__ = ["OpenedLane", "open_lanes"]

_HANG_UP_S = 0.02
"""A peer that takes one connection only closes the others within about a round trip; it is given
twice the time that connecting took, and at least this."""

OpenedLane = tuple[Connection, SourceLane]


async def open_lanes(main: Connection, address: Address, options: SendOptions) -> list[OpenedLane]:
    """Connect `options.connections` lanes and say what they are.

    They go to the host that `main` reached, whatever its name stands for by now. An empty list: the
    peer refused or closed them all, before a byte of memory. MigrationFailed
    if it did so to some of them.
    """
    if isinstance(address, TcpAddress):
        address = TcpAddress(main.peer_host, address.port)
    opened: list[OpenedLane] = []
    refusals: list[TransportError] = []
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(1, options.connections + 1):
                group.create_task(_open(address, options, number, opened, refusals))
        if opened and refusals:
            raise MigrationFailed(
                f"{len(refusals)} of {options.connections} lanes to {address} were refused: "
                f"{refusals[0]}"
            )
    except BaseException:
        for connection, _ in opened:
            connection.abort()
        raise
    return opened


async def _open(
    address: Address,
    options: SendOptions,
    number: int,
    opened: list[OpenedLane],
    refusals: list[TransportError],
) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        connection = await connect(address, within=options.deadlines.connect_s)
    except TransportError as error:
        refusals.append(error)
        return
    try:
        grace = max(_HANG_UP_S, 2 * (loop.time() - began))
        core = SourceLane(f"lane {number}", options.dialect)
        await connection.write(core.open(), options.deadlines.pace)
        if await connection.wait_hang_up(grace):
            raise TransportError(connection.name, "open", got="the peer closed the connection")
    except TransportError as error:
        connection.abort()
        refusals.append(error)
    except BaseException:
        connection.abort()
        raise
    else:
        opened.append((connection, core))
