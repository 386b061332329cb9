"""What both ends of a connection share: looking names up, and the options of a socket."""

import asyncio
import socket

from aiomigrate.transport.address import Address, UnixAddress
from aiomigrate.transport.errors import TransportError

__all__ = ["Endpoint", "describe", "host_of", "resolve", "set_options", "stream_socket"]

Endpoint = tuple[socket.AddressFamily, str | tuple[str | int, ...]]
"""An address family, and what `bind` and `connect` take for it."""

KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 15
KEEPALIVE_PROBES = 4
USER_TIMEOUT_MS = 120_000
"""As Cloud Hypervisor sets them on both of its sides (transport.rs, line 1040)."""


async def resolve(address: Address, *, passive: bool = False) -> list[Endpoint]:
    """All endpoints that `address` stands for, best first; at least one.

    Raises `OSError` (of which `socket.gaierror` is one), and `UnicodeError` for what is no name.
    """
    if isinstance(address, UnixAddress):
        return [(socket.AF_UNIX, address.path)]
    flags = socket.AI_PASSIVE if passive else 0
    try:
        # A literal needs no thread of the loop's default executor, and no waiting.
        found = socket.getaddrinfo(
            address.host,
            address.port,
            type=socket.SOCK_STREAM,
            flags=flags | socket.AI_NUMERICHOST,
        )
    except socket.gaierror:
        found = await asyncio.get_running_loop().getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=flags
        )
    # The stubs allow (int, bytes), which is what AF_PACKET sockets have.
    return [(family, (str(end[0]), *end[1:])) for family, _, _, _, end in found]


def stream_socket(family: socket.AddressFamily) -> socket.socket:
    """A new non-blocking stream socket."""
    return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


def set_options(sock: socket.socket) -> None:
    """Set what connections of a migration have: a dead peer is noticed, nothing small is held back.

    Buffer sizes are left alone: setting them ends the kernel's autotuning.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
        (socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
        (socket.TCP_NODELAY, 1),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def host_of(endpoint: object) -> str:
    """The IP address in what `getpeername` or `accept` gave, `""` for a unix socket.

    An IPv4 peer of an IPv6 listener (`::ffff:10.0.0.7`) gives its IPv4 address, so that one host
    looks the same whichever way it comes.
    """
    if not isinstance(endpoint, tuple):
        return ""
    host = str(endpoint[0])
    return host.removeprefix("::ffff:") if "." in host else host


def describe(error: Exception) -> str:
    """What looking up, connecting, shaking hands or binding ended with, in a few words."""
    if isinstance(error, TimeoutError) and error.errno is None:  # asyncio.timeout's
        return "no answer in time"
    if isinstance(error, TransportError):
        return str(error.got)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
