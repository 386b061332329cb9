"""The addresses of peers: `tcp:host:port`, `tcp:[v6]:port` and `unix:path`, as Cloud Hypervisor
writes them.

An address is text from a person, so every mistake in it gets a sentence of its own. Nothing is
looked up here: a host name stays a name until somebody connects or listens.
"""

import os
import socket
from dataclasses import dataclass

__all__ = ["Address", "AddressError", "TcpAddress", "UnixAddress", "parse_address"]

UNIX_PATH_BYTES = 107
"""The longest path of a unix socket: `sun_path` has 108 bytes, the last one is NUL (unix(7))."""


class AddressError(ValueError):
    """The text is no address; the message is one sentence that quotes it."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP endpoint: a `host`, which is a name or a literal without brackets, and a `port`.

    Port 0 means "any" and is for listening only.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return (
            f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"
        )


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix stream socket in the file system, at `path`.

    Raises `AddressError` for a path that no socket can have.
    """

    path: str

    def __post_init__(self) -> None:
        if not self.path:
            raise AddressError("'unix:' has no path: write unix:/path/to/socket")
        if "\0" in self.path:
            raise AddressError(f"{str(self)!r}: a socket's path cannot hold a NUL byte")
        length = len(os.fsencode(self.path))
        if length > UNIX_PATH_BYTES:
            raise AddressError(
                f"{str(self)!r}: the path has {length} bytes, a socket's has at most "
                f"{UNIX_PATH_BYTES}"
            )

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress
"""Where a peer is, or where one listens."""


def parse_address(text: str, *, listening: bool = False) -> Address:
    """Read an address from `text`; `listening` allows port 0. Raises `AddressError`."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "unix":
        return UnixAddress(rest)
    if colon and scheme == "tcp":
        return _parse_tcp(text, rest, lowest_port=0 if listening else 1)
    raise AddressError(f"{text!r} is no address: write tcp:host:port, tcp:[ipv6]:port or unix:path")


def _parse_tcp(text: str, rest: str, lowest_port: int) -> TcpAddress:
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        if not bracket:
            raise AddressError(f"{text!r}: the bracket before the IPv6 address is never closed")
        if not _is_ipv6(host):
            raise AddressError(f"{text!r}: {host!r} between the brackets is no IPv6 address")
        if tail and not tail.startswith(":"):
            raise AddressError(f"{text!r}: a colon and a port must follow the bracket")
        port = tail[1:]
    else:
        host, _, port = rest.rpartition(":") if ":" in rest else (rest, "", "")
        if ":" in host:
            raise AddressError(f"{text!r}: an IPv6 address needs brackets: write tcp:[ipv6]:port")
    if not host:
        raise AddressError(f"{text!r} has no host: write tcp:host:port")
    if "\0" in host:
        raise AddressError(f"{text!r}: a host name cannot hold a NUL byte")
    if not port:
        raise AddressError(f"{text!r} has no port: write tcp:host:port")
    # The length first: int() itself refuses thousands of digits, with an error of its own.
    if not (
        port.isascii() and port.isdigit() and len(port) <= 5 and lowest_port <= int(port) <= 65535
    ):
        raise AddressError(
            f"{text!r}: the port must be a number from {lowest_port} to 65535, not {port!r}"
        )
    return TcpAddress(host, int(port))


def _is_ipv6(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):  # ValueError: a NUL inside, a surrogate
        return False
    return True
