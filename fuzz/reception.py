"""The target that is the whole receive side: sockets in, a VM or a documented error out.

An input is a list of *moves*: bytes that one of three connections writes, in turn. All inputs are
played on one event loop whose clock jumps when nothing else can happen, and over socket pairs,
where what was written is there at once: a reception takes about a millisecond, and a wait for ever
ends at `_HANGS_S`. The VM that arrives is a piece of memory that all of them share.
"""

import asyncio
import mmap
import os
import socket
import struct
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Self

from aiomigrate import (
    GuestMemory,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    Owner,
    Phase,
    ReceiveOptions,
    Report,
    VmConfig,
)
from aiomigrate.protocol import RESPONSE_BYTES, Command, Limits, Response, Status, Verdict
from aiomigrate.receiving import Receiving
from aiomigrate.transport import Connection, Listener, TcpAddress
from fuzz.parsers import Broken
from tests.support.clock import VirtualClockLoop

__all__ = ["CONNECTIONS", "Move", "Player", "decode_moves", "encode_moves", "receive"]

CONNECTIONS = 3
_RAM_BYTES = 1 << 20
"""The largest guest that is taken: more is an error of the embedder's, as a full host is."""
_HANGS_S = 100_000.0
"""No reception lasts so long, with all its deadlines one after the other (virtual seconds)."""
_HEAD = struct.Struct("<BH")
_OWNER = int(Command.OWNER).to_bytes(2, "little")
_CLEAR, _REST, _ENDS, _BREAKS = 3, 4, 8, 16
_OPTIONS = ReceiveOptions(
    limits=Limits(max_connections=2, max_strangers=2, max_config_bytes=1 << 15)
)


@dataclass(frozen=True, slots=True)
class Move:
    """What one connection does: it writes `data`, and perhaps ends."""

    connection: int
    data: bytes = b""
    rest: bool = False
    """Wait before until nothing else can happen."""
    ends: bool = False
    """End the stream afterwards, but read on."""
    breaks: bool = False
    """Close it afterwards, unread answers and all."""


def encode_moves(moves: list[Move]) -> bytes:
    """Moves as an input: a byte of connection and flags, a length of 16 bits, the bytes."""
    return b"".join(
        _HEAD.pack(
            move.connection | move.rest * _REST | move.ends * _ENDS | move.breaks * _BREAKS,
            len(move.data),
        )
        + move.data
        for move in moves
    )


def decode_moves(data: bytes) -> list[Move]:
    """Any input as moves."""
    moves = []
    at = 0
    while at + _HEAD.size <= len(data):
        flags, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        moves.append(
            Move(
                (flags & _CLEAR) % CONNECTIONS,
                data[at : at + length],
                rest=bool(flags & _REST),
                ends=bool(flags & _ENDS),
                breaks=bool(flags & _BREAKS),
            )
        )
        at += length
    return moves


class _Pairs(Listener):
    """A listener that accepts the far ends of socket pairs, as if from one TCP address."""

    def __init__(self, ends: list[socket.socket]) -> None:
        self.address = TcpAddress("127.0.0.1", 6000)
        self.closed = False
        self._ends = ends
        self._more: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    async def accept(self) -> Connection:
        if not self._ends:
            return await self._more
        end = self._ends.pop(0)
        return Connection(end, f"tcp:127.0.0.1:{end.fileno()}", "127.0.0.1")

    def close(self) -> None:
        self.closed = True
        self._more.cancel()
        for end in self._ends:
            end.close()


class _Landing:
    """A VMM that keeps the memory of its VM in one place, and nothing else of it."""

    _ram = mmap.mmap(-1, _RAM_BYTES)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.memory: GuestMemory | None = None

    async def configure(self, config: VmConfig, source: str) -> GuestMemory:
        self.calls.append("configure")
        if config.memory_map.total_bytes > _RAM_BYTES:
            raise MemoryError("no room for this guest")
        buffers = {}
        at = 0
        for mapping in config.memory_map.mappings:
            buffers[mapping.slot] = memoryview(self._ram)[at : at + mapping.size]
            at += mapping.size
        self.memory = GuestMemory.over_buffers(config.memory_map, buffers)
        return self.memory

    async def restore(self, state: bytes) -> None:
        self.calls.append("restore")

    async def resume(self) -> None:
        self.calls.append("resume")

    async def keep_paused(self) -> None:
        self.calls.append("keep_paused")

    async def confirmed(self) -> None:
        self.calls.append("confirmed")

    async def discard(self, reason: BaseException) -> None:
        self.calls.append("discard")
        self.close()

    def close(self) -> None:
        """Raises GuestMemoryBusyError while somebody may still touch the memory: a finding."""
        if self.memory is not None:
            self.memory.close()


class Player:
    """Plays one input after another on one loop. A context manager."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=lambda: VirtualClockLoop(patience=0.0))
        self._runner.get_loop()
        self._descriptors = _descriptors()

    def play(self, data: bytes) -> None:
        """One reception; raises whatever is a finding."""
        self._runner.run(_play(decode_moves(data)))
        if _descriptors() != self._descriptors:
            raise Broken("a descriptor was left open")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.close()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def _play(moves: list[Move]) -> None:
    landing = _Landing()
    near, far = _pairs(1 + max((move.connection for move in moves), default=0))
    listener = _Pairs(far)
    receiving = Receiving(landing, listener, _OPTIONS)
    task = asyncio.create_task(receiving.run())
    answers = [bytearray() for _ in near]
    try:
        async with asyncio.timeout(_HANGS_S):
            for move in moves:
                if task.done():
                    break
                await _make(move, near[move.connection])
            await _rest()
            for sock, answer in zip(near, answers, strict=True):
                _drain(sock, answer)
                sock.close()
            if receiving.tracker.phase is Phase.WAITING:
                await _rest()
                task.cancel()
            await asyncio.wait([task])
        if not listener.closed:
            raise Broken("it listens on")
    finally:
        listener.close()
        for sock in near:
            sock.close()
    try:
        _judge(task, landing)
        for number, answer in enumerate(answers):
            _check_answers(answer)
            asked = b"".join(move.data for move in moves if move.connection == number)
            _check_verdict(asked, answer, landing)
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            raise Broken(f"tasks are left: {left}")
    finally:
        landing.close()


def _pairs(count: int) -> tuple[list[socket.socket], list[socket.socket]]:
    pairs = [
        socket.socketpair(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(count)
    ]
    return [near for near, _ in pairs], [far for _, far in pairs]


async def _rest() -> None:
    """Until nothing can happen any more but by a deadline: the clock is virtual."""
    await asyncio.sleep(0.001)


async def _make(move: Move, sock: socket.socket) -> None:
    if move.rest:
        await _rest()
    if sock.fileno() < 0:
        return
    try:
        if move.data and sock.send(move.data) < len(move.data):
            await _rest()
        if move.ends:
            sock.shutdown(socket.SHUT_WR)
    except OSError:  # it was closed at the other end, or nobody reads there
        await asyncio.sleep(0)
    if move.breaks:
        sock.close()


def _drain(sock: socket.socket, into: bytearray) -> None:
    if sock.fileno() < 0:
        return
    try:
        into += sock.recv(1 << 16)
    except OSError:
        return


def _judge(task: asyncio.Task[Report], landing: _Landing) -> None:
    """The outcome is a report or an error of ours, and the calls into the VMM are in order."""
    owned = landing.calls.count("resume") + landing.calls.count("keep_paused")
    error = task.exception()
    if error is None:
        report = task.result()
        expected = ["resume" if report.running else "keep_paused"]
        if landing.calls[:3] != ["configure", "restore", *expected] or "discard" in landing.calls:
            raise Broken(f"a report after {landing.calls}")
    elif not isinstance(error, MigrationError):
        raise error
    elif not isinstance(error, MigrationFailed | MigrationCancelled) or owned:
        raise Broken(f"{error!r} after {landing.calls}") from error
    elif error.what.startswith("destination: "):  # what no code expected
        raise Broken(error.what) from error
    elif error.owner is not Owner.SOURCE:
        raise Broken(f"{error.owner} owns the VM after {landing.calls}") from error
    elif landing.calls.count("discard") != ("configure" in landing.calls):
        raise Broken(f"{error!r} after {landing.calls}") from error


def _check_answers(data: bytearray) -> None:
    """What the peer read: whole responses, nothing behind an Error."""
    statuses = [status for status, _, _ in struct.iter_unpack("<H6sQ", data)]
    if any(status not in (1, 2) for status in statuses) or 2 in statuses[:-1]:
        raise Broken(f"answered {bytes(data).hex(' ', 8)}")


def _check_verdict(asked: bytes, data: bytearray, landing: _Landing) -> None:
    """What a query was told is what has happened."""
    if not asked.startswith(_OWNER) or len(data) < RESPONSE_BYTES:
        return
    response = Response.decode(data[:RESPONSE_BYTES])
    owned = "resume" in landing.calls or "keep_paused" in landing.calls
    told = response.padding[0]
    if response.status == Status.OK and told != (Verdict.COMMITTED if owned else Verdict.ABORTED):
        raise Broken(f"a query was told {told} after {landing.calls}")


@cache
def _player() -> Player:
    return Player()


def receive(data: bytes) -> None:
    """One reception, on a loop that stays."""
    _player().play(data)
