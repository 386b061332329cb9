"""Listening on an address.

A listener meets strangers: what one of them does before it is accepted must not end the wait for
the others. Only this process' own limits can: where descriptors run out, accepting pauses on the
loop's clock, since the connection that cannot be taken would keep the socket readable.
"""

import asyncio
import errno
import logging
import os
import select
import socket
from pathlib import Path
from typing import Self

from aiomigrate.transport.address import Address, TcpAddress, UnixAddress
from aiomigrate.transport.connection import Connection
from aiomigrate.transport.errors import ListenFailed
from aiomigrate.transport.identity import Identity
from aiomigrate.transport.operation import Side
from aiomigrate.transport.sockets import (
    Endpoint,
    describe,
    host_of,
    resolve,
    set_options,
    stream_socket,
)

__all__ = ["Listener", "listen"]

BACKLOG = 256
"""All 128 connections of a migration and as many strangers may wait; the kernel's cap is 4096."""

SHORTAGE_PAUSE_S = 0.25
"""Between tries when descriptors or memory ran out; arbitrary."""

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of accept(2) that are ours and may pass."""

FATAL = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP, errno.EFAULT})
"""Errors of accept(2) that no waiting mends. All others are those of the new connection."""

SOCKET_FILE_MODE = 0o600
"""Guest memory passes here, and whoever may write to the file may connect."""

logger = logging.getLogger(__name__)


class Listener:
    """Accepts connections on `address`. Made by `listen`, or by `of_socket`.

    It owns `sock`, and its file if `owns_file`; `quick_ack` and `identity` are for the connections.
    """

    address: Address
    """What is listened on, with the real port."""

    def __init__(
        self,
        sock: socket.socket,
        address: Address,
        *,
        quick_ack: bool,
        identity: Identity | None = None,
        owns_file: bool = True,
    ) -> None:
        self.address = address
        self._sock = sock
        self._quick_ack = quick_ack
        self._identity = identity
        self._accepting = Side(asyncio.get_running_loop(), sock.fileno(), str(address), "accept")
        self._path: Path | None = None
        if isinstance(address, UnixAddress) and owns_file:
            self._path = Path(address.path)
        self._file = _identity(self._path) if self._path is not None else None

    def __repr__(self) -> str:
        state = "closed" if self._accepting.closed else "open"
        return f"<Listener {self.address} {state}>"

    @classmethod
    def of_socket(cls, sock: socket.socket, *, quick_ack: bool = False) -> Self:
        """Listen with a socket that listens already, whose file is somebody else's; owns `sock`.

        Raises `ListenFailed` for any other.
        """
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if sock.family != socket.AF_UNIX or not listens:
            raise ListenFailed("the socket that was passed", "it is no unix socket that listens")
        sock.setblocking(False)
        address = UnixAddress(os.fsdecode(sock.getsockname()))
        return cls(sock, address, quick_ack=quick_ack, owns_file=False)

    def share(self) -> "Listener":
        """Another listener on the same socket and the same queue, of which whoever accepts first
        has each connection. Closing it ends neither the socket nor its file.
        """
        return Listener(
            self._sock.dup(),
            self.address,
            quick_ack=self._quick_ack,
            identity=self._identity,
            owns_file=False,
        )

    async def accept(self) -> Connection:
        """Wait for the next connection, without limit. A TLS one is not `secure` yet: that is up
        to the peer, and must not hold up the others.

        Raises `ConnectionClosed` when the listener is closed (also meanwhile), and `BusyError`.
        """
        sock, peer = await self._accept()
        return self._connection(sock, peer)

    def waiting(self) -> bool:
        """Whether a connection waits to be accepted."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    async def accept_socket(self) -> socket.socket:
        """Like `accept`; the bare non-blocking socket, for who does not move bytes as we do."""
        sock, _ = await self._accept()
        sock.setblocking(False)
        return sock

    async def _accept(self) -> tuple[socket.socket, tuple[str, int]]:
        with self._accepting:
            # A flood of strangers must leave other tasks their turn.
            await asyncio.sleep(0)
            short = False
            while True:
                try:
                    sock, peer = self._sock.accept()
                except BlockingIOError:
                    await self._accepting.ready.wait()
                except OSError as error:
                    if error.errno in FATAL:
                        raise
                    if error.errno in SHORTAGES:
                        if not short:
                            logger.warning("%s: cannot accept: %s", self.address, error.strerror)
                        short = True
                        await asyncio.sleep(SHORTAGE_PAUSE_S)
                    else:
                        # accept(2): the new connection's own pending error; ECONNABORTED among them
                        logger.debug("%s: a connection was lost: %s", self.address, error.strerror)
                        await asyncio.sleep(0)
                else:
                    return sock, peer

    def _connection(self, sock: socket.socket, peer: tuple[str, int]) -> Connection:
        try:
            sock.setblocking(False)
            set_options(sock)
            if isinstance(self.address, UnixAddress):
                return Connection(sock, str(self.address), "", takes_descriptors=True)
            host = host_of(peer)
            name = str(TcpAddress(host, peer[1]))
            return Connection(sock, name, host, quick_ack=self._quick_ack, identity=self._identity)
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        """Stop listening and remove the socket file, if it is still the one that was made here."""
        if self._accepting.closed:
            return
        self._accepting.close()
        self._sock.close()
        if (
            self._path is not None
            and self._file is not None
            and self._file == _identity(self._path)
        ):
            self._path.unlink()


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a socket file, so that nobody else's is removed; None: it is gone."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


async def listen(
    address: Address, *, quick_ack: bool = False, identity: Identity | None = None
) -> Listener:
    """Listen on `address`, the first of what its host name stands for that can be; port 0 takes a
    free one.

    `quick_ack` and `identity` are for the connections that are accepted. Raises `ListenFailed`.
    """
    try:
        endpoints = await resolve(address, passive=True)
    except (OSError, UnicodeError) as error:
        raise ListenFailed(str(address), describe(error)) from error
    errors: list[OSError] = []
    for endpoint in endpoints:
        try:
            sock = _listening_socket(endpoint)
        except OSError as error:
            errors.append(error)
        else:
            bound = _bound(address, sock)
            return Listener(sock, bound, quick_ack=quick_ack, identity=identity)
    try:
        raise ListenFailed(str(address), _why(address, errors[0])) from errors[0]
    finally:
        errors.clear()  # else frame and errors refer to each other


def _bound(address: Address, sock: socket.socket) -> Address:
    """The address with the port that the kernel chose."""
    if isinstance(address, UnixAddress):
        return address
    host, port = sock.getsockname()[:2]
    return TcpAddress(host, port)


def _why(address: Address, error: OSError) -> str:
    if isinstance(address, UnixAddress) and error.errno == errno.EADDRINUSE:
        return (
            "the path exists; remove it if nobody listens there any more "
            "(Cloud Hypervisor, too, leaves its socket file behind)"
        )
    return describe(error)


def _listening_socket(endpoint: Endpoint) -> socket.socket:
    family, name = endpoint
    sock = stream_socket(family)
    try:
        if family == socket.AF_UNIX:
            # Linux takes the mode of the socket file from the unbound socket, so there is no moment
            # at which others may connect, and no process-wide umask to change.
            os.fchmod(sock.fileno(), SOCKET_FILE_MODE)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(name)
        sock.listen(BACKLOG)
        return sock
    except BaseException:
        sock.close()
        raise
