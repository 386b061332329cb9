"""A receiver that behaves as Cloud Hypervisor's does: naive, blocking, in threads.

It reads one request, answers it, reads the next. The first connection is the migration; after
Config one thread accepts more. In the dialect v53 that thread waits for a role, in line, before it
accepts the next; in v52 there are no roles. A memory connection takes Memory only; an error there
closes the socket without an answer and shows as an Error to State. What it refuses, and how, is in
the project's notes on Cloud Hypervisor's failure behaviour; where the real one hangs or dies (end
of stream in content, a table that is no multiple of 16), this one notes it in `failure` and closes.

A `Script` makes it misbehave. It shares no code with aiomigrate.
"""

import contextlib
import itertools
import json
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from tests.support.image import GuestImage
from tests.support.peer_connection import ERROR, OK, Connection, Refused
from tests.support.peer_faults import ask_for_pages
from tests.support.peer_files import PassedFiles
from tests.support.sockets import RequestLost, Wire, listen, ready, text_of

__all__ = [
    "ABANDON",
    "COMPLETE",
    "COMPLETE_PAUSED",
    "CONFIG",
    "MEMORY",
    "MEMORY_FD",
    "START",
    "STATE",
    "Dialect",
    "Peer",
    "Script",
]

START, CONFIG, STATE, MEMORY, COMPLETE, ABANDON, MEMORY_FD, COMPLETE_PAUSED = range(1, 9)
_ROLE_MEMORY, _ROLE_FAULT = 1, 2
_LAST_COMMAND = {"v52": 8, "v53": 9}
_MAX_DOCUMENT = 64 << 20
_PIECE = 1 << 20
_PATIENCE_S = 90.0
"""For a sender to begin, and for what a test waits for: its process may have to wait for its turn
on a machine that has much else to do. The test's own timeout is 120 s.
"""
Dialect = Literal["v52", "v53"]
# state -> what the main connection takes there, and where that leads (protocol.md, "Order on the
# main connection")
_MAIN = {
    "established": {START: "started"},
    "started": {CONFIG: "configured", MEMORY_FD: "fds received"},
    "fds received": {CONFIG: "configured", MEMORY_FD: "fds received"},
    "configured": {MEMORY: "configured", STATE: "state received"},
    "state received": {COMPLETE: "completed", COMPLETE_PAUSED: "paused"},
}


@dataclass(frozen=True)
class Script:
    """How the peer departs from good behaviour. The default departs in nothing.

    `lanes` says what happens to each connection after the first `lanes_served` additional ones:
    "serve", "refuse" (the listener is closed), "close" (accepted and closed at once), "ignore"
    (accepted, never read). With `hold_answers`, Memory is read but not answered until
    `Peer.release()`. At the first request with the command `error_at`, `close_at` or `silent_at` it
    answers Error, closes, or neither reads nor answers any more; the request's header has been read
    (for an Error also what follows it, so that no reset can overtake the answer). `max_lanes` is
    the number of additional connections above which it aborts everything.
    """

    lanes: Literal["serve", "refuse", "close", "ignore"] = "serve"
    lanes_served: int = 0
    hold_answers: bool = False
    error_at: int | None = None
    close_at: int | None = None
    silent_at: int | None = None
    max_lanes: int = 128
    role_within: float = 10.0


_GOOD = Script()


class Peer:
    """A receiving Cloud Hypervisor in threads; a context manager that leaves nothing behind.

    with Peer(dialect="v53") as peer: ... send to `peer.address` ...; peer.finished()

    After `finished()`: `outcome` ("completed", "paused", "aborted" or "failed"), `failure` (why,
    or None), `config`, `state`, `memory` (a GuestImage), `connections`, `order` (connection number
    and command of each request as its header was read) and `lost_at_state` (numbers of lanes that
    had unread bytes when State came). Memory that came by descriptor is in `memory` as it was when
    Complete was answered, and `memory_fds` (by slot) has the descriptors until the context ends.

    With `fault_bytes` it means post-copy: it waits for a fault connection before it restores the
    State, asks for the first piece of each mapping then, and for all others, of so many bytes, once
    it has answered Complete; then it closes that connection.
    """

    def __init__(
        self,
        *,
        address: str = "tcp:127.0.0.1:0",
        dialect: Dialect = "v53",
        script: Script = _GOOD,
        timeout: float = _PATIENCE_S,
        fault_bytes: int = 0,
    ) -> None:
        self.dialect = dialect
        self._fault_bytes = fault_bytes
        self.script = script
        self.connections: list[Connection] = []
        self.order: list[tuple[int, int]] = []
        self.config: bytes | None = None
        self.state: bytes | None = None
        self.memory: GuestImage | None = None
        self.outcome: str | None = None
        self.failure: str | None = None
        self.lost_at_state: list[int] = []
        self._files = PassedFiles()
        self.memory_fds = self._files.fds
        self._timeout = timeout
        self._changed = threading.Condition()
        self._main = threading.Thread(target=self._serve_main, name="peer main")
        self._others: list[threading.Thread] = []  # the accepting thread and one a lane
        self._holds = script.hold_answers
        self._accepting = False
        self._listener = listen(address)
        self._listener.settimeout(timeout)
        self._stop, self._stopper = socket.socketpair()
        self.address = text_of(self._listener)

    def __enter__(self) -> Self:
        self._main.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_lanes()
        for connection in list(self.connections):
            connection.wire.stop()
        self._main.join(self._timeout)
        assert not self._main.is_alive(), f"the peer's main thread is still there: {self!r}"
        self._files.close()
        self._listener.close()
        self._stop.close()
        self._stopper.close()

    # What a test asks and does.

    def finished(self, within: float = _PATIENCE_S) -> str:
        """Wait for the end; returns `outcome`."""
        self.wait_for(lambda: self.outcome is not None, within)
        assert self.outcome is not None
        return self.outcome

    def wait_for(self, condition: Callable[[], bool], within: float = _PATIENCE_S) -> None:
        """Wait until `condition()` holds; it is asked after each request, answer and connection."""
        with self._changed:
            assert self._changed.wait_for(condition, within), f"not within {within} s: {self!r}"

    def wait_for_requests(self, command: int, count: int, within: float = _PATIENCE_S) -> None:
        """Wait until `count` requests with `command` were read, over all connections."""
        self.wait_for(lambda: self.count(command) >= count, within)

    def count(self, command: int) -> int:
        """How many requests with `command` were read, over all connections."""
        return sum(seen == command for _, seen in list(self.order))

    def release(self) -> None:
        """Answer what `Script.hold_answers` held back, and hold nothing back from now on."""
        with self._changed:
            self._holds = False
        for connection in list(self.connections):
            connection.release()
        self._notify()

    def busy(self) -> bool:
        """Whether the peer can go on by itself (for VirtualClockLoop.watch)."""
        if self._accepting and ready(self._listener, select.POLLIN):
            return True
        return any(connection.wire.busy() for connection in list(self.connections))

    def answers(self, number: int) -> bytes:
        """All that was answered on connection `number`."""
        return bytes(self.connections[number].answers)

    def __repr__(self) -> str:
        seen = [(c.number, c.role, len(c.requests), c.content, c.error) for c in self.connections]
        return f"<Peer {self.dialect} {self.address} {self.outcome} {self.failure!r} {seen}>"

    # The main connection.

    def _serve_main(self) -> None:
        outcome = "failed"
        try:
            outcome = self._main_requests(self._accept())
        except Refused as refusal:
            self.failure = str(refusal)
            if refusal.status is not None:
                outcome = "aborted" if refusal.status == OK else "failed"
                with contextlib.suppress(OSError):
                    self._answer(self.connections[0], refusal.status)
        except (OSError, RequestLost) as error:
            self.failure = str(error)
        finally:
            self._end_lanes()
            for connection in list(self.connections):
                connection.wire.close()
            with self._changed:
                self.outcome = outcome
                self._changed.notify_all()

    def _main_requests(self, connection: Connection) -> str:
        state = "established"
        if self.script.lanes == "refuse" and not self.script.lanes_served:
            self._listener.shutdown(socket.SHUT_RDWR)
        while True:
            command, headers, length = self._request(connection)
            if command == ABANDON:
                raise Refused("the sender abandoned the migration", OK)
            if command > _LAST_COMMAND[self.dialect]:
                status = ERROR if self.dialect == "v52" else None
                raise Refused(f"unknown command {command}", status)
            if command not in _MAIN[state]:
                raise Refused(f"command {command} while {state}")
            if command == START and int.from_bytes(headers[:2], "little"):
                raise Refused("a protocol version other than 0")
            if command == CONFIG:
                self._configure(connection, length)
            elif command == MEMORY:
                self._take_memory(connection, length)
            elif command == MEMORY_FD:
                self._files.take(connection.wire.sock, length)
            elif command == STATE:
                self._restore(connection, length)
            state = _MAIN[state][command]
            self._answer(connection, OK)
            if state in {"completed", "paused"}:
                if self._fault_bytes:
                    self._ask_for_pages(first=False)
                if self._files.fds:
                    assert self.memory is not None
                    self._files.read_into(self.memory)
                return state

    def _configure(self, connection: Connection, length: int) -> None:
        raw = self._document(connection, length)
        try:
            self.memory = GuestImage.of_config(raw)
        except (ValueError, LookupError, TypeError) as error:
            raise Refused(f"Config cannot be read: {error!r}") from None
        self.config = raw
        if self._files.fds:
            self._files.fit(self.memory)
        if self.script.lanes != "refuse" or self.script.lanes_served:
            self._start(self._accept_lanes)

    def _restore(self, connection: Connection, length: int) -> None:
        raw = self._document(connection, length)
        if self._fault_bytes:
            self.wait_for(lambda: any(c.role == _ROLE_FAULT for c in self.connections))
            self._ask_for_pages(first=True)
        lanes = [c for c in self.connections[1:] if not self._faults_on(c)]
        self.lost_at_state = [lane.number for lane in lanes if lane.unread_request()]
        self._end_lanes()
        for lane in lanes:
            lane.wire.close()
            if lane.error:
                raise Refused(f"connection {lane.number} failed: {lane.error}")
        try:
            json.loads(raw)["snapshots"]
        except (ValueError, LookupError, TypeError) as error:
            raise Refused(f"State cannot be read: {error!r}") from None
        self.state = raw

    def _document(self, connection: Connection, length: int) -> bytes:
        if length > _MAX_DOCUMENT:  # the real one would try to allocate it
            raise Refused(f"a document of {length} bytes")
        return connection.wire.receive(length)

    # Lanes.

    def _accept_lanes(self) -> None:
        script = self.script
        try:
            for accepted in itertools.count(1):
                connection = self._accept()
                if accepted > script.max_lanes:
                    connection.error = f"it is one more than {script.max_lanes}"
                    self._stopper.send(b"x")
                    return self._notify()
                if script.lanes == "serve" or accepted <= script.lanes_served:
                    self._open_lane(connection)
                    if script.lanes == "refuse" and accepted == script.lanes_served:
                        return self._listener.shutdown(socket.SHUT_RDWR)
                elif script.lanes == "close":
                    connection.wire.close()
                else:
                    connection.wire.resting = True
        except OSError:  # the listener was shut down: the migration is over
            return None

    def _open_lane(self, connection: Connection) -> None:
        """Find out what a new connection is for, and serve it; a stranger is dropped."""
        wire = connection.wire
        if self.dialect == "v53":
            wire.sock.settimeout(self.script.role_within)
            try:
                connection.role = int.from_bytes(wire.receive(2), "little")
            except (OSError, RequestLost):
                connection.role = 0
            wire.sock.settimeout(self._timeout)
        else:
            connection.role = _ROLE_MEMORY
        if connection.role == _ROLE_MEMORY:
            self._start(self._serve_lane, connection)
        elif connection.role == _ROLE_FAULT:  # dropped at State unless pages are asked for
            wire.resting = True
            self._notify()
        else:
            wire.close()

    def _serve_lane(self, connection: Connection) -> None:
        wire = connection.wire
        try:
            # As the real one: being told to stop is looked at before what lies in the socket.
            while wire.readable_before(self._stop, self._timeout):
                if not wire.sock.recv(1, socket.MSG_PEEK):
                    return
                command, _, length = self._request(connection)
                if command != MEMORY:
                    raise Refused(f"command {command} on a memory connection")
                self._take_memory(connection, length)
                self._answer(connection, OK)
        except (OSError, RequestLost, Refused) as error:
            connection.error = str(error)
        finally:
            wire.close()
            self._notify()

    def _take_memory(self, connection: Connection, length: int) -> None:
        memory, wire = self.memory, connection.wire
        assert memory is not None
        if length % 16:
            raise Refused(f"a table of {length} bytes: the real one dies", None)
        for gpa, size in struct.iter_unpack("<QQ", wire.receive(length)):
            if memory.mapping_of(gpa, size) is None:
                raise Refused(f"range {gpa:#x}, {size} bytes is outside of the guest's memory")
            for at in range(0, size, _PIECE):
                piece = wire.receive(min(_PIECE, size - at))
                with self._changed:
                    memory.write(gpa + at, piece)
                connection.content += len(piece)

    def _faults_on(self, connection: Connection) -> bool:
        return bool(self._fault_bytes) and connection.role == _ROLE_FAULT

    def _ask_for_pages(self, *, first: bool) -> None:
        assert self.memory is not None
        wire = next(c.wire for c in self.connections if self._faults_on(c))
        ask_for_pages(wire, self.memory, self._fault_bytes, first=first)

    # What both use.

    def _accept(self) -> Connection:
        self._accepting = True
        try:  # shutting down a unix listener does not end the wait of accept
            select.select([self._listener, self._stop], [], [], self._timeout)
            if ready(self._stop, select.POLLIN):
                raise OSError("the peer is stopped")
            sock, _ = self._listener.accept()
        finally:
            self._accepting = False
        with self._changed:
            connection = Connection(len(self.connections), Wire(sock, self._timeout))
            self.connections.append(connection)
            self._changed.notify_all()
        return connection

    def _request(self, connection: Connection) -> tuple[int, bytes, int]:
        command, headers, length = struct.unpack("<H6sQ", connection.wire.receive(16))
        with self._changed:
            connection.requests.append(command)
            connection.holding |= command == MEMORY and self._holds
            self.order.append((connection.number, command))
            self._changed.notify_all()
        if command == self.script.close_at:
            raise Refused(f"closed at command {command}", None)
        if command == self.script.error_at:
            if command == MEMORY:
                self._take_memory(connection, length)
            else:
                connection.wire.receive(length)
            raise Refused(f"Error to command {command}")
        if command == self.script.silent_at:
            connection.wire.resting = True
            select.select([self._stop], [], [])
            raise Refused(f"silent at command {command}", None)
        return command, headers, length

    def _answer(self, connection: Connection, status: int) -> None:
        connection.answer(status)
        self._notify()

    def _start(self, work: Callable[..., None], *arguments: Connection) -> None:
        thread = threading.Thread(target=work, args=arguments, name=f"peer {work.__name__}")
        thread.start()
        self._others.append(thread)

    def _end_lanes(self) -> None:
        """Tell the accepting thread and the lanes to stop; the main thread waits for them."""
        self._stopper.send(b"x")
        with contextlib.suppress(OSError):  # it was shut down before
            self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self.connections[1:]:
            if connection.role is None:  # the accepting thread may wait for its role
                connection.wire.stop()
        if threading.current_thread() is self._main:
            while self._others:
                self._others.pop().join(self._timeout)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
