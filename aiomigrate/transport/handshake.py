"""The beginning of a TLS connection.

Its steps run in threads: a signature with a long RSA key takes longer than anything may hold up the
event loop. Until it is over nothing but this touches the TLS object. In TLS 1.3 a client is done
before the server has seen its certificate: that this was refused is met at the first read.
"""

import asyncio
import contextlib
import ssl

from aiomigrate.transport.errors import ConnectionClosed, HandshakeFailed
from aiomigrate.transport.identity import Identity
from aiomigrate.transport.operation import Side
from aiomigrate.transport.tls import TlsChannel
from aiomigrate.transport.tls_errors import in_words

__all__ = ["shake_hands"]

_LINGER_S = 1.0
"""For the peer to read the alert that says what was wrong; arbitrary, some round trips."""

_DISCARD_BYTES = 1 << 14
"""Of what a refused peer still sends, at a time; arbitrary."""

_NOT_PLAIN = bytes((21, 3, 1, 0, 2, 2, 70))
"""A fatal alert, protocol_version (RFC 8446, section 6), as rustls would say it."""


async def shake_hands(
    channel: TlsChannel, identity: Identity, reading: Side, writing: Side, name: str
) -> None:
    """Make the channel secure; the caller sets the deadline. Raises `HandshakeFailed`, `OSError`.

    What the peer did wrong it is told by a TLS alert, and has a moment to read that.
    """
    tls = channel.begin()
    while True:
        waits_for: Side | None = None
        problem: ssl.SSLError | None = None
        with tls.makefile("rb", buffering=0):  # a close meanwhile waits for the end of the step
            try:
                await identity.run(tls.do_handshake)
            except ssl.SSLWantReadError:
                waits_for = reading
            except ssl.SSLWantWriteError:
                waits_for = writing
            except ssl.SSLError as error:
                problem = error
        if reading.closed:
            raise ConnectionClosed(name, reading.what)
        if problem is not None:
            with contextlib.suppress(OSError):
                async with asyncio.timeout(_LINGER_S):
                    await _refuse(channel, problem, reading)
            if isinstance(problem, ssl.SSLEOFError):
                ended = "the peer ended the connection in the handshake: does it expect TLS?"
                raise HandshakeFailed(name, ended) from None
            raise HandshakeFailed(name, in_words(problem)) from problem
        if waits_for is None:
            channel.finish(tls)
            return
        await waits_for.ready.wait()
        if reading.closed:
            raise ConnectionClosed(name, reading.what)


async def _refuse(channel: TlsChannel, problem: ssl.SSLError, reading: Side) -> None:
    """End the stream, after OpenSSL's alert, and read until the peer ends its own: over unread
    bytes a close would be a reset.
    """
    if problem.reason == "WRONG_VERSION_NUMBER":
        channel.say(_NOT_PLAIN)  # OpenSSL says nothing to whoever speaks no TLS
    channel.leave()
    buffer = memoryview(bytearray(_DISCARD_BYTES))
    moved = 1
    while moved:
        try:
            moved = channel.discard(buffer)
        except BlockingIOError:
            await reading.ready.wait()
