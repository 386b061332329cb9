"""What tests do with the ends of a connection that conftest.py makes, over each kind of address."""

import asyncio

from aiomigrate.transport import Connection

__all__ = ["MIB", "Pair", "assert_idle", "fill", "read_filled", "settle"]

MIB = 1 << 20
Pair = tuple[Connection, Connection]


def assert_idle(connection: Connection) -> None:
    """Nothing of the connection is on the loop."""
    loop = asyncio.get_running_loop()
    assert not loop.remove_reader(connection._fd)
    assert not loop.remove_writer(connection._fd)


async def settle(turns: int = 5) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def fill(connection: Connection) -> int:
    """Write until the socket takes no more: how much was taken."""
    data = bytes(MIB)
    return sum(iter(lambda: connection.write_now(data), 0))


async def read_filled(near: Connection, far: Connection, nbytes: int) -> None:
    """Read what `fill` has written; TLS hands its rest over with the next write."""
    async with asyncio.TaskGroup() as group:
        group.create_task(near.write(b""))
        group.create_task(far.read_exactly(nbytes))
