"""Connecting to an address."""

import asyncio
import errno
import os
import socket
from typing import Any

from aiomigrate.transport.address import Address
from aiomigrate.transport.connection import Connection
from aiomigrate.transport.errors import ConnectFailed, TransportError
from aiomigrate.transport.identity import Identity
from aiomigrate.transport.readiness import Readiness
from aiomigrate.transport.sockets import (
    Endpoint,
    describe,
    host_of,
    resolve,
    set_options,
    stream_socket,
)

__all__ = ["connect", "connected_socket"]

BACKLOG_PAUSE_S = 0.1
"""Between tries at a unix listener whose backlog is full, of which no event tells; arbitrary."""


async def connect(
    address: Address,
    *,
    within: float = 10.0,
    quick_ack: bool = False,
    identity: Identity | None = None,
) -> Connection:
    """Connect to `address`, trying in turn all that its host name stands for.

    `within` seconds bound the whole, the look-up included; each try may take an equal share of what
    is left of them. `quick_ack` is for who mostly receives. With an `identity` the connection is a
    TLS one, and secure. Raises `ConnectFailed`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    try:
        async with asyncio.timeout_at(deadline):
            endpoints = await resolve(address)
    except (OSError, UnicodeError) as error:
        raise ConnectFailed(str(address), [describe(error)]) from error
    failures: list[tuple[str, Exception]] = []
    for index, endpoint in enumerate(endpoints):
        share = (deadline - loop.time()) / (len(endpoints) - index)
        try:
            async with asyncio.timeout(share):
                return await _open(endpoint, str(address), share, quick_ack, identity)
        except (OSError, TransportError) as error:
            where = f"{host_of(endpoint[1])}: " if len(endpoints) > 1 else ""
            failures.append((where + describe(error), error))
    tries = [why for why, _ in failures]
    errors = [error for _, error in failures]
    try:
        raise ConnectFailed(str(address), tries) from (
            errors[0] if len(errors) == 1 else ExceptionGroup("every address failed", errors)
        )
    finally:
        # Else each error refers to this frame by its traceback, and the frame to each error.
        failures.clear()
        errors.clear()


async def _open(
    endpoint: Endpoint, name: str, within: float, quick_ack: bool, identity: Identity | None
) -> Connection:
    host = host_of(endpoint[1])
    sock = await connected_socket(endpoint)
    connection = Connection(sock, name, host, quick_ack=quick_ack, identity=identity)
    try:
        await connection.secure(within)
    except BaseException:
        connection.close()
        raise
    return connection


async def connected_socket(endpoint: Endpoint) -> socket.socket:
    """A connected socket; closed again if that fails or is cancelled. Raises `OSError`."""
    family, name = endpoint
    sock = stream_socket(family)
    try:
        set_options(sock)
        await _connect(sock, family, name)
        if sock.getsockname() == sock.getpeername():
            # The kernel gave it the very port that it connects to, and nobody listens there (RFC
            # 9293, simultaneous open): it would take its own requests for answers.
            raise OSError(errno.ECONNREFUSED, "nobody listens there, it reached itself")
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect(sock: socket.socket, family: int, name: Any) -> None:
    while True:
        try:
            sock.connect(name)
        except BlockingIOError:
            if family == socket.AF_UNIX:  # EAGAIN: the listener's backlog is full (unix(7))
                await asyncio.sleep(BACKLOG_PAUSE_S)
                continue
            await Readiness(asyncio.get_running_loop(), sock.fileno(), write=True).wait()
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, os.strerror(number)) from None
        return
