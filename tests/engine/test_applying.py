"""Memory requests at their destination: what is in the files when a request has been answered."""

import asyncio
import errno
import os
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import aiomigrate
from aiomigrate import GuestMemory, MigrationFailed, StoredDestination
from aiomigrate.applying import Applier
from aiomigrate.executor import JobExecutor
from aiomigrate.memory.ranges import RANGE, Table
from aiomigrate.memory.spool import IN_MEMORY, TableSpool
from aiomigrate.transport import Pace
from tests.engine.engine_wire import ERROR, MEMORY, OK, Hand
from tests.support.hostile import ROLE_MEMORY
from tests.support.image import PAGE, Mapping
from tests.support.vms import MIB, Landing

pytestmark = pytest.mark.usefixtures("no_leaks")

RAM = Mapping(0, 0, 8 * MIB, "mem0", virtio_mem=False, file_offset=0)


@asynccontextmanager
async def storing(into: Path, ram: Mapping = RAM) -> AsyncIterator[tuple[Hand, Hand, Path]]:
    """The main connection of a migration into a directory, a lane, and the file of its memory."""
    async with (
        StoredDestination(into) as destination,
        aiomigrate.receive(destination, "tcp:127.0.0.1:0") as reception,
    ):
        address = str(reception.address)
        async with Hand(address) as main:
            await main.begin(ram)
            (file,) = into.parent.glob(f".{into.name}.partial-*/memory-0")
            async with Hand(address) as lane:
                lane.write(ROLE_MEMORY)
                yield main, lane, file
            await main.end()
        await reception.result()


def pieces(file: Path) -> list[tuple[int, int]]:
    """Where a file holds data: (begin, end)."""
    found: list[tuple[int, int]] = []
    with file.open("rb") as opened:
        at = 0
        while True:
            try:
                begin = os.lseek(opened.fileno(), at, os.SEEK_DATA)
            except OSError:
                return found
            at = os.lseek(opened.fileno(), begin, os.SEEK_HOLE)
            found.append((begin, at))


async def test_a_request_is_in_the_file_when_it_is_answered_and_its_zeros_are_holes(
    tmp_path: Path,
) -> None:
    content = b"a" * MIB + bytes(2 * MIB) + b"b" * PAGE + bytes(MIB - PAGE)
    async with storing(tmp_path / "vm") as (main, _, file):
        assert await main.memory(MIB, content) == OK
        assert file.read_bytes() == bytes(MIB) + content + bytes(3 * MIB)
        assert pieces(file) == [(MIB, 2 * MIB), (4 * MIB, 4 * MIB + PAGE)]


async def test_what_comes_later_stays_whatever_it_is(tmp_path: Path) -> None:
    """On one connection and the other, zeros over content and content over zeros."""
    model = bytearray(RAM.size)
    async with storing(tmp_path / "vm") as (main, lane, file):
        for turn in range(12):
            hand = (main, lane)[turn % 3 == 1]
            begin = (turn % 4) * MIB + turn * 100
            content = bytes([(turn % 2) * (turn + 1)]) * (2 * MIB + 5 * turn)
            assert await hand.memory(begin, content) == OK
            model[begin : begin + len(content)] = content
            assert file.read_bytes() == model


async def test_zeros_of_an_unanswered_request_do_not_undo_a_later_one(tmp_path: Path) -> None:
    """Pipelined on one connection, they are applied in their order."""
    zeros, ones = bytes(4 * MIB), b"1" * (4 * MIB)
    async with storing(tmp_path / "vm") as (_, lane, file):
        for content in (ones, zeros, ones, zeros, ones):
            lane.write(struct.pack("<H6xQQQ", MEMORY, 16, MIB, len(content)) + content)
        for _ in range(5):
            assert await lane.answer() == OK
        assert file.read_bytes() == bytes(MIB) + ones + bytes(3 * MIB)


async def test_a_long_table_is_stored_in_its_order(tmp_path: Path) -> None:
    """Spilled: a byte of each page, many times over, the later content on top."""
    ranges = (4 << 20) // 16 + 1000
    rows = np.empty((ranges, 2), np.uint64)
    rows[:, 0] = np.arange(ranges) % (RAM.size // PAGE) * PAGE
    rows[:, 1] = 1
    content = np.arange(ranges) % 251
    expected = np.zeros(RAM.size, np.uint8)
    for gpa, byte in zip(rows[:, 0].tolist(), content.tolist(), strict=True):
        expected[gpa] = byte
    ram = Mapping(0, 0, 1 << 30, "mem0", virtio_mem=False, file_offset=0)
    async with storing(tmp_path / "vm", ram) as (main, _, file):
        main.write(struct.pack("<H6xQ", MEMORY, rows.nbytes) + rows.tobytes())
        main.write(content.astype(np.uint8).tobytes())
        assert await main.answer() == OK
        with file.open("rb") as opened:
            assert opened.read(RAM.size) == expected.tobytes()


async def test_an_embedders_memory_keeps_what_was_allocated_for_it() -> None:
    """It may have been reserved on purpose; only a stored VM's files get holes."""
    with Landing() as landing:
        async with (
            aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception,
            Hand(str(reception.address)) as source,
        ):
            await source.begin(RAM)
            view = landing.view(0)
            view[:] = b"x" * RAM.size
            assert await source.memory(0, bytes(RAM.size)) == OK
            # Before it is looked at: that alone would fill holes.
            assert os.fstat(landing._memfds.fds[0]).st_blocks * 512 == RAM.size
            assert view[:] == bytes(RAM.size)
            await source.end()
            source._writer.close()
            await reception.result()


@pytest.mark.parametrize("bad", [0, 1, 3], ids=["first", "second", "last"])
async def test_a_piece_that_cannot_be_stored_makes_the_answer_an_error(
    bad: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four; with the right reason, and nothing is left of the VM."""
    store = GuestMemory.store
    begins = 512 * 1024 * bad

    def full(memory: GuestMemory, table: Table, content: memoryview) -> None:
        if table["gpa"][0] == begins:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        store(memory, table, content)

    monkeypatch.setattr(GuestMemory, "store", full)
    async with (
        StoredDestination(tmp_path / "vm") as destination,
        aiomigrate.receive(destination, "tcp:127.0.0.1:0") as reception,
        Hand(str(reception.address)) as main,
    ):
        await main.begin(RAM)
        assert await main.memory(0, b"a" * (2 * MIB)) == ERROR
        main._writer.close()
        with pytest.raises(MigrationFailed, match="No space left on device"):
            await reception.result()
    assert os.listdir(tmp_path) == []


async def test_a_long_table_of_zeros_is_read_back_off_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readers: set[threading.Thread] = set()
    read = TableSpool._read

    def noted(spool: TableSpool, begin: int, size: int) -> bytes:
        readers.add(threading.current_thread())
        return read(spool, begin, size)

    monkeypatch.setattr(TableSpool, "_read", noted)
    zeroed: list[int] = []
    memory: Any = SimpleNamespace(zero=lambda table: zeroed.append(len(table)))
    part = np.zeros(IN_MEMORY // RANGE.itemsize, RANGE)
    part["length"] = 1
    with JobExecutor() as executor, TableSpool() as spool:
        for table in (part, part[:1]):
            await asyncio.to_thread(spool.append, table)
        assert spool.spilled
        await Applier(memory, executor, Pace()).zero(spool)
    assert sum(zeroed) == len(part) + 1
    assert threading.current_thread() not in readers


async def test_a_long_table_is_spilled_and_applied_in_its_order() -> None:
    """A stock sender with one connection puts all dirt into one table; ours never makes such."""
    ranges = (4 << 20) // 16 + 1000
    mapping = Mapping(0, 0, 1 << 30, "mem0", virtio_mem=False, file_offset=0)
    rows = np.empty((ranges, 2), np.uint64)
    # Pages of its first half, twice each, the later content on top: one byte of every page.
    rows[:, 0] = np.arange(ranges) % (ranges // 2) * PAGE
    rows[:, 1] = 1
    content = np.arange(ranges) // (ranges // 2) + 1
    with Landing() as landing:
        async with (
            aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception,
            Hand(str(reception.address)) as source,
        ):
            await source.begin(mapping)
            source.write(struct.pack("<H6xQ", MEMORY, rows.nbytes) + rows.tobytes())
            source.write(content.astype(np.uint8).tobytes())
            assert await source.answer() == OK
            assert reception.progress.bytes_done == ranges
            await source.end()
            source._writer.close()
            await reception.result()
        first = np.frombuffer(landing.view(0), np.uint8)[: ranges // 2 * PAGE : PAGE].copy()
    assert (first == 2).all()
