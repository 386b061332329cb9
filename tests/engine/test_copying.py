"""Memory from descriptors into a directory and back, and what stops that."""

import asyncio
import errno
import fcntl
import json
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiomigrate import StoredVmError, VmConfig
from aiomigrate.copying import copy_blocks, load_memory, save_memory
from aiomigrate.executor import JobExecutor
from aiomigrate.memory.blocks import Block, FilePart
from aiomigrate.memory.checksum import checksum
from aiomigrate.memory.stored import StoredVm
from aiomigrate.memory.storing import StoredVmWriter
from aiomigrate.tasks import outlive
from tests.support.image import PAGE, Mapping
from tests.support.vms import MIB, STATE_JSON, config_of

# Two mappings in one file, apart from each other and from its beginning, and one by itself.
MAPPINGS = (
    Mapping(3, 0, 5 * MIB + 8192, "a", virtio_mem=False, file_offset=8192),
    Mapping(0, 1 << 32, 3 * MIB, "a", virtio_mem=False, file_offset=9 * MIB),
    Mapping(9, 1 << 33, PAGE, "b", virtio_mem=False, file_offset=0),
)
CONFIG = VmConfig.parse(config_of(MAPPINGS))

Make = Callable[[int], int]


@pytest.fixture
def memfd(no_leaks: None) -> Iterator[Make]:
    made: list[int] = []

    def make(size: int) -> int:
        made.append(os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.ftruncate(made[-1], size)
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)


@pytest.fixture
def guest(memfd: Make) -> dict[int, int]:
    """Its memory by slot: random data, pages of zeros that were written, and holes."""
    shared, alone = memfd(13 * MIB), memfd(PAGE)
    chance = random.Random(5)
    for at in range(0, 13 * MIB, 3 * PAGE):
        if at // MIB % 4 != 1:
            os.pwrite(shared, chance.randbytes(PAGE) + bytes(PAGE), at)
    os.pwrite(alone, b"last", 5)
    return {3: shared, 0: shared, 9: alone}


def memory_of(fds: dict[int, int]) -> dict[int, bytes]:
    return {
        mapping.slot: os.pread(fds[mapping.slot], mapping.size, mapping.file_offset)
        for mapping in MAPPINGS
    }


def nothing(_: int) -> None:
    pass


async def store(
    path: Path,
    fds: dict[int, int],
    *,
    compressed: bool = False,
    moved: Callable[[int], None] = nothing,
) -> None:
    with JobExecutor() as executor:
        writer = await executor.run(StoredVmWriter, path)
        try:
            await executor.run(partial(writer.prepare, CONFIG, compressed=compressed))
            await save_memory(writer, CONFIG, fds, executor, moved)
            await executor.run(writer.write_state, STATE_JSON)
            await executor.run(writer.sync)
            await executor.run(writer.commit, False, "unix:/x")
            await executor.run(writer.confirm)
        finally:
            await outlive(executor.run(writer.close))


async def load(path: Path, fds: dict[int, int]) -> None:
    with JobExecutor() as executor:
        vm = await executor.run(StoredVm.open, path)
        try:
            await load_memory(vm, fds, executor, nothing)
        finally:
            await executor.run(vm.close)


def empty(memfd: Make) -> dict[int, int]:
    return {mapping.slot: memfd(mapping.file_offset + mapping.size) for mapping in MAPPINGS}


async def test_as_the_reference_daemon_would_have_written_it(
    tmp_path: Path, guest: dict[int, int]
) -> None:
    moved: list[int] = []
    await store(tmp_path / "vm", guest, moved=moved.append)
    for slot, content in memory_of(guest).items():
        assert (tmp_path / "vm" / f"memory-{slot}").read_bytes() == content
    assert (tmp_path / "vm" / "migration_config.json").read_bytes() == CONFIG.raw
    assert (tmp_path / "vm" / "state.json").read_bytes() == STATE_JSON
    assert len(list((tmp_path / "vm").iterdir())) == 6  # and the manifest
    pages = {
        slot: sum(any(content[at : at + PAGE]) for at in range(0, len(content), PAGE))
        for slot, content in memory_of(guest).items()
    }
    for slot, count in pages.items():
        held = (tmp_path / "vm" / f"memory-{slot}").stat().st_blocks * 512
        assert 0 <= held - count * PAGE <= 8 * PAGE  # the file system's own blocks
    assert sum(pages.values()) * PAGE <= sum(moved) <= 10 * MIB

    def verify() -> None:
        with StoredVm.open(tmp_path / "vm") as vm:
            assert vm.manifest.running is False
            assert set(vm.verify()) == {
                "migration_config.json",
                "state.json",
                "memory-0",
                "memory-3",
                "memory-9",
            }

    await asyncio.to_thread(verify)


@pytest.mark.parametrize("compressed", [False, True])
async def test_back_into_memfds(
    tmp_path: Path, guest: dict[int, int], memfd: Make, *, compressed: bool
) -> None:
    await store(tmp_path / "vm", guest, compressed=compressed)
    fds = empty(memfd)
    await load(tmp_path / "vm", fds)
    assert memory_of(fds) == memory_of(guest)
    for mapping in MAPPINGS:
        content = memory_of(guest)[mapping.slot]
        pages = sum(any(content[at : at + PAGE]) for at in range(0, mapping.size, PAGE))
        assert os.fstat(fds[mapping.slot]).st_blocks * 512 == pages * PAGE


async def test_compressed_memory_has_the_checksums_of_what_it_holds(
    tmp_path: Path, guest: dict[int, int]
) -> None:
    await store(tmp_path / "plain", guest)
    await store(tmp_path / "packed", guest, compressed=True)

    def compare() -> None:
        first, second = tmp_path / "plain", tmp_path / "packed"
        with StoredVm.open(first) as plain, StoredVm.open(second) as packed:
            assert packed.compressed
            assert not plain.compressed
            assert len(packed.verify()) == 5
            for mapping in CONFIG.memory_map.mappings:
                one, other = plain.memory(mapping), packed.memory(mapping)
                assert other.name == f"memory-{mapping.slot}.zst"
                assert one.checksum == other.checksum
            with pytest.raises(StoredVmError, match="its memory is compressed"):
                packed.map_memory()

    await asyncio.to_thread(compare)
    document = json.loads((tmp_path / "packed" / "aiomigrate.json").read_bytes())
    sizes = {file["name"]: file for file in document["files"]}
    assert sizes["memory-3.zst"]["memory_size"] == 5 * MIB + 8192
    assert sizes["memory-3.zst"]["size"] == (tmp_path / "packed" / "memory-3.zst").stat().st_size


async def test_sealed_memory_is_read(tmp_path: Path, guest: dict[int, int]) -> None:
    for fd in set(guest.values()):
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        )
    await store(tmp_path / "vm", guest)
    assert (tmp_path / "vm" / "memory-3").read_bytes() == memory_of(guest)[3]


async def test_a_descriptor_that_is_too_short(tmp_path: Path, guest: dict[int, int]) -> None:
    os.ftruncate(guest[0], 12 * MIB - PAGE)
    with pytest.raises(OSError, match="shorter than it should be") as caught:
        await store(tmp_path / "vm", guest)
    assert caught.value.errno == errno.EIO
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("compressed", [False, True])
async def test_damage_is_noticed_while_it_is_loaded(
    tmp_path: Path, guest: dict[int, int], memfd: Make, *, compressed: bool
) -> None:
    await store(tmp_path / "vm", guest, compressed=compressed)
    name = "memory-0.zst" if compressed else "memory-0"
    with (tmp_path / "vm" / name).open("r+b") as file:
        file.seek(3 * PAGE)
        file.write(b"damage")
    with pytest.raises(StoredVmError, match=rf"{name}\b.* is damaged"):
        await load(tmp_path / "vm", empty(memfd))


async def test_without_a_manifest_nothing_is_compared(
    tmp_path: Path, guest: dict[int, int], memfd: Make
) -> None:
    await store(tmp_path / "vm", guest)
    (tmp_path / "vm" / "aiomigrate.json").unlink()
    fds = empty(memfd)
    await load(tmp_path / "vm", fds)
    assert memory_of(fds) == memory_of(guest)


@pytest.mark.parametrize("compressed", [False, True])
async def test_cancelling_leaves_nothing(
    tmp_path: Path, guest: dict[int, int], *, compressed: bool
) -> None:
    task: asyncio.Task[None] | None = None

    def cancel(_: int) -> None:
        assert task is not None
        task.cancel()

    task = asyncio.create_task(store(tmp_path / "vm", guest, compressed=compressed, moved=cancel))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.listdir(tmp_path) == []


async def test_the_jobs_have_ended_when_an_error_is_raised(memfd: Make) -> None:
    """Else they would use descriptors that are somebody else's by then."""
    size = 64 * MIB
    fd = memfd(size)
    for at in range(0, size, MIB):
        os.pwrite(fd, b"x", at)
    running: set[int] = set()

    class Failing(FilePart):
        def write(self, index: int, content: Block) -> bytes:
            running.add(index)
            try:
                if index == 4:
                    raise OSError(errno.ENOSPC, "full")
                return super().write(index, content)
            finally:
                running.remove(index)

    async def moved(_: int) -> None:
        pass

    generators: list[Any] = []
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=generators.append)
    try:
        with JobExecutor() as executor:
            with pytest.raises(OSError, match="full"):
                await copy_blocks(
                    FilePart(fd, 0, size), Failing(memfd(size), 0, size), executor, moved
                )
            assert not running
    finally:
        sys.set_asyncgen_hooks(*hooks)
    # Nor is anything left for the loop to end later.
    assert [generator.ag_frame for generator in generators] == [None]


async def test_a_last_block_that_is_shorter_counts_as_what_it_is(memfd: Make) -> None:
    size = 5 * MIB + 3 * PAGE
    source = memfd(size)
    os.pwrite(source, b"x" * size, 0)
    seen: list[int] = []

    async def moved(count: int) -> None:
        seen.append(count)

    with JobExecutor() as executor:
        await copy_blocks(
            FilePart(source, 0, size), FilePart(memfd(size), 0, size), executor, moved
        )
    assert seen == [4 * MIB, MIB + 3 * PAGE]


async def test_results_are_taken_in_order(memfd: Make) -> None:
    """Later blocks are ready before the first one, and the checksum is right all the same."""
    size = 16 * MIB
    source, target = memfd(size), memfd(size)
    for at in range(0, size, MIB):
        os.pwrite(source, b"%d" % at, at + 7)
    later = threading.Event()

    class Slow(FilePart):
        def read(self, index: int, buffer: Block) -> Block:
            if index == 0:
                assert later.wait(20)
            if index == 15:
                later.set()
            return super().read(index, buffer)

    seen: list[int] = []

    async def moved(count: int) -> None:
        seen.append(count)

    with JobExecutor() as executor:
        text = await copy_blocks(Slow(source, 0, size), FilePart(target, 0, size), executor, moved)
    assert text == checksum(source, size)
    assert seen == [4 * MIB] * 4
