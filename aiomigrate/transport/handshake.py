"""The beginning of a TLS connection.

Its steps run in threads: a signature with a long RSA key takes longer than anything may hold up the
event loop. Until it is over nothing but this touches the TLS object. In TLS 1.3 a client is done
before the server has seen its certificate: that this was refused is met at the first read.
"""

import asyncio
import contextlib
import ssl

from aiomigrate.transport.errors import HandshakeFailed
from aiomigrate.transport.identity import Identity
from aiomigrate.transport.operation import Side
from aiomigrate.transport.tls import TlsChannel
from aiomigrate.transport.tls_errors import in_words

__all__ = ["shake_hands"]

_LINGER_S = 1.0
"""For the peer to read the alert that says what was wrong; arbitrary, some round trips."""

_NOT_PLAIN = bytes((21, 3, 1, 0, 2, 2, 70))
"""A fatal alert, protocol_version (RFC 8446, section 6), as rustls would say it."""


async def shake_hands(
    channel: TlsChannel, identity: Identity, reading: Side, writing: Side, name: str
) -> None:
    """Make the channel secure; the caller sets the deadline. Raises `HandshakeFailed`, `OSError`.

    What the peer did wrong it is told by a TLS alert, and has a moment to read that.
    """
    while not channel.secure:
        problem: ssl.SSLError | None = None
        try:
            await identity.run(channel.tls.do_handshake)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            problem = error
        else:
            channel.secure = True
        channel.collect()
        if problem is not None:
            if problem.reason == "WRONG_VERSION_NUMBER" and not channel.unsent:
                channel.say(_NOT_PLAIN)  # OpenSSL says nothing to whoever speaks no TLS
            with contextlib.suppress(OSError):
                async with asyncio.timeout(_LINGER_S):
                    await _flush(channel, writing)
                    channel.end()
                    await _discard(channel, reading)
            if isinstance(problem, ssl.SSLEOFError):
                ended = "the peer ended the connection in the handshake: does it expect TLS?"
                raise HandshakeFailed(name, ended) from None
            raise HandshakeFailed(name, in_words(problem)) from problem
        await _flush(channel, writing)
        if not channel.secure:
            await _fill(channel, reading)


async def _flush(channel: TlsChannel, writing: Side) -> None:
    while channel.unsent:
        try:
            channel.flush()
        except BlockingIOError:
            await writing.ready.wait()


async def _fill(channel: TlsChannel, reading: Side) -> None:
    while True:
        try:
            return channel.fill()
        except BlockingIOError:
            await reading.ready.wait()


async def _discard(channel: TlsChannel, reading: Side) -> None:
    """Read until the peer ends its stream: over unread bytes a close would be a reset."""
    while not channel.ended:
        await _fill(channel, reading)
