"""What can go wrong on a connection, by whose doing.

Every error names the connection, what was tried, what was expected and what came instead, as
fields; `str()` is made from them. `OSError` is converted where an operation ends (`operation.py`),
so that callers meet only these classes. A `BusyError` is no `TransportError`: it is a fault of our
own program, and no handler for a peer's faults may eat it.
"""

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BusyError",
    "ConnectFailed",
    "ConnectionClosed",
    "ConnectionLost",
    "DescriptorError",
    "EndOfStream",
    "HandshakeFailed",
    "ListenFailed",
    "MemoryFault",
    "Stalled",
    "TransportError",
]


def _rebuild(
    cls: type[BaseException], args: tuple[Any, ...], fields: dict[str, Any]
) -> BaseException:
    """Undo pickling without the constructors, whose arguments differ from class to class."""
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(fields)
    return error


class TransportError(Exception):
    """A connection could not be made, or did not do what it was asked."""

    connection: str
    """The peer's address, or the address that was listened on."""
    what: str
    """What was tried, as a verb: `read`, `write`, `connect`, ..."""
    expected: int | str
    """What should have come: a number of bytes, or words."""
    got: int | str
    """What came instead: a number of bytes, or words."""

    def __init__(
        self, connection: str, what: str, *, expected: int | str = "", got: int | str = ""
    ) -> None:
        super().__init__(connection, what, expected, got)
        self.connection = connection
        self.what = what
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        wanted = (
            f"expected {self.expected}, got {self.got}" if self.expected != "" else str(self.got)
        )
        return f"{self.connection}: {self.what} failed: {wanted}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


class EndOfStream(TransportError):
    """The peer ended its stream, `received` bytes into something of `expected` bytes."""

    expected: int
    received: int

    def __init__(self, connection: str, what: str, *, expected: int, received: int) -> None:
        super().__init__(connection, what, expected=expected, got=received)
        self.received = received

    def __str__(self) -> str:
        got = f"{self.received} of {self.expected} bytes"
        return f"{self.connection}: the peer ended the stream after {got}"


class ConnectionLost(TransportError):
    """The connection broke: reset, timed out, ...; `errno` says how, the `OSError` is the cause."""

    errno: int

    def __init__(self, connection: str, what: str, *, errno: int, got: str) -> None:
        super().__init__(connection, what, got=got)
        self.errno = errno

    def __str__(self) -> str:
        return f"{self.connection}: the connection was lost during {self.what}: {self.got}"


class ConnectionClosed(TransportError):
    """The connection or listener was closed by this side, before the call or meanwhile."""

    def __init__(self, connection: str, what: str) -> None:
        super().__init__(connection, what, got="this side has closed it")


class MemoryFault(TransportError):
    """The kernel could not touch the memory of a call (EFAULT).

    It is not mapped, or lies past the end of a file that shrank.
    """

    def __init__(self, connection: str, what: str) -> None:
        super().__init__(
            connection, what, got="the memory handed to the kernel is not there (EFAULT)"
        )


class DescriptorError(TransportError):
    """Other descriptors came than those that were to come; all of them are closed."""

    expected: int

    def __init__(self, connection: str, *, expected: int, got: str) -> None:
        super().__init__(connection, "take descriptors", expected=expected, got=got)

    def __str__(self) -> str:
        due = "no descriptor is" if not self.expected else "one descriptor is"
        return f"{self.connection}: {due} due, got {self.got}"


class Stalled(TransportError):
    """The peer did not keep up: `moved` bytes in `seconds`, where `expected` or more were due."""

    expected: int
    seconds: float
    moved: int

    def __init__(
        self, connection: str, what: str, *, seconds: float, expected: int, moved: int
    ) -> None:
        super().__init__(connection, what, expected=expected, got=moved)
        self.seconds = seconds
        self.moved = moved

    def __str__(self) -> str:
        return (
            f"{self.connection}: {self.what} stalled: {self.moved} bytes in {self.seconds:g} s, "
            f"at least {self.expected} were due"
        )


class ConnectFailed(TransportError):
    """No connection could be made; `tries` holds a line for each address that was tried."""

    tries: tuple[str, ...]

    def __init__(self, connection: str, tries: Sequence[str]) -> None:
        super().__init__(connection, "connect", got="; ".join(tries))
        self.tries = tuple(tries)

    def __str__(self) -> str:
        return f"{self.connection}: cannot connect: {self.got}"


class HandshakeFailed(TransportError):
    """No TLS connection came of it: one side does not want the other, or it speaks no TLS."""

    def __init__(self, connection: str, why: str) -> None:
        super().__init__(connection, "handshake", got=why)

    def __str__(self) -> str:
        return f"{self.connection}: no TLS connection: {self.got}"


class ListenFailed(TransportError):
    """The address, `connection`, cannot be listened on; `got` says why."""

    def __init__(self, connection: str, got: str) -> None:
        super().__init__(connection, "listen", got=got)

    def __str__(self) -> str:
        return f"{self.connection}: cannot listen: {self.got}"


class BusyError(RuntimeError):
    """Two tasks did the same thing (`read`, `write`, ...) on one connection: a bug of our own."""

    connection: str
    what: str

    def __init__(self, connection: str, what: str) -> None:
        super().__init__(connection, what)
        self.connection = connection
        self.what = what

    def __str__(self) -> str:
        return f"{self.connection}: two tasks {self.what} at once"
