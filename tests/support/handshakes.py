"""TLS handshakes of this process that wait, each in its thread, until they may go on."""

import asyncio
import ssl
import threading
from typing import Any

import pytest

__all__ = ["HeldHandshakes"]


class HeldHandshakes:
    """From now on: every step waits for `go_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connections = 0
        """Of TLS, that were made."""
        self.begun = asyncio.Event()
        """Set when a step is in its thread."""
        self._going = threading.Event()
        loop = asyncio.get_running_loop()
        shake, wrap = ssl.SSLSocket.do_handshake, ssl.SSLContext.wrap_socket

        def held(tls: ssl.SSLSocket) -> None:
            loop.call_soon_threadsafe(self.begun.set)
            self._going.wait()
            shake(tls)

        def counted(*arguments: Any, **named: Any) -> ssl.SSLSocket:
            self.connections += 1
            return wrap(*arguments, **named)

        monkeypatch.setattr(ssl.SSLSocket, "do_handshake", held)
        monkeypatch.setattr(ssl.SSLContext, "wrap_socket", counted)

    def go_on(self) -> None:
        """They go on."""
        self._going.set()
