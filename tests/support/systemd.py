"""What systemd does to a service, for one that a test starts: a socket of its unit, and a place to
be told things.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

__all__ = ["Manager"]

_EXEC = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """Holds the unit's unix socket, which listens at `path`. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._notified = path.with_name("notify")

    def __enter__(self) -> Self:
        self._unit = socket.socket(socket.AF_UNIX)
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._unit.bind(str(self.path))
        self._unit.listen()
        self._told.bind(str(self._notified))
        self._told.settimeout(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._unit.close()
        self._told.close()

    @contextmanager
    def service(
        self, command: Sequence[str | Path], count: int = 1, **environment: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Start it, and say that it got `count` sockets; it is killed at the end of the context."""
        process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, str(self._unit.fileno()), *map(str, command)],
            env={
                **os.environ,
                "LISTEN_FDS": str(count),
                "NOTIFY_SOCKET": str(self._notified),
                **environment,
            },
            pass_fds=[self._unit.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def hear(self) -> list[str]:
        """The assignments of the next message."""
        return self._told.recv(4096).decode().split("\n")

    def hear_until(self, assignment: str) -> list[str]:
        """All assignments up to the message with this one."""
        said = self.hear()
        while assignment not in said:
            said += self.hear()
        return said
