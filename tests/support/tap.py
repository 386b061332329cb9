"""A relay that keeps what goes through it, for finding out where the messages of a stream are."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Tapped", "tap"]


class Tapped:
    """The bytes of one connection."""

    def __init__(self) -> None:
        self.up = bytearray()
        """Towards the target."""
        self.down = bytearray()


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray
) -> None:
    try:
        while data := await reader.read(1 << 16):
            kept += data
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:  # reset, or gone when its end is passed on
        writer.transport.abort()


@asynccontextmanager
async def tap(target: str) -> AsyncIterator[tuple[str, list[Tapped]]]:
    """Where to connect instead of `tcp:host:port`, and the connections in order."""
    _, host, port = target.split(":")
    connections: list[Tapped] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tapped = Tapped()
        connections.append(tapped)
        onward, back = await asyncio.open_connection(host, int(port))
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(reader, back, tapped.up))
            group.create_task(_copy(onward, writer, tapped.down))
        back.close()
        writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        _, own_port = server.sockets[0].getsockname()
        yield f"tcp:127.0.0.1:{own_port}", connections
