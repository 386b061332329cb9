"""A channel through TLS: records in memory, and the socket written and read in large pieces.

OpenSSL works on two buffers in memory (`ssl.MemoryBIO`) and never on the socket. So a system call
carries a quarter of a MiB, where OpenSSL by itself makes one or two for each record of 16 KiB; and
it is known what was encrypted, and what of that the kernel has. Both directions are of one TLS
object, used on the event loop alone once the handshake is over.

What is sent counts as its ciphertext leaves, in proportion. A piece that is encrypted has its place
in the stream: it can only be sent, or the connection dropped. TLS 1.3 never wants to read in order
to write; what it wants to write because of something that it has read (an answer to a key update)
leaves with what is written next, or at once if nothing is.

What was read from the socket and not decrypted lies here, where no event loop sees it: a read takes
that first, and goes to the socket only then.
"""

import contextlib
import errno
import os
import socket
import ssl
from typing import cast

from aiomigrate.transport.channel import UncleanEnd
from aiomigrate.transport.identity import Identity
from aiomigrate.transport.plain import SEND_FLAGS, unread_bytes
from aiomigrate.transport.scratch import PIECE_BYTES
from aiomigrate.transport.tls_errors import in_words
from aiomigrate.transport.vectored import Vector

__all__ = ["TlsChannel"]

_RECORD_BYTES = 1 << 14
"""Content of a TLS record at most (RFC 8446, section 5.1)."""

_NOTHING = memoryview(b"")


class TlsChannel:
    """See `Channel`. Of use once `shake_hands` has made it `secure`."""

    def __init__(self, sock: socket.socket, identity: Identity) -> None:
        self.written = 0
        self.received = 0
        self.secure = False
        """Whether the handshake is over."""
        self._sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = identity.wrap(self._incoming, self._outgoing)
        self._raw = identity.raw
        self._cipher = _NOTHING
        """What is encrypted and not sent."""
        self._plain = self._plain_sent = 0
        """Bytes that it began with inside, and those of them that count as sent."""
        self._length = 0
        """Bytes that it began with."""
        self._ahead = b""
        """Decrypted before anybody read it."""
        self._partial = False
        """Whether OpenSSL holds the beginning of a record."""
        self._farewell = 0
        """Bytes of ciphertext that say that no more will come."""
        self._ended = False
        self._failure: OSError | None = None
        """What every read meets from now on."""
        self._scratch = identity.scratch

    # Receiving

    def receive(self, max_bytes: int) -> bytes:
        buffer = bytearray(min(max_bytes, _RECORD_BYTES))
        return bytes(buffer[: self.receive_into(memoryview(buffer))])

    def receive_into(self, view: memoryview) -> int:
        moved = self._decrypt(view[:PIECE_BYTES])
        self.received += moved
        return moved

    def receive_vector(self, vector: Vector, offer: int) -> int:
        with self._scratch.view[: min(offer, vector.remaining)] as view:
            moved = self._decrypt(view)
        self._scratch.scatter(vector, moved)
        self.received += moved
        return moved

    def _decrypt(self, view: memoryview, *, of_socket: bool = True) -> int:
        """Fill as much of `view` as has come: how much, 0 at the end. Not `of_socket`: of what was
        read from it before, which may be nothing.
        """
        moved = min(len(view), len(self._ahead))
        if moved:
            view[:moved] = self._ahead[:moved]
            self._ahead = self._ahead[moved:]
            return moved
        if self._failure is not None:
            raise self._failure
        try:
            while moved < len(view):
                held = self._incoming.pending
                try:
                    # A record at most; with a buffer it gives the number of bytes.
                    with view[moved:] as rest:
                        now = cast("int", self.tls.read(len(rest), rest))
                except ssl.SSLWantReadError:
                    self._partial = self._partial or held > 0
                    if moved or not of_socket:
                        break
                    self.fill()
                else:
                    self._partial = False
                    if not now:
                        break
                    moved += now
        except ssl.SSLError as error:
            self._failure = self._explain(error)
            if not moved:
                raise self._failure from error
        if self._outgoing.pending and not self._cipher:
            self.collect()
            with contextlib.suppress(OSError):  # whoever writes next meets it
                self.flush()
        return moved

    def _explain(self, error: ssl.SSLError) -> OSError:
        if not isinstance(error, ssl.SSLEOFError):
            return OSError(0, in_words(error))
        if self._partial:
            return OSError(0, "the peer ended the stream inside of a TLS record")
        return UncleanEnd()

    def fill(self) -> None:
        """Read from the socket what is to be decrypted."""
        moved = self._sock.recv_into(self._raw)
        if moved:
            self._incoming.write(self._raw[:moved])
        else:
            self._ended = True
            self._incoming.write_eof()

    @property
    def ended(self) -> bool:
        """Whether the socket has been read to the end of the peer's stream."""
        return self._ended

    def unread(self) -> int:
        if not self.secure:
            return unread_bytes(self._sock.fileno())
        if not self._ahead:
            buffer = bytearray(_RECORD_BYTES)
            with contextlib.suppress(OSError):  # whoever reads next meets it
                self._ahead = bytes(buffer[: self._decrypt(memoryview(buffer))])
        return len(self._ahead) or int(self._partial)

    # Sending

    @property
    def owed(self) -> int:
        return self._plain - self._plain_sent

    def send(self, view: memoryview) -> int:
        if not self.owed:
            self._encrypt(view[:PIECE_BYTES])
        return self.flush()

    def send_beside(self, view: memoryview, descriptor: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "a descriptor does not go through TLS")

    def send_vector(self, vector: Vector, offer: int) -> int:
        if not self.owed:
            with self._scratch.gather(vector, offer) as view:
                self._encrypt(view)
        moved = self.flush()
        vector.advance(moved)
        return moved

    def send_now(self, view: memoryview) -> int:
        while self._cipher:
            self.flush()
        taken = view[:PIECE_BYTES]
        self._encrypt(taken)
        try:
            while self._cipher:
                self.flush()
        except BlockingIOError:
            pass  # it is owed
        except OSError:
            if len(self._cipher) == self._length:  # the kernel has nothing of it, nor will have
                self._forget()
                raise
        return len(taken)

    def _encrypt(self, view: memoryview) -> None:
        try:
            self.tls.write(view)
        except ssl.SSLError as error:
            raise OSError(0, in_words(error)) from error
        self.collect(len(view))

    def collect(self, plain: int = 0) -> None:
        """Have what OpenSSL wants to write sent next; `plain` bytes of content are inside."""
        written = self._outgoing.read()
        self._cipher = memoryview(b"".join((self._cipher, written)) if self._cipher else written)
        self._length = len(self._cipher)
        self._plain, self._plain_sent = plain, 0

    def say(self, record: bytes) -> None:
        """Have a record sent that is none of OpenSSL's."""
        self._cipher = memoryview(record)
        self._length = len(record)

    def flush(self) -> int:
        moved = 0
        while self._cipher and not moved:
            sent = self._sock.send(self._cipher, SEND_FLAGS)
            self._cipher = self._cipher[sent:]
            gone = self._length - len(self._cipher)
            moved = self._plain * gone // self._length - self._plain_sent
            self._plain_sent += moved
        if not self._cipher:
            self._cipher = _NOTHING  # the rest of nothing would keep the piece
        self.written += moved
        return moved

    @property
    def unsent(self) -> bool:
        """Whether ciphertext waits to be sent."""
        return bool(self._cipher)

    def _forget(self) -> None:
        self._cipher = _NOTHING
        self._plain = self._plain_sent = 0

    def queued(self, unsent: int) -> int:
        return max(0, unsent - self._farewell)

    # The end

    def end(self) -> None:
        # OpenSSL takes content that it holds, and nobody has read, for a mistake when it looks for
        # the peer's farewell.
        held, self._ahead = self._ahead, b""
        buffer = bytearray(self._incoming.pending + _RECORD_BYTES)
        if self.secure and self._failure is None:
            held += buffer[: self._decrypt(memoryview(buffer), of_socket=False)]
        self._ahead = held
        self._say_farewell()
        self._sock.shutdown(socket.SHUT_WR)

    def close(self, *, politely: bool) -> None:
        if politely:
            self._say_farewell()
        self._forget()
        self._ahead = b""
        # Whoever reads in another task's turn: the socket would say the same.
        self._failure = OSError(errno.EBADF, os.strerror(errno.EBADF))

    def _say_farewell(self) -> None:
        """Send a close_notify, if it would come in its place, and can be sent at once."""
        if not self.secure or self._cipher:
            return
        with contextlib.suppress(ssl.SSLError):  # it waits for the peer's, which nobody does here
            self.tls.unwrap()
        self.collect()
        self._farewell = self._length
        with contextlib.suppress(OSError):
            self.flush()
