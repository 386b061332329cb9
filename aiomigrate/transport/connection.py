"""A connection: bytes in both directions over a non-blocking stream socket, in TLS or without.

An asyncio transport copies into buffers of its own, reads when it likes, and flushes after close. A
migration needs the opposite: content goes straight between guest memory and the socket, unread
bytes stay in the kernel (that is the flow control), and it is known to the byte what was handed
over. So every operation tries its system call at once and waits only where that would block
(`operation.py`); an idle connection is not registered on the loop at all.

One task may read while another writes. A cancelled read or write has moved an unknown part; the
connection is then of use only for closing.
"""

import asyncio
import contextlib
import socket
import struct

from aiomigrate.transport.channel import Channel, UncleanEnd
from aiomigrate.transport.errors import (
    DescriptorError,
    EndOfStream,
    HandshakeFailed,
    Stalled,
    TransportError,
)
from aiomigrate.transport.handshake import shake_hands
from aiomigrate.transport.hang_up import HangUp
from aiomigrate.transport.identity import Certificate, Identity
from aiomigrate.transport.operation import MAX_CALL_BYTES, Side
from aiomigrate.transport.pace import Pace
from aiomigrate.transport.plain import DescriptorChannel, PlainChannel, unsent_bytes
from aiomigrate.transport.quick_ack import QuickAck
from aiomigrate.transport.tcp_times import TcpTimes, tcp_times
from aiomigrate.transport.tls import TlsChannel
from aiomigrate.transport.vectored import Vector

__all__ = ["Connection"]

DISCARD_BYTES = 1 << 18
"""What a lingering close discards a call; arbitrary, a quarter of what other calls may move."""


class Connection:
    """One stream connection, used on the loop that it was made on. Owns `sock` (non-blocking).

    `takes_descriptors`: what a unix socket carries beside the bytes is for `take_descriptors`.

    Every method raises `ConnectionClosed` after this side has closed (the closing ones do nothing
    then), `ConnectionLost` when the connection broke, and `BusyError` when another task is in the
    same direction already.
    """

    name: str
    """The peer as an address, for people: `tcp:10.0.0.7:6000`."""
    peer_host: str
    """The peer's IP address; `""` on a unix socket."""

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        peer_host: str,
        *,
        quick_ack: bool = False,
        takes_descriptors: bool = False,
        identity: Identity | None = None,
    ) -> None:
        """With an `identity` it is a TLS connection, of use once `secure` has been awaited."""
        loop = asyncio.get_running_loop()
        self.name = name
        self.peer_host = peer_host
        self._loop = loop
        self._sock = sock
        self._fd = fd = sock.fileno()
        self._acknowledged = 0
        self._quick_ack = QuickAck(sock, wanted=quick_ack)
        self._reading = Side(loop, fd, name, "read")
        self._writing = Side(loop, fd, name, "write", write=True)
        self._hang_up = HangUp(loop, fd, name)
        self._identity = identity
        self._channel: Channel
        if identity is not None:
            self._channel = TlsChannel(sock, identity)
        elif takes_descriptors:
            self._channel = DescriptorChannel(sock, name)
        else:
            self._channel = PlainChannel(sock)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        counters = f"received={self.received} written={self.written}"
        return f"<Connection {self.name} {state} {counters}>"

    @property
    def closed(self) -> bool:
        """Whether this side has closed the connection."""
        return self._fd < 0

    @property
    def written(self) -> int:
        """Bytes that the kernel has taken from this side."""
        return self._channel.written

    @property
    def received(self) -> int:
        """Bytes that this side has read."""
        return self._channel.received

    @property
    def write_wait_s(self) -> float:
        """Seconds that writes have waited for the kernel to take more, up to now."""
        return self._writing.waited_s

    def times(self) -> TcpTimes | None:
        """What the kernel says it spent its time on; None if it does not, or this side closed."""
        return None if self.closed else tcp_times(self._sock)

    @property
    def peer_certificate(self) -> Certificate | None:
        """What the peer has shown; None without TLS, and before it is secure."""
        return self._channel.certificate if isinstance(self._channel, TlsChannel) else None

    async def secure(self, within: float) -> None:
        """Make the TLS connection, if it is to be one, within so many seconds.

        Raises `HandshakeFailed`.
        """
        if self._identity is None or not isinstance(self._channel, TlsChannel):
            return
        with self._reading, self._writing:
            try:
                async with asyncio.timeout(within):
                    await shake_hands(
                        self._channel, self._identity, self._reading, self._writing, self.name
                    )
            except TimeoutError:
                raise HandshakeFailed(self.name, f"it was not done in {within:g} s") from None

    async def read_exactly(
        self, n: int, *, rest_within: float | None = None, pace: Pace | None = None
    ) -> bytes:
        """Read `n` bytes, waiting for the first of them without limit.

        The rest must come within `rest_within` seconds of it, or at `pace`. Raises `EndOfStream`
        (`received` is 0 at a clean end, before the first byte) and `Stalled`.
        """
        if rest_within is not None:
            if pace is not None:
                raise ValueError("rest_within and pace exclude each other")
            pace = Pace(min_bytes=max(n, 1), seconds=rest_within)
        with self._reading:
            if not n:  # a recvmsg for no bytes would wait for some
                return b""
            first = await self._receive_some(n)
            if len(first) == n:
                return first
            if not first:
                raise EndOfStream(self.name, "read", expected=n, received=0)
            # Grown as the bytes come: it is the peer who says how many they will be.
            buffer = bytearray(first)

            def step(offer: int) -> int:
                data = self._receive(min(offer, n - len(buffer)))
                buffer.extend(data)
                return len(data)

            await self._reading.transfer(step, n - len(first), pace, done=len(first))
            return bytes(buffer)

    async def read_some(self, max_bytes: int) -> bytes:
        """Wait for bytes and read what is there, at most `max_bytes`; `b""`: end of stream."""
        with self._reading:
            return await self._receive_some(max_bytes)

    async def read_into(self, buffer: bytearray | memoryview, pace: Pace | None = None) -> None:
        """Fill `buffer` at `pace`, the first byte included. Raises `EndOfStream` and `Stalled`."""
        view = memoryview(buffer).cast("B")
        position = 0

        def step(offer: int) -> int:
            nonlocal position
            moved = self._quick_ack.after(
                lambda: self._channel.receive_into(view[position : position + offer])
            )
            position += moved
            return moved

        with self._reading:
            await self._reading.transfer(step, len(view), pace)

    async def read_vector(self, vector: Vector, pace: Pace | None = None) -> None:
        """Fill what remains of `vector` at `pace`, the first byte included, without a copy.

        Raises `EndOfStream` and `Stalled`, and `MemoryFault` where the memory is not there.
        """

        def step(offer: int) -> int:
            return self._quick_ack.after(lambda: self._channel.receive_vector(vector, offer))

        with self._reading:
            await self._reading.transfer(step, vector.remaining, pace)

    async def _receive_some(self, max_bytes: int) -> bytes:
        """What is there, at most `max_bytes` and at most one call's worth; waits without limit."""
        await self._reading.pause()
        while True:
            try:
                data = self._receive(min(max_bytes, MAX_CALL_BYTES))
            except BlockingIOError:
                await self._reading.ready.wait()
            except UncleanEnd:  # between two messages
                return b""
            else:
                self._reading.charge(len(data))
                return data

    def _receive(self, max_bytes: int) -> bytes:
        try:
            return self._channel.receive(max_bytes)
        finally:
            self._quick_ack.now()

    def take_descriptors(self, expected: int) -> list[int]:
        """The descriptors that came with what was read since the last call, non-inheritable and the
        caller's to close. `DescriptorError` if they are not `expected` (0 or 1): all are closed.
        """
        if isinstance(self._channel, DescriptorChannel):
            return self._channel.take(expected)
        if expected:
            raise DescriptorError(self.name, expected=expected, got="none: this is no unix socket")
        return []

    async def write(
        self,
        data: bytes | bytearray | memoryview,
        pace: Pace | None = None,
        *,
        descriptor: int | None = None,
    ) -> None:
        """Hand all of `data` to the kernel. Raises `Stalled` where the peer does not keep `pace`.

        On a unix socket a `descriptor`, which stays the caller's, goes beside the first byte.

        Progress is what the kernel takes. A full send buffer reports "writable" only when a third
        of it has drained, but takes more at once, so an honest slow reader is not cut: what the
        peer has acknowledged is taken when the time is up.
        """
        view = memoryview(data).cast("B")
        position = 0

        def step(offer: int) -> int:
            nonlocal position
            piece = view[position : position + offer]
            if descriptor is None or position:
                moved = self._channel.send(piece)
            else:
                moved = self._channel.send_beside(piece, descriptor)
            position += moved
            return moved

        with self._writing:
            await self._flush(pace)
            await self._writing.transfer(step, len(view), pace)

    async def _flush(self, pace: Pace | None) -> None:
        """Hand over what `write_now` has taken."""
        if self._channel.owed:
            await self._writing.transfer(lambda _: self._channel.flush(), self._channel.owed, pace)

    async def write_vector(self, vector: Vector, pace: Pace | None = None) -> None:
        """Hand what remains of `vector` to the kernel at `pace`, without a copy in this process.

        Raises `Stalled`, and `MemoryFault` where the memory is not there.
        """

        def step(offer: int) -> int:
            return self._channel.send_vector(vector, offer)

        with self._writing:
            await self._flush(pace)
            await self._writing.transfer(step, vector.remaining, pace)

    def write_now(self, data: bytes | bytearray | memoryview) -> int:
        """Hand over what is taken at once and give the number of bytes; 0: it would wait.

        An error means that none of these bytes were taken: this is how to know whether a commit
        point has been passed. TLS takes what it has encrypted, though the kernel may not yet have
        all of that: the next write hands it over, also one of nothing.
        """
        with self._writing:
            try:
                return self._channel.send_now(memoryview(data).cast("B")[:MAX_CALL_BYTES])
            except BlockingIOError:
                return 0

    async def writable(self, within: float) -> None:
        """Wait until `write_now` can take a byte or fails. Raises `Stalled` after `within` s."""
        with self._writing:
            if not await self._writing.ready.wait(self._loop.time() + within):
                raise Stalled(self.name, "write", seconds=within, expected=1, moved=0)

    def acknowledged(self) -> int:
        """How many of the bytes `written` the peer's kernel has; never shrinks, works when closed.

        On a unix socket and of TLS a lower bound: the kernel counts what is queued with its own
        overhead, or with that of TLS.
        """
        if self._fd >= 0:
            unsent = self._channel.queued(unsent_bytes(self._fd))
            self._acknowledged = max(self._acknowledged, self.written - unsent)
        return self._acknowledged

    def unread(self) -> int:
        """How many bytes have come that have not been read; of TLS at least 1 if any have."""
        self._hang_up.check_open()
        held = self._channel.unread()
        if held:
            self._reading.ready.wake()  # they may no longer be where it waits for them
        return held

    def hung_up(self) -> bool:
        """Whether the peer has ended its stream or the connection is broken. Consumes nothing.

        Sees the end behind bytes that are not read yet, too.
        """
        return self._hang_up.seen()

    async def wait_hang_up(self, within: float) -> bool:
        """Wait until `hung_up()` (True), or for `within` seconds (False), whoever reads and writes
        meanwhile.
        """
        return await self._hang_up.wait(within)

    def abort(self) -> None:
        """Close at once: drop what is unsent, and reset a TCP peer.

        A unix socket has no reset, and what was written is with the peer already.
        """
        if not self.closed:
            # l_onoff 1, l_linger 0 (socket(7))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._close(politely=False)

    def close(self) -> None:
        """Close; the kernel still delivers what was written. Waiting tasks meet an error."""
        if not self.closed:
            self._close(politely=True)

    def _close(self, *, politely: bool) -> None:
        self._channel.close(politely=politely)
        self.acknowledged()
        self._fd = -1
        self._reading.close()
        self._writing.close()
        self._hang_up.close()
        self._sock.close()

    def end_stream(self) -> None:
        """End our stream and go on reading: the peer reads an end of stream."""
        with self._writing:
            self._channel.end()

    async def close_lingering(self, within: float = 5.0) -> bool:
        """End our stream, discard what the peer still sends until it ends its own, then close.

        So the peer can read our last words: closing over unread bytes resets the connection, which
        may destroy them. Whether the peer's kernel has them and it ended its stream: through TLS,
        whatever its last records said.
        Gives up after `within` seconds; closes also when cancelled.
        """
        ended = False
        try:
            if not self.closed:
                with contextlib.suppress(TransportError), self._reading:
                    self._channel.leave()
                    ended = await self._discard(self._loop.time() + within)
        finally:
            self.close()
        # Our end of stream has a place in the kernel's count, and need not be acknowledged.
        return ended and self.written - self._acknowledged <= 1

    async def _discard(self, deadline: float) -> bool:
        buffer = memoryview(bytearray(DISCARD_BYTES))
        while self._loop.time() < deadline:
            await self._reading.pause()
            try:
                moved = self._channel.discard(buffer)
            except BlockingIOError:
                await self._reading.ready.wait(deadline)
                continue
            if not moved:
                return True
            self._reading.charge(moved)
        return False
