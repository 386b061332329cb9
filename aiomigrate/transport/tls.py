"""A channel through TLS: OpenSSL on the socket, record by record.

It has a descriptor of its own, so that a step of a handshake in a thread never meets one that was
closed and given to somebody else. Both directions are of one TLS object, used on the event loop
alone once the handshake is over.

Guest memory that stays where it is, and lies in large pieces, OpenSSL works on itself; else a piece
of it is copied, by the kernel (`scratch.py`): memory that went away must be an error, not a SIGBUS.

A record is the unit of what is sent. Once OpenSSL has encrypted it, it has its place in the stream:
it can only be sent, or the connection dropped. What the socket has of a record in part is *owed*;
it counts as sent with its last byte, and until then the peer can read nothing of it. What OpenSSL
wants to write because of something that it has read (an answer to a key update) leaves with what is
written next.

What was decrypted and nobody has read lies where no event loop sees it: a read takes that first,
and goes to the socket only then.
"""

import contextlib
import ctypes
import errno
import os
import socket
import ssl
from collections.abc import Callable
from typing import Never

from aiomigrate.transport.channel import UncleanEnd
from aiomigrate.transport.identity import Certificate, Identity
from aiomigrate.transport.openssl import OpenSsl
from aiomigrate.transport.plain import SEND_FLAGS, unread_bytes, unsent_bytes
from aiomigrate.transport.scratch import PIECE_BYTES
from aiomigrate.transport.tls_errors import in_words
from aiomigrate.transport.vectored import Vector, first_entry

__all__ = ["TlsChannel"]

_RECORD_BYTES = 1 << 14
"""Content of a TLS record at most (RFC 8446, section 5.1)."""
_RECORD_LENGTH = 5 + _RECORD_BYTES + 256
"""Of a record on the wire at most (RFC 8446, section 5.2)."""
_IN_PLACE_BYTES = 2 * _RECORD_BYTES
"""Of the entries of scattered memory, on average, from which on OpenSSL works on them in place.
With less, a record for each entry costs more than the copy."""
_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""Either call may want the other direction, while a post-handshake message is in part in it."""


class TlsChannel:
    """See `Channel`. Of use once `shake_hands` has made it `secure`."""

    def __init__(self, sock: socket.socket, identity: Identity) -> None:
        self.written = 0
        self.received = 0
        self.certificate: Certificate | None = None
        """What the peer has shown; there once the handshake is over."""
        self._sock = sock
        self._fd = sock.fileno()
        self._identity = identity
        self._tls: ssl.SSLSocket | None = None
        self._receive: Callable[[memoryview, int], int] = _not_secure
        self._send: Callable[[memoryview | bytes], int] = _not_secure
        self._openssl: OpenSsl | None = None
        self._owed = b""
        """Content of the record that the socket has in part."""
        self._ahead = b""
        """Decrypted before anybody read it."""
        self._partial = False
        """Whether OpenSSL holds the beginning of a record."""
        self._waiting = 0
        """Bytes that the kernel holds at least, before they are decrypted."""
        self._ended = False
        """Whether the peer has said that no more will come."""
        self._said = False
        """Whether we have said that no more will come."""
        self._farewell = 0
        """Bytes on the wire that say it."""
        self._failure: OSError | None = None
        """What every read meets from now on."""

    def begin(self) -> ssl.SSLSocket:
        """Make the TLS object, whose handshake is the caller's."""
        self._tls = self._identity.wrap(self._sock)
        return self._tls

    def finish(self, tls: ssl.SSLSocket) -> None:
        """The handshake is over."""
        self.certificate = Certificate.of(tls)
        self._receive, self._send = tls.recv_into, tls.send
        self._openssl = OpenSsl.of(tls)

    @property
    def secure(self) -> bool:
        """Whether the handshake is over."""
        return self.certificate is not None

    # Receiving

    def receive(self, max_bytes: int) -> bytes:
        buffer = bytearray(min(max_bytes, _RECORD_BYTES))
        return bytes(buffer[: self.receive_into(memoryview(buffer))])

    def receive_into(self, view: memoryview) -> int:
        moved = self._decrypt(view[:PIECE_BYTES])
        self.received += moved
        return moved

    def receive_vector(self, vector: Vector, offer: int) -> int:
        moved = 0
        if self._openssl and not self._ahead and not self._failure and _in_place(vector, offer):
            moved = self._decrypt_in_place(self._openssl, vector, offer)
        if not moved:
            scratch = self._identity.scratch
            with scratch.view[: min(offer, vector.remaining)] as view:
                moved = self._decrypt(view)
            scratch.scatter(vector, moved)
        self.received += moved
        return moved

    def _decrypt_in_place(self, openssl: OpenSsl, vector: Vector, offer: int) -> int:
        """Fill of a vector what has come; 0 if `_decrypt` is to say why that is nothing."""
        moved, code = vector.through(openssl.read, openssl.handle, offer, _RECORD_BYTES)
        self._waiting = 0
        self._partial = bool(code) and self._inside_record()
        if code:
            if openssl.would_wait():
                if not moved:
                    raise BlockingIOError
            elif code > 0 and openssl.broke():
                self._failure = OSError(code, os.strerror(code))
            else:  # OpenSSL keeps what it was where another connection's call would find it
                self._look_ahead(peek=False)
        return moved

    def _decrypt(self, view: memoryview, *, peek: bool = True) -> int:
        """Fill as much of `view` as has come: how much, 0 at the end. `peek` first whether there is
        anything for OpenSSL in the socket.
        """
        moved = min(len(view), len(self._ahead))
        if moved:
            view[:moved] = self._ahead[:moved]
            self._ahead = self._ahead[moved:]
            return moved
        if self._failure is not None:
            raise self._failure
        if self._ended:
            return 0
        receive, size = self._receive, len(view)
        try:
            while moved < size:
                if peek and self._waiting < _RECORD_LENGTH:
                    self._waiting = unread_bytes(self._fd)
                    if not self._waiting and not self._decrypted():
                        if moved:
                            break
                        # OpenSSL would take an end for a breach, and no longer write; Python's
                        # `ssl` takes a broken connection for an ended one (3.11).
                        if not self._sock.recv(1, socket.MSG_PEEK):
                            raise self._cut()
                with view[moved:] as rest:
                    now = receive(rest, size - moved)  # of one record
                if not now:
                    self._ended = True
                    break
                moved += now
                self._waiting -= _RECORD_LENGTH
                self._partial = False
        except BlockingIOError:
            raise
        except _WANTS:
            self._partial = self._inside_record()
            self._waiting = 0
            if not moved:
                raise BlockingIOError from None
        except ssl.SSLZeroReturnError:  # as 0, where we have said our own farewell
            self._ended = True
        except ssl.SSLEOFError:
            self._partial = self._inside_record()
            self._failure = self._cut()
        except ssl.SSLError as error:
            self._failure = OSError(0, in_words(error))
            self._failure.__cause__ = error
        except OSError as error:
            self._failure = error
        if self._failure is not None and not moved:
            raise self._failure
        return moved

    def _decrypted(self) -> int:
        """Bytes that OpenSSL has decrypted and not given away."""
        return 0 if self._tls is None else self._tls.pending()

    def _inside_record(self) -> bool:
        """Whether OpenSSL has taken a part of a record and no more, after it has looked for more.

        Python cannot say it: then what the socket held before that.
        """
        if self._openssl is not None:
            return self._openssl.inside_record()
        return self._partial or self._waiting > 0

    def _cut(self) -> OSError:
        if self._partial:
            return OSError(0, "the peer ended the stream inside of a TLS record")
        return UncleanEnd()

    def discard(self, view: memoryview) -> int:
        return self._sock.recv_into(view)

    def unread(self) -> int:
        if not self.secure:
            return unread_bytes(self._fd)
        if not self._ahead:
            self._look_ahead()
        return len(self._ahead) or int(self._partial)

    def _look_ahead(self, *, peek: bool = True) -> None:
        buffer = bytearray(_RECORD_BYTES)
        with contextlib.suppress(OSError):  # whoever reads next meets it
            self._ahead = bytes(buffer[: self._decrypt(memoryview(buffer), peek=peek)])

    # Sending

    @property
    def owed(self) -> int:
        return len(self._owed)

    def send(self, view: memoryview) -> int:
        return self.flush() if self._owed else self._encrypt(view[:PIECE_BYTES])

    def send_beside(self, view: memoryview, descriptor: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "a descriptor does not go through TLS")

    def send_vector(self, vector: Vector, offer: int) -> int:
        if self._owed:
            moved = self.flush()
        elif self._openssl and _in_place(vector, offer):
            return self._encrypt_in_place(self._openssl, vector, offer)
        else:
            with self._identity.scratch.gather(vector, offer) as view:
                moved = self._encrypt(view)
        vector.advance(moved)
        return moved

    def _encrypt_in_place(self, openssl: OpenSsl, vector: Vector, offer: int) -> int:
        moved, code = vector.through(openssl.write, openssl.handle, offer, _RECORD_BYTES)
        self.written += moved
        if code:
            if not openssl.would_wait():
                number = code if code > 0 and openssl.broke() else errno.EPIPE
                openssl.forget_errors()
                raise OSError(number, os.strerror(number))
            self._owed = _next_bytes(vector)
            if not moved:
                raise BlockingIOError
        return moved

    def send_now(self, view: memoryview) -> int:
        if self._owed:
            self.flush()
        taken = view[:_RECORD_BYTES]
        # After an error, too, the kernel has not all of the record: the peer reads nothing of it.
        with contextlib.suppress(BlockingIOError):  # it is owed
            self._encrypt(taken)
        return len(taken)

    def _encrypt(self, view: memoryview) -> int:
        """Send what the socket takes of `view`, in records; the last of them may be owed."""
        moved, send = 0, self._send
        try:
            while moved < len(view):
                with view[moved : moved + _RECORD_BYTES] as record:
                    moved += send(record)
        except _WANTS:
            self._owed = bytes(view[moved : moved + _RECORD_BYTES])
            if not moved:
                raise BlockingIOError from None
        except ssl.SSLError as error:
            raise _refused(error) from error
        finally:
            self.written += moved
        return moved

    def flush(self) -> int:
        try:
            moved = self._send(self._owed)
        except _WANTS:
            raise BlockingIOError from None
        except ssl.SSLError as error:
            raise _refused(error) from error
        self._owed = self._owed[moved:]
        self.written += moved
        return moved

    def queued(self, unsent: int) -> int:
        return max(0, unsent - self._farewell)

    def say(self, record: bytes) -> None:
        """Send a record that is none of OpenSSL's."""
        self._sock.send(record, SEND_FLAGS)

    # The end

    def end(self) -> None:
        if self._openssl is not None:  # else nothing is said, so that what comes can be read
            self._say_farewell()
        self._sock.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        self._say_farewell()
        self._receive = self._send = _not_secure
        self._sock.shutdown(socket.SHUT_WR)

    def close(self, *, politely: bool) -> None:
        if politely:
            self._say_farewell()
        self._owed = self._ahead = b""
        # Whoever reads in another task's turn: the socket would say the same.
        self._failure = OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._openssl = None
        if self._tls is not None:
            self._tls.close()

    def _say_farewell(self) -> None:
        """Send a close_notify, if it would come in its place, and can be sent at once."""
        if self._tls is None or not self.secure or self._owed or self._said:
            return
        self._said = True
        before = unsent_bytes(self._fd)
        if self._openssl is not None:
            self._openssl.say_farewell()
        else:
            with contextlib.suppress(OSError):  # it looks for the peer's, and finds none
                self._tls.unwrap()
        self._farewell = max(0, unsent_bytes(self._fd) - before)


def _not_secure(*_: object) -> Never:
    raise OSError(errno.ENOTCONN, "the TLS connection is not made yet")


def _refused(error: ssl.SSLError) -> OSError:
    """Why a record was not sent."""
    if isinstance(error, ssl.SSLEOFError):  # Python's `ssl` hides the errno (3.11)
        return OSError(errno.EPIPE, os.strerror(errno.EPIPE))
    return OSError(0, in_words(error))


def _in_place(vector: Vector, offer: int) -> bool:
    """Whether OpenSSL works on a vector's memory itself."""
    if not vector.steady:
        return False
    _, entries, size = vector.window(offer)
    # One alone is the rest of one, or a small one before one that is too large for the offer.
    return entries == 1 or size >= entries * _IN_PLACE_BYTES


def _next_bytes(vector: Vector) -> bytes:
    """A copy of the next bytes of a vector whose memory is steady: of one entry and one record."""
    address, _, _ = vector.window(1)
    base, length = first_entry(address)
    return ctypes.string_at(base, min(length, _RECORD_BYTES))
