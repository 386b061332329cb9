"""Requests on the wire before the first answer, and lanes that differ in speed."""

import asyncio
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

import aiomigrate
from aiomigrate import Dialect, SendOptions, StoredSource
from aiomigrate.transport import Address, Connection, connect
from tests.support.clock import VirtualClockLoop
from tests.support.image import Mapping
from tests.support.peer import MEMORY, Peer, Script
from tests.support.vms import MIB, file_bytes, store_vm

pytestmark = pytest.mark.usefixtures("no_leaks")

_CHUNK = 64 << 10


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mapping = Mapping(0, 0, 3 * MIB, "mem0", virtio_mem=False, file_offset=0)
    return store_vm(tmp_path_factory.mktemp("pipelining") / "vm", [mapping])


@pytest.fixture(autouse=True)
def history_is_forgotten(stored: Path) -> None:
    (stored / "aiomigrate.json").unlink(missing_ok=True)


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("connections", [1, 4])
async def test_requests_leave_before_the_first_answer(
    stored: Path, connections: int, dialect: Dialect
) -> None:
    options = SendOptions(connections=connections, dialect=dialect, chunk_bytes=_CHUNK)
    chunks = file_bytes(stored) // _CHUNK
    script = Script(hold_answers=True)
    with Peer(dialect=dialect.value, script=script) as peer:
        async with (
            StoredSource(stored) as source,
            aiomigrate.send(source, peer.address, options) as migration,
        ):
            await asyncio.to_thread(peer.wait_for_requests, MEMORY, chunks, 10)
            carriers = [c for c in peer.connections if MEMORY in c.requests]
            assert sum(c.unanswered for c in carriers) == peer.count(MEMORY) == chunks
            assert len(carriers) == connections
            # The gate: no State while a Memory waits for its answer.
            assert migration.progress.phase == aiomigrate.Phase.PRECOPY
            assert migration.progress.bytes_done == 0
            peer.release()
            report = await migration.result()
        assert await asyncio.to_thread(peer.finished) == "paused"
    assert report.bytes == chunks * _CHUNK
    assert peer.lost_at_state == []
    assert peer.memory is not None
    assert peer.memory.differences_in(stored) == []


@pytest.mark.asyncio(loop_factories=["virtual"])
@pytest.mark.parametrize("connections", [1, 2])
async def test_no_more_is_on_the_wire_than_the_window_has_room_for(
    clock: VirtualClockLoop, stored: Path, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiomigrate.window._INITIAL_BYTES", 8 * _CHUNK)
    clock.patience = 0.2
    options = SendOptions(connections=connections, chunk_bytes=_CHUNK)
    with Peer(script=Script(hold_answers=True)) as peer:
        clock.watch(peer.busy)
        async with (
            StoredSource(stored) as source,
            aiomigrate.send(source, peer.address, options) as migration,
        ):
            # Time passes only when neither side has anything left to do.
            await asyncio.sleep(5)
            assert [c.unanswered for c in peer.connections[-connections:]] == [8] * connections
            peer.release()
            await migration.result()
        assert await asyncio.to_thread(peer.finished) == "paused"
    assert peer.memory is not None
    assert peer.memory.differences_in(stored) == []


class _Metered:
    """A destination on the running loop that reads each lane at a rate of its own, in the loop's
    time. It keeps nothing; it counts content by lane.
    """

    def __init__(self, rates: list[int]) -> None:
        self._rates = rates
        self._tasks = asyncio.TaskGroup()
        self._listener = socket.create_server(("127.0.0.1", 0))
        # What the kernel takes beyond what was read is not this lane's speed: keep it small.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        self._listener.setblocking(False)
        self.address = f"tcp:127.0.0.1:{self._listener.getsockname()[1]}"
        self.content = [0] * len(rates)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._tasks.create_task(self._serve())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._tasks.__aexit__(kind, error, trace)
        self._listener.close()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        main, _ = await loop.sock_accept(self._listener)
        with main:
            while True:
                command, length = struct.unpack("<H6xQ", await _exactly(main, 16))
                await _exactly(main, length)
                assert command != MEMORY, "memory belongs on the lanes"
                await loop.sock_sendall(main, struct.pack("<H6xQ", 1, 0))
                if command == 2:
                    for number, rate in enumerate(self._rates):
                        lane, _ = await loop.sock_accept(self._listener)
                        self._tasks.create_task(self._serve_lane(number, lane, rate))
                elif command == 8:
                    return

    async def _serve_lane(self, number: int, lane: socket.socket, rate: int) -> None:
        loop = asyncio.get_running_loop()
        free_at = loop.time()
        with lane:
            assert await _exactly(lane, 2) == b"\1\0"
            while header := await loop.sock_recv(lane, 16):
                header += await _exactly(lane, 16 - len(header))
                (table,) = struct.unpack("<8xQ", header)
                ranges = struct.iter_unpack("<QQ", await _exactly(lane, table))
                left = nbytes = sum(length for _, length in ranges)
                free_at = max(free_at, loop.time())
                while left:
                    part = min(left, 64 << 10)
                    free_at += part / rate
                    await asyncio.sleep(free_at - loop.time())
                    await _exactly(lane, part)
                    left -= part
                self.content[number] += nbytes
                await loop.sock_sendall(lane, struct.pack("<H6xQ", 1, 0))


async def _exactly(sock: socket.socket, length: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < length:
        piece = await loop.sock_recv(sock, length - len(data))
        assert piece, "the sender has gone"
        data += piece
    return data


async def _connect_narrowly(address: Address, **options: Any) -> Connection:
    """As the engine does; but a socket's buffer, some MiB on loopback, is a lane's share here."""
    connection = await connect(address, **options)
    connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
    return connection


@pytest.mark.asyncio(loop_factories=["virtual"])
async def test_a_slow_lane_takes_its_share_and_no_more(
    clock: VirtualClockLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiomigrate.opening.connect", _connect_narrowly)
    clock.patience = 0.002  # everything is on this loop: there is no thread to wait for
    mapping = Mapping(0, 0, 48 * MIB, "mem0", virtio_mem=False, file_offset=0)
    directory = store_vm(tmp_path / "vm", [mapping])
    total = file_bytes(directory)
    fast, slow = 8 * MIB, 8 * MIB // 10
    rates = [fast, slow, fast, fast]
    async with _Metered(rates) as peer, StoredSource(directory) as source:
        options = SendOptions(connections=4, chunk_bytes=128 << 10)
        async with aiomigrate.send(source, peer.address, options) as migration:
            report = await migration.result()
    assert sum(peer.content) == report.bytes == total
    # Lanes connect all at once, and are numbered as they are accepted: that is `rates`' order.
    share = total * slow / sum(rates)
    assert share / 2 <= peer.content[1] <= 1.5 * share
    assert report.duration_s <= 1.25 * total / sum(rates)
