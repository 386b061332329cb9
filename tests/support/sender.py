"""Plays a recorded migration over real sockets, as the real sender played it: naive, blocking, in
threads.

Each connection sends a request, waits for its answer, sends the next. Lanes are opened after the
answer to Config. Across connections the order of the recording holds: a request that was sent after
the answer to another one waits for that answer again (a later iteration overwrites pages of an
earlier one on another lane). A `Cut`, an Error answer, or the end of a recording in the middle of a
request ends the whole migration, as when the sender's process dies. It shares no code with
aiomigrate.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from tests.support.captures import CONFIG, Capture, Cut, Message, Stream
from tests.support.sockets import RequestLost, Wire, connect

__all__ = ["CaptureSender", "Ending", "Sent"]

_OK = 1
_ROLE_FAULT = 2
Ending = Literal["eof", "reset", "stall"]


@dataclass
class Sent:
    """What came of it. `answers` and `ends` are by connection; a connection that was not opened has
    b"" and None.

    `ends[k]` is how the receiver ended connection k, as far as it was awaited: "eof", "reset" or
    "timeout". `problem` is None if every request was answered with Ok, else why the sender gave up.
    """

    answers: list[bytes]
    ends: list[str | None]
    problem: str | None = None


@dataclass
class _Player:
    """One connection while it is played."""

    stream: Stream
    wire: Wire
    answers: bytearray = field(default_factory=bytearray)
    end: str | None = None
    opened: bool = False  # its role is sent, if it has one
    played: bool = False  # all of it is sent and answered
    broken: bool = False  # it was cut
    waits_for: Callable[[], bool] | None = None  # what it waits for in other threads


class _GivenUp(Exception):
    """The migration ends here."""


class CaptureSender:
    """Sends `capture` to `address` in threads; a context manager that leaves nothing behind.

    with CaptureSender(load("four"), "tcp:127.0.0.1:6000") as sender: sent = sender.result()

    With `cut`, only that much of that connection is sent, and it is ended by `ending`: "eof" (the
    write side is closed, answers are still read), "reset", or "stall" (nothing is sent any more on
    any connection until the receiver ends it).
    """

    def __init__(
        self,
        capture: Capture,
        address: str,
        *,
        cut: Cut | None = None,
        ending: Ending = "eof",
        timeout: float = 20.0,
    ) -> None:
        self.capture = capture
        self._address = address
        self._cut = cut
        self._ending = ending
        self._timeout = timeout
        self._changed = threading.Condition()
        self._players: list[_Player] = []
        self._threads: list[threading.Thread] = []
        self._problem: str | None = None
        self._done = False
        self._main = threading.Thread(target=self._run, name="capture sender")

    def __enter__(self) -> Self:
        self._main.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_up("stopped by the test")
        for player in list(self._players):
            player.wire.stop()
        self._main.join(self._timeout)
        assert not self._main.is_alive(), "the capture sender's thread is still there"

    def result(self, within: float = 60.0) -> Sent:
        """Wait until every connection has ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._done, within), f"not within {within} s"
        sent = Sent([b""] * len(self.capture.streams), [None] * len(self.capture.streams))
        sent.problem = self._problem
        for player in self._players:
            sent.answers[player.stream.number] = bytes(player.answers)
            sent.ends[player.stream.number] = player.end
        return sent

    def wait_until_broken_off(self, within: float = 30.0) -> None:
        """Wait until it has given up: with `cut`, until all that it sends is sent."""
        with self._changed:
            broken_off = self._changed.wait_for(lambda: self._problem is not None, within)
            assert broken_off, f"not within {within} s"

    def busy(self) -> bool:
        """Whether the sender can go on by itself (for VirtualClockLoop.watch)."""
        if not self._players:
            return not self._done
        return any(self._is_busy(player) for player in list(self._players))

    def _is_busy(self, player: _Player) -> bool:
        waits_for = player.waits_for
        return player.wire.busy() if waits_for is None else waits_for()

    # Connections.

    def _run(self) -> None:
        """The main connection; it opens the lanes, and waits for their threads."""
        try:
            self._play(self._open(self.capture.streams[0]))
        except OSError as error:
            self._give_up(f"connection 0: {error}")
        finally:
            for thread in self._threads:
                thread.join(self._timeout)
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _open(self, stream: Stream) -> _Player:
        sock = connect(self._address, self._timeout)
        player = _Player(stream, Wire(sock, self._timeout))
        with self._changed:
            self._players.append(player)
        return player

    def _open_lanes(self, main: _Player) -> None:
        for stream in self.capture.streams[1:]:
            try:
                player = self._open(stream)
            except OSError as error:
                raise _GivenUp(f"connection {stream.number}: {error}") from None
            thread = threading.Thread(target=self._play, args=(player,), name="capture lane")
            self._threads.append(thread)
            thread.start()
        # The real sender writes the roles before it goes on.
        self._wait(main, lambda: all(lane.opened for lane in self._players[1:]))

    def _play(self, player: _Player) -> None:
        stream = player.stream
        # What a fault connection carries after its role answers questions: nobody asks here.
        messages = stream.messages[:1] if stream.role == _ROLE_FAULT else stream.messages
        try:
            if not messages or messages[0].command is not None:
                self._set(player, opened=True)
            for message in messages:
                self._send(player, message)
                if message.command is None:
                    self._set(player, opened=True)
                    continue
                self._take_answer(player, message.command)
                if stream.number == 0 and message.command == CONFIG:
                    self._open_lanes(player)
            self._set(player, played=True)
            # Connections end together, when all are through.
            self._wait(player, lambda: all(other.played for other in self._players))
        except _GivenUp as reason:
            self._give_up(str(reason))
        except (OSError, RequestLost) as error:
            self._give_up(f"connection {stream.number}: {error}")
        finally:
            self._finish(player)

    def _send(self, player: _Player, message: Message) -> None:
        stream = player.stream
        needed = self._answers_before(stream, message)
        self._wait(
            player,
            lambda: all(len(p.answers) >= needed.get(p.stream.number, 0) for p in self._players),
        )
        limit = len(stream.data)
        if self._cut is not None and self._cut.connection == stream.number:
            limit = self._cut.offset
        player.wire.send(memoryview(stream.data)[message.start : min(message.end, limit)])
        if limit < message.end:
            player.broken = True
            raise _GivenUp(f"connection {stream.number}: cut after {limit} bytes")

    def _take_answer(self, player: _Player, command: int) -> None:
        answer = player.wire.receive(16)
        with self._changed:
            player.answers += answer
            self._changed.notify_all()
        if int.from_bytes(answer[:2], "little") != _OK:
            raise _GivenUp(f"connection {player.stream.number}: Error to command {command}")

    def _answers_before(self, stream: Stream, message: Message) -> dict[int, int]:
        """Bytes of answers, by connection, that the real sender had read when it sent `message`."""
        if message.command is None:
            return {}
        moment = stream.sent_at(message.start)
        needed = {}
        for other in self.capture.streams:
            if other is not stream and other.role != _ROLE_FAULT:
                times = [other.answered_at(index) for index in range(len(other.requests))]
                needed[other.number] = 16 * sum(at is not None and at < moment for at in times)
        return needed

    def _finish(self, player: _Player) -> None:
        """End the connection, and take what the receiver still answers."""
        wire = player.wire
        if player.broken and self._ending == "reset":
            wire.close(reset=True)
            return
        if self._problem is None or self._ending != "stall":
            wire.end_writing()
        rest, end = wire.receive_rest()
        with self._changed:
            player.answers += rest
            player.end = end
        wire.close()

    # Between threads.

    def _set(self, player: _Player, *, opened: bool = False, played: bool = False) -> None:
        with self._changed:
            player.opened |= opened
            player.played |= played
            self._changed.notify_all()

    def _wait(self, player: _Player, condition: Callable[[], bool]) -> None:
        """Wait until `condition()`; _GivenUp if the migration ends before."""

        def over() -> bool:
            return condition() or self._problem is not None

        with self._changed:
            player.waits_for = over
            try:
                in_time = self._changed.wait_for(over, self._timeout)
                if not (in_time and condition()):
                    raise _GivenUp(f"connection {player.stream.number}: waited in vain")
            finally:
                player.waits_for = None

    def _give_up(self, reason: str) -> None:
        """The first reason counts. All connections end, as those of a process that dies."""
        with self._changed:
            if self._problem is not None:
                return
            self._problem = reason
            self._changed.notify_all()
        if self._ending != "stall":
            for player in list(self._players):
                if not (player.broken and self._ending == "reset"):
                    player.wire.end_writing()
