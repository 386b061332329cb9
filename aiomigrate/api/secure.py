"""Clients over tcp, with mutual TLS: their handshakes are no work of the event loop's.

A server signs in each handshake, whoever says hello: 0.5 ms with ECDSA P-256 or RSA-2048, 5 ms with
RSA-4096. asyncio's own TLS does that on the loop, where migrations wait for it. So TLS is that of
migrations here (`aiomigrate.transport`): handshakes in two threads, and OpenSSL in memory; the HTTP
server has the clear bytes through a socket pair.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial

from aiomigrate.transport import (
    Connection,
    Identity,
    Listener,
    Pace,
    Strangers,
    TcpAddress,
    TransportError,
)

__all__ = ["SecureDoor"]

_HANDSHAKE_S = 10.0
"""For a client to show what it is, as for the peer of a migration."""
_STRANGERS = 256
"""Clients in a handshake at the most: then the one that has been longest in it goes. As many as
wait for a migration's listener."""
_PIECE_BYTES = 64 << 10
"""What a read takes: arbitrary, most answers are smaller."""
_PACE = Pace(seconds=60.0)
"""A client that takes nothing for so long is let go, as one that listens to events is."""

log = logging.getLogger("aiomigrate.api.http")


class SecureDoor:
    """Takes clients of one bound tcp socket, which stays the caller's, to an HTTP server."""

    def __init__(
        self,
        sock: socket.socket,
        identity: Identity,
        backlog: int,
        make_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        sock.listen(backlog)
        sock.setblocking(False)
        host, port = sock.getsockname()[:2]
        self._listener = Listener(
            sock.dup(), TcpAddress(host, port), quick_ack=False, identity=identity
        )
        self._make_protocol = make_protocol
        self._strangers = Strangers()
        """Those in a handshake."""
        self._clients: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept())
        self._accepting.add_done_callback(partial(_tell_error, str(self._listener.address)))

    async def stop(self) -> None:
        """Take no more clients: who is in a handshake is none yet."""
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        self._listener.close()
        for connection in self._strangers:
            connection.close()

    async def close(self, within: float) -> None:
        """The server has ended: let clients go, if need be after so many seconds."""
        await self.stop()
        if self._clients:
            await asyncio.wait(self._clients, timeout=within)
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        if clients:
            await asyncio.wait(clients)

    async def _accept(self) -> None:
        while True:
            connection = await self._listener.accept()
            client = asyncio.create_task(self._serve(connection))
            self._clients.add(client)
            client.add_done_callback(partial(self._ended, connection))
            self._strangers.add(connection, client)
            await self._strangers.limit(_STRANGERS)

    def _ended(self, connection: Connection, client: asyncio.Task[None]) -> None:
        self._clients.discard(client)
        connection.close()
        _tell_error(connection.name, client)

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.secure(_HANDSHAKE_S)
        except TransportError as error:
            log.info("refused: %s", error)
            return
        self._strangers.discard(connection)
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            try:
                await loop.connect_accepted_socket(self._make_protocol, theirs)
            except BaseException:
                theirs.close()
                raise
            try:
                async with asyncio.TaskGroup() as both:
                    asking = both.create_task(_pass_up(connection, ours))
                    await _pass_down(ours, connection)
                    asking.cancel()
            except* (TransportError, ConnectionError) as errors:
                log.debug("%s: it is gone: %s", connection.name, errors.exceptions[0])


def _tell_error(name: str, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s: %r", name, error, exc_info=error)


async def _pass_up(connection: Connection, server: socket.socket) -> None:
    """What a client says, to its end."""
    loop = asyncio.get_running_loop()
    while data := await connection.read_some(_PIECE_BYTES):
        await loop.sock_sendall(server, data)
    server.shutdown(socket.SHUT_WR)


async def _pass_down(server: socket.socket, connection: Connection) -> None:
    """What the server answers, until it ends the connection."""
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(server, _PIECE_BYTES):
        await connection.write(data, _PACE)
