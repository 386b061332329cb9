"""Who broke the protocol, where, and what to answer.

`LocalProtocolError`: our own caller asked a core for what its state does not allow.
`RemoteProtocolError`: the peer sent what it must not. Any other exception out of a core is a bug
of this package.
"""

from typing import Any

__all__ = ["LocalProtocolError", "ProtocolError", "RemoteProtocolError"]


class ProtocolError(Exception):
    """A rule of the protocol was broken.

    `connection` names the connection (`main`, `lane 3`), `state` its state, `command` what was
    being asked for (a command's name, or None between two requests), `expected` and `got` what
    the rule wants and what came instead.
    """

    def __init__(
        self, *, connection: str, state: str, command: str | None, expected: str, got: str
    ) -> None:
        super().__init__(connection, state, command, expected, got)
        self.connection = connection
        self.state = state
        self.command = command
        self.expected = expected
        self.got = got

    def _fields(self) -> dict[str, Any]:
        return {
            "connection": self.connection,
            "state": self.state,
            "command": self.command,
            "expected": self.expected,
            "got": self.got,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._fields())

    def __str__(self) -> str:
        where = f"{self.connection}, {self.state}"
        if self.command is not None:
            where += f", {self.command}"
        return f"{where}: expected {self.expected}, got {self.got}"


class LocalProtocolError(ProtocolError):
    """Our own side asked for what the connection's state does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol.

    `reply` is what to send it before the connection is closed with lingering: an Error response,
    or nothing where the protocol has no answer (a stranger, an end of stream, a bad response).
    """

    def __init__(
        self,
        *,
        connection: str,
        state: str,
        command: str | None,
        expected: str,
        got: str,
        reply: bytes = b"",
    ) -> None:
        super().__init__(
            connection=connection, state=state, command=command, expected=expected, got=got
        )
        self.reply = reply

    def _fields(self) -> dict[str, Any]:
        return {**super()._fields(), "reply": self.reply}


def _rebuild(kind: type[ProtocolError], fields: dict[str, Any]) -> ProtocolError:
    return kind(**fields)
