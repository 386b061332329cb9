"""Pages on demand: each is written once, whoever asks; the fault connection and what it refuses."""

import asyncio
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aiomigrate import StoredVmError
from aiomigrate.executor import JobExecutor
from aiomigrate.memory.blocks import BLOCK_BYTES, Block, FilePart, new_buffer
from aiomigrate.memory.errors import RangeError
from aiomigrate.memory.stored import StoredVm
from aiomigrate.memory.storing import StoredVmWriter
from aiomigrate.protocol import RemoteProtocolError
from aiomigrate.serving import PageServer
from aiomigrate.transport import EndOfStream
from tests.engine.engine_pages import (
    HIGH,
    MAPPINGS,
    Wire,
    Writes,
    held,
    memory_at,
    page_fault,
    stored_at,
)
from tests.support.image import PAGE
from tests.support.turns import turns
from tests.support.vms import MIB, store_vm

pytestmark = pytest.mark.usefixtures("no_leaks")
GIB = 1 << 30


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return store_vm(tmp_path / "vm", MAPPINGS)


@pytest.fixture
def vm(stored: Path) -> Iterator[StoredVm]:
    with StoredVm.open(stored) as vm:
        yield vm


@pytest.fixture
def fds(no_leaks: None) -> Iterator[dict[int, int]]:
    made = {mapping.slot: os.memfd_create(f"slot-{mapping.slot}") for mapping in MAPPINGS}
    for mapping in MAPPINGS:
        os.ftruncate(made[mapping.slot], mapping.file_offset + mapping.size)
    yield made
    for fd in made.values():
        os.close(fd)


@pytest.fixture
async def server(vm: StoredVm, fds: dict[int, int]) -> AsyncIterator[PageServer]:
    with JobExecutor() as executor:
        yield PageServer(vm, fds, executor)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


async def test_a_page_that_is_asked_for_is_there_and_no_other(
    server: PageServer, fds: dict[int, int], stored: Path
) -> None:
    await server.serve(HIGH + 9 * PAGE, PAGE)
    assert memory_at(fds, HIGH + 9 * PAGE, PAGE) == stored_at(stored, HIGH + 9 * PAGE, PAGE)
    await server.serve(MIB + PAGE, PAGE)  # a hole; it must be there to be mapped
    assert memory_at(fds, MIB + PAGE, PAGE) == bytes(PAGE)
    assert held(fds) == server.served_bytes == 2 * PAGE
    assert server.total_bytes == 6 * MIB + PAGE


async def test_a_huge_page_over_several_blocks(
    server: PageServer, fds: dict[int, int], stored: Path
) -> None:
    await server.serve(MIB - PAGE, 2 * MIB + 2 * PAGE)
    assert memory_at(fds, 0, 5 * MIB) == (
        bytes(MIB - PAGE)
        + stored_at(stored, MIB - PAGE, 2 * MIB + 2 * PAGE)
        + bytes(2 * MIB - PAGE)
    )
    assert held(fds) == 2 * MIB + 2 * PAGE


async def test_the_background_leaves_holes(
    server: PageServer, fds: dict[int, int], stored: Path, writes: Writes
) -> None:
    await server.fill()
    for mapping in MAPPINGS:
        wanted = stored_at(stored, mapping.gpa, mapping.size)
        assert memory_at(fds, mapping.gpa, mapping.size) == wanted
    # Blocks 1 and 4 are holes, and every other page of block 2; a page is behind the high block.
    assert writes.read == [0, 2, 3, 0]
    assert held(fds) == server.served_bytes == MIB + MIB // 2 + MIB + MIB


async def test_each_page_is_written_once_whoever_asks(
    server: PageServer, fds: dict[int, int], stored: Path, writes: Writes
) -> None:
    async def ask(start: int) -> None:
        for at in range(start, 5 * MIB, 64 * PAGE):
            await server.serve(at, 3 * PAGE if at + 3 * PAGE <= 5 * MIB else PAGE)

    async with asyncio.TaskGroup() as group:
        group.create_task(server.fill())
        for start in range(0, 16 * PAGE, PAGE):
            group.create_task(ask(start))
    assert memory_at(fds, 0, 5 * MIB) == stored_at(stored, 0, 5 * MIB)
    assert set(writes.pages.values()) == {1}
    assert held(fds) == server.served_bytes == len(writes.pages) * PAGE


async def test_what_the_guest_has_is_never_written_again(
    server: PageServer, fds: dict[int, int]
) -> None:
    await server.serve(3 * MIB, PAGE)
    os.pwrite(fds[4], b"the guest's own", MAPPINGS[0].file_offset + 3 * MIB)
    await server.serve(3 * MIB, MIB)
    await server.fill()
    assert memory_at(fds, 3 * MIB, 15) == b"the guest's own"


async def test_no_block_is_begun_in_the_background_while_somebody_waits(
    server: PageServer, writes: Writes
) -> None:
    writes.stops_at = 3
    waiting = asyncio.create_task(server.serve(3 * MIB, PAGE))
    await asyncio.to_thread(writes.started.wait, 20)
    background = asyncio.create_task(server.fill())
    await server._executor.run(server._parts[0].source.find, 0)  # as it does first
    await turns()
    assert writes.read == [3]
    writes.goes_on.set()
    await waiting
    await background
    assert writes.read == [3, 0, 2, 3, 0]


async def test_who_asks_for_a_page_that_is_on_its_way_waits_for_it(
    server: PageServer, fds: dict[int, int], writes: Writes
) -> None:
    writes.stops_at = 3
    background = asyncio.create_task(server.fill())
    await asyncio.to_thread(writes.started.wait, 20)
    asking = asyncio.create_task(server.serve(3 * MIB, PAGE))
    await turns()
    assert not asking.done()
    writes.goes_on.set()
    await asking
    assert any(memory_at(fds, 3 * MIB, PAGE))
    await background
    assert set(writes.pages.values()) == {1}


async def test_what_a_cancelled_request_wrote_is_known(server: PageServer, writes: Writes) -> None:
    writes.stops_at = 3
    asking = asyncio.create_task(server.serve(3 * MIB, PAGE))
    await asyncio.to_thread(writes.started.wait, 20)
    asking.cancel()
    await turns()
    assert not asking.done()
    writes.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await server.serve(3 * MIB, PAGE)
    await server.fill()
    assert set(writes.pages.values()) == {1}


async def test_nothing_is_written_again_after_a_write_that_failed(
    server: PageServer, writes: Writes, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pages = FilePart.write_pages

    def failing(part: FilePart, index: int, first: int, last: int, content: Block) -> None:
        if index == 2 and first >= 8:
            raise OSError(errno.ENOSPC, "full")
        write_pages(part, index, first, last, content)

    with monkeypatch.context() as patch:
        patch.setattr(FilePart, "write_pages", failing)
        with pytest.raises(OSError, match="full"):
            await server.fill()
    assert [page for _, block, page in writes.pages if block == 2] == [1, 3, 5, 7]
    with pytest.raises(StoredVmError, match="an earlier page could not be served"):
        await server.serve(2 * MIB, BLOCK_BYTES)
    with pytest.raises(StoredVmError, match="an earlier page could not be served"):
        await server.fill()
    await server.serve(0, PAGE)  # which the guest has
    assert set(writes.pages.values()) == {1}


BAD_RANGES = [
    (0, 100),
    (100, PAGE),
    (5 * MIB, PAGE),
    (5 * MIB - PAGE, 2 * PAGE),
    (HIGH + MIB, 2 * PAGE),
    (HIGH - PAGE, 2 * PAGE),
    (2**64 - PAGE, PAGE),
    (0, GIB),
]


@pytest.mark.parametrize(("gpa", "length"), BAD_RANGES)
async def test_ranges_that_cannot_be_meant(
    server: PageServer, fds: dict[int, int], gpa: int, length: int
) -> None:
    with pytest.raises(RangeError) as caught:
        await server.serve(gpa, length)
    assert (caught.value.gpa, caught.value.length) == (gpa, length)
    assert held(fds) == 0


OK = struct.pack("<H14x", 1)
ERROR = struct.pack("<H14x", 2)
ABANDON = struct.pack("<H14x", 6)


@pytest.fixture
async def wire(server: PageServer) -> AsyncIterator[Wire]:
    wire = Wire(server)
    yield wire
    wire.serving.cancel()
    await asyncio.wait([wire.serving])
    wire.connection.close()
    wire.sock.close()


async def test_faults_are_answered_until_the_peer_has_all(
    wire: Wire, fds: dict[int, int], stored: Path
) -> None:
    for gpa, length in ((0, PAGE), (HIGH + MIB, PAGE), (2 * MIB, 2 * MIB)):
        assert await wire.ask(page_fault(gpa, length)) == OK
        assert memory_at(fds, gpa, length) == stored_at(stored, gpa, length)
    wire.sock.shutdown(socket.SHUT_WR)
    await wire.serving


async def test_abandon_is_answered(wire: Wire) -> None:
    assert await wire.ask(ABANDON) == OK
    await wire.serving


@pytest.mark.parametrize(("gpa", "length"), BAD_RANGES)
async def test_a_bad_range_is_answered_with_error_and_named(
    wire: Wire, fds: dict[int, int], gpa: int, length: int
) -> None:
    assert await wire.ask(page_fault(gpa, length)) == ERROR
    with pytest.raises(RangeError, match=f"gpa {gpa:#x}, {length} bytes"):
        await wire.serving
    assert held(fds) == 0


@pytest.mark.parametrize("length", [0, GIB + 1, GIB + PAGE, 2**64 - 1])
async def test_a_length_that_cannot_be_meant(wire: Wire, fds: dict[int, int], length: int) -> None:
    assert await wire.ask(page_fault(0, length)) == ERROR
    with pytest.raises(RemoteProtocolError, match=f"{length}"):
        await wire.serving
    assert held(fds) == 0


@pytest.mark.parametrize("sent", [1, 16, 17, 31])
async def test_a_request_that_is_cut(wire: Wire, sent: int) -> None:
    await asyncio.get_running_loop().sock_sendall(wire.sock, page_fault(0, PAGE)[:sent])
    wire.sock.shutdown(socket.SHUT_WR)
    with pytest.raises((EndOfStream, RemoteProtocolError)):
        await wire.serving


async def test_memory_that_cannot_be_read(
    wire: Wire, fds: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(part: FilePart, index: int, first: int, last: int, buffer: Block) -> Block:
        raise OSError(5, "disk")

    monkeypatch.setattr(FilePart, "read_pages", failing)
    assert await wire.ask(page_fault(0, PAGE)) == ERROR
    with pytest.raises(OSError, match="disk"):
        await wire.serving


@pytest.fixture
def packed(tmp_path: Path, stored: Path) -> Path:
    """The same VM with its memory in frames."""
    path = tmp_path / "packed"
    with StoredVm.open(stored) as vm:
        writer = StoredVmWriter(path)
        writer.prepare(vm.config, compressed=True)
        for mapping in vm.config.memory_map.mappings:
            source, target = vm.memory(mapping).source, writer.target(mapping)
            for index in source.find(0)[0]:
                target.append(index, target.write(index, source.read(index, new_buffer())))
            writer.finish(mapping, "xxh3-128-1m:00")
        writer.write_state(vm.state)
        writer.commit(False, "unix:/x")
        writer.confirm()
        writer.close()
    return path


async def test_compressed_memory_comes_by_frames(
    packed: Path, fds: dict[int, int], stored: Path
) -> None:
    vm = await asyncio.to_thread(StoredVm.open, packed)
    try:
        with JobExecutor() as executor:
            server = PageServer(vm, fds, executor)
            await server.serve(2 * MIB, PAGE)  # a page of zeros
            # What came along is not zero; what was asked for is there, too.
            assert held(fds) == server.served_bytes == MIB // 2 + PAGE
            await server.fill()
        for mapping in MAPPINGS:
            wanted = stored_at(stored, mapping.gpa, mapping.size)
            assert memory_at(fds, mapping.gpa, mapping.size) == wanted
        assert held(fds) == MIB + MIB // 2 + PAGE + MIB + MIB
    finally:
        vm.close()


async def test_a_damaged_frame_is_no_page(packed: Path, fds: dict[int, int]) -> None:
    with (packed / "memory-4.zst").open("r+b") as file:
        file.seek(MIB // 2)
        file.write(bytes(100))
    vm = await asyncio.to_thread(StoredVm.open, packed)
    try:
        with JobExecutor() as executor:
            server = PageServer(vm, fds, executor)
            with pytest.raises(StoredVmError, match=r"memory-4.*frame 0 is damaged"):
                await server.serve(0, PAGE)
            with pytest.raises(StoredVmError, match="frame 0 is damaged"):
                await server.fill()
        assert held(fds) == 0
    finally:
        vm.close()
