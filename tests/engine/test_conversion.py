"""Conversion, against what Cloud Hypervisor itself wrote of one VM in both forms."""

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from aiomigrate import SnapshotKind, StoredVmError, UsageError, convert
from aiomigrate.memory import directory, frames
from aiomigrate.memory.blocks import FilePart, new_buffer
from aiomigrate.memory.stored import StoredVm
from aiomigrate.memory.storing import StoredVmWriter
from tests.support.captures import unpack_file, unpack_offload
from tests.support.image import PAGE, Mapping
from tests.support.vms import MIB

pytestmark = pytest.mark.usefixtures("no_leaks")

MAPPINGS = (
    Mapping(0, 0, 3 * MIB, "a", virtio_mem=False, file_offset=0),
    Mapping(5, 1 << 32, 2 * MIB + PAGE, "b", virtio_mem=False, file_offset=0),
    Mapping(6, 1 << 33, 8 * MIB, "c", virtio_mem=True, file_offset=0),
)
HIGH, PLUGGED = 1 << 32, (1 << 33) + 4 * MIB
# In no order, split anywhere between pages, with one part of the virtio-mem region plugged.
RANGES = [
    (PLUGGED, 2 * MIB),
    (HIGH, 5 * PAGE),
    (0, 3 * MIB),
    (HIGH + 5 * PAGE, 2 * MIB - 4 * PAGE),
]


def manager_of(ranges: list[tuple[int, int]]) -> dict[str, Any]:
    return {
        "memory_ranges": {"data": [{"gpa": gpa, "length": length} for gpa, length in ranges]},
        "guest_ram_mappings": [vars(mapping) for mapping in MAPPINGS],
    }


def state_of(ranges: list[tuple[int, int]]) -> bytes:
    node = {"snapshots": {}, "snapshot_data": {"state": json.dumps(manager_of(ranges))}}
    return json.dumps({"snapshots": {"memory-manager": node}, "snapshot_data": None}).encode()


def memory_of(ranges: list[tuple[int, int]]) -> dict[int, bytes]:
    """By gpa: random data, with a hole of 600 KiB in what is long enough."""
    return _memory_of(tuple(ranges))


@cache
def _memory_of(ranges: tuple[tuple[int, int], ...]) -> dict[int, bytes]:
    chance = random.Random(3)
    found = {}
    for gpa, length in ranges:
        content = bytearray(chance.randbytes(length))
        content[100 * PAGE : 250 * PAGE] = bytes(len(content[100 * PAGE : 250 * PAGE]))
        found[gpa] = bytes(content)
    return found


def file_snapshot(
    path: Path, ranges: list[tuple[int, int]] = RANGES, *, zone_file: str | None = None
) -> Path:
    """As Cloud Hypervisor lays it out."""
    path.mkdir()
    zones = [{"id": "b", "file": zone_file}] if zone_file else []
    (path / "config.json").write_text(json.dumps({"memory": {"zones": zones}}))
    (path / "state.json").write_bytes(state_of(ranges))
    if ranges:
        with (path / "memory-ranges").open("xb") as file:
            for content in memory_of(ranges).values():
                for at in range(0, len(content), PAGE):
                    page = content[at : at + PAGE]
                    if any(page):
                        file.write(page)
                    else:
                        file.seek(PAGE, os.SEEK_CUR)
            file.truncate(sum(length for _, length in ranges))
    return path


def expected_memory(mapping: Mapping) -> bytes:
    content = bytearray(mapping.size)
    for gpa, memory in memory_of(RANGES).items():
        if mapping.gpa <= gpa < mapping.gpa + mapping.size:
            content[gpa - mapping.gpa : gpa - mapping.gpa + len(memory)] = memory
    return bytes(content)


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name[0] != "a"}


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two documents differ, looking into JSON inside strings."""
    if isinstance(one, str) and isinstance(other, str) and one[:1] == other[:1] == "{":
        one, other = json.loads(one), json.loads(other)
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted(one.keys() | other.keys()):
            yield from differences(one.get(name), other.get(name), f"{where}/{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{where}/{index}")
    elif one != other:
        yield where


async def test_what_cloud_hypervisor_wrote_of_one_vm_in_both_forms(tmp_path: Path) -> None:
    """Config and memory are the reference daemon's to the byte. State was captured twice, some
    seconds apart: the processor that CPUID was asked on, and the guest's time stamp counter.
    """
    source, theirs = unpack_file(tmp_path), unpack_offload(tmp_path)
    assert await convert(source, tmp_path / "vm") is SnapshotKind.STORED
    ours, daemon = files_of(tmp_path / "vm"), files_of(theirs)
    assert ours.keys() == daemon.keys()
    assert ours["migration_config.json"] == daemon["migration_config.json"]
    assert ours["memory-0"] == daemon["memory-0"]
    assert ours["state.json"] == (source / "state.json").read_bytes()
    documents = (json.loads(files["state.json"]) for files in (ours, daemon))
    assert list(differences(*documents)) == [
        "/snapshot_data/state/common_cpuid/1/ebx",
        "/snapshot_data/state/common_cpuid/11/edx",
        "/snapshots/cpu-manager/snapshots/0/snapshot_data/state/Kvm/msrs/8/data",
    ]


async def test_there_and_back_to_the_byte(tmp_path: Path) -> None:
    source = unpack_file(tmp_path)
    await convert(source, tmp_path / "vm")
    assert await convert(tmp_path / "vm", tmp_path / "back") is SnapshotKind.FILE
    assert files_of(tmp_path / "back") == files_of(source)
    held = (tmp_path / "back" / "memory-ranges").stat().st_blocks * 512
    # As sparse as it was, beside what the file system needs for itself.
    assert held <= (source / "memory-ranges").stat().st_blocks * 512 + 8 * PAGE

    def look() -> None:
        with StoredVm.open(tmp_path / "vm") as vm:
            assert vm.refusal() is None
            assert vm.manifest.history[0].source == f"file://{source}"  # type: ignore[union-attr]
            assert len(vm.verify()) == 3

    await asyncio.to_thread(look)


async def test_the_reference_daemons_directory_becomes_a_file_snapshot(tmp_path: Path) -> None:
    theirs = unpack_offload(tmp_path)
    await convert(theirs, tmp_path / "file")
    config = json.loads((theirs / "migration_config.json").read_bytes())
    written = (tmp_path / "file" / "config.json").read_bytes()
    assert json.loads(written) == config["vm_config"]
    assert written in (theirs / "migration_config.json").read_bytes()
    assert (tmp_path / "file" / "memory-ranges").read_bytes() == (theirs / "memory-0").read_bytes()
    assert (tmp_path / "file" / "state.json").read_bytes() == (theirs / "state.json").read_bytes()


async def test_ranges_in_any_order_and_virtio_mem(tmp_path: Path) -> None:
    source = file_snapshot(tmp_path / "file")
    await convert(source, tmp_path / "vm")
    for mapping in MAPPINGS:
        content = (tmp_path / "vm" / f"memory-{mapping.slot}").read_bytes()
        assert content == expected_memory(mapping)
    await convert(tmp_path / "vm", tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(source)


async def pack(vm: Path, *, checksums: bool = True) -> Path:
    """The same stored VM with compressed memory."""
    packed = vm.parent / "packed"

    def write() -> None:
        with StoredVm.open(vm) as stored, closing(StoredVmWriter(packed)) as writer:
            writer.prepare(stored.config, compressed=True)
            for mapping in stored.config.memory_map.mappings:
                memory, target = stored.memory(mapping), writer.target(mapping)
                for index in memory.source.find(0)[0]:
                    content = memory.source.read(index, new_buffer())
                    target.append(index, target.write(index, content))
                writer.finish(mapping, str(memory.checksum))
            writer.write_state(stored.state)
            writer.commit(False, "unix:/x", confirmed=True)

    await asyncio.to_thread(write)
    if not checksums:
        manifest = json.loads((packed / "aiomigrate.json").read_bytes())
        for file in manifest["files"]:
            file["checksum"] = None
        (packed / "aiomigrate.json").write_text(json.dumps(manifest))
    return packed


async def test_compressed_memory_is_exported(vm: Path) -> None:
    await convert(await pack(vm), vm.parent / "back")
    assert files_of(vm.parent / "back") == files_of(vm.parent / "file")


async def test_a_damaged_frame_that_has_no_checksum(vm: Path) -> None:
    packed = await pack(vm, checksums=False)
    with (packed / "memory-0.zst").open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    await refused(packed, "frame 0 is damaged")


async def test_without_zstandard(vm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = await pack(vm)
    monkeypatch.setattr(frames, "find_spec", {}.get)
    await refused(packed, r"memory-0\.zst: zstandard is not installed: pip install")

    def prepare() -> None:
        with (
            StoredVm.open(vm) as stored,
            closing(StoredVmWriter(vm.parent / "made")) as writer,
            pytest.raises(StoredVmError, match="zstandard is not installed"),
        ):
            writer.prepare(stored.config, compressed=True)

    await asyncio.to_thread(prepare)


async def refused(source: Path, why: str, kind: type[Exception] = StoredVmError) -> None:
    destination = source.parent / "made"
    with pytest.raises(kind, match=why):
        await convert(source, destination)
    left = [name for name in os.listdir(source.parent) if "made" in name]
    assert left == []


async def test_what_is_neither_or_both(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    await refused(tmp_path / "empty", "has neither of", UsageError)
    source = file_snapshot(tmp_path / "file")
    (source / "migration_config.json").write_text("{}")
    await refused(source, "has both of", UsageError)
    await refused(tmp_path / "nothing", "listing its files failed: No such file")


async def test_a_destination_that_is_there(tmp_path: Path) -> None:
    source = file_snapshot(tmp_path / "file")
    await convert(source, tmp_path / "vm")
    for one, other in ((source, tmp_path / "vm"), (tmp_path / "vm", source)):
        with pytest.raises(StoredVmError, match="the path exists already"):
            await convert(one, other)
    assert sorted(os.listdir(tmp_path)) == ["file", "vm"]


async def test_memory_ranges_of_another_size(tmp_path: Path) -> None:
    source = file_snapshot(tmp_path / "file")
    total = sum(length for _, length in RANGES)
    os.truncate(source / "memory-ranges", total - 1)
    await refused(source, f"memory-ranges has {total - 1} bytes instead of {total}")
    os.truncate(source / "memory-ranges", total + 1)
    await refused(source, f"memory-ranges has {total + 1} bytes instead of {total}")
    (source / "memory-ranges").unlink()
    await refused(source, "opening memory-ranges failed: No such file")


@pytest.mark.parametrize(
    ("ranges", "why"),
    [
        ([*RANGES, (0, PAGE)], "its ranges in slot 0 overlap"),
        ([*RANGES, (PLUGGED + MIB, PAGE)], "its ranges in slot 6 overlap"),
        ([(0, 3 * MIB + PAGE)], "range at 0x0 of 3149824 bytes is not in one mapping"),
        ([*RANGES, (1 << 40, PAGE)], "range at 0x10000000000 of 4096 bytes is not in one mapping"),
        (RANGES[1:3], r"slot 5 \(zone b\) from 0x100005000 on is not in memory-ranges$"),
        ([RANGES[2], *RANGES[3:]], r"slot 5 \(zone b\) from 0x100000000 on is not in"),
        ([], r"slot 0 \(zone a\) from 0x0 on is not in memory-ranges$"),
    ],
)
async def test_ranges_that_are_not_the_memory(
    tmp_path: Path, ranges: list[tuple[int, int]], why: str
) -> None:
    await refused(file_snapshot(tmp_path / "file", ranges), why)


async def test_memory_that_a_snapshot_left_on_the_host_is_named(tmp_path: Path) -> None:
    source = file_snapshot(tmp_path / "file", [RANGES[2]], zone_file="/srv/b")
    await refused(source, r"slot 5 \(zone b\).*it is in the zone's own file on the host")


async def test_documents_that_cannot_be_read(tmp_path: Path) -> None:
    source = file_snapshot(tmp_path / "file")
    (source / "config.json").write_text("[")
    await refused(source, r"config\.json is not JSON")
    (source / "config.json").write_text('{"memory": 1}')
    await refused(source, "memory of vm_config is not an object")
    (source / "state.json").write_text("{}")
    await refused(source, r"snapshots of state\.json is not an object")
    (source / "state.json").unlink()
    await refused(source, r"opening state\.json failed")


@pytest.fixture
async def vm(tmp_path: Path) -> Path:
    """A stored VM that can be exported."""
    await convert(file_snapshot(tmp_path / "file"), tmp_path / "vm")
    return tmp_path / "vm"


async def test_memory_that_a_snapshot_has_no_place_for(vm: Path) -> None:
    (vm / "aiomigrate.json").unlink()
    with (vm / "memory-6").open("r+b") as file:
        file.seek(3 * MIB + 5)
        file.write(b"x")
    await refused(vm, r"slot 6 \(zone c\) has memory in the MiB at 0x200300000 that its State's")


@pytest.mark.parametrize("where", [4 * MIB, 6 * MIB - 1])
async def test_memory_at_the_ends_of_a_range_has_a_place(vm: Path, where: int) -> None:
    (vm / "aiomigrate.json").unlink()
    with (vm / "memory-6").open("r+b") as file:
        file.seek(where)
        file.write(b"x")
    await convert(vm, vm.parent / "made")


def edit(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


async def test_a_config_that_says_more_than_the_state(vm: Path) -> None:
    (vm / "aiomigrate.json").unlink()
    edit(vm / "migration_config.json", lambda config: config.update(more=1))
    await refused(vm, "its Config has 'more', which a file:// snapshot has no place for")


async def test_a_state_whose_ranges_are_not_the_maps(vm: Path) -> None:
    (vm / "aiomigrate.json").unlink()
    (vm / "state.json").write_bytes(state_of([(1 << 40, PAGE)]))
    await refused(vm, "its State's range at 0x10000000000 of 4096 bytes is not in one mapping")
    (vm / "state.json").write_bytes(b"{}")
    await refused(vm, r"snapshots of state\.json is not an object")


async def test_a_vm_that_was_given_away(vm: Path) -> None:
    def give() -> None:
        with StoredVm.open(vm) as stored:
            stored.record_given("tcp:b:1", "done", True)

    await asyncio.to_thread(give)
    await refused(vm, "it was given to tcp:b:1", UsageError)


async def test_a_damaged_vm(vm: Path) -> None:
    with (vm / "memory-0").open("r+b") as file:
        file.write(b"damage")
    await refused(vm, "memory-0 is damaged")


async def test_an_error_of_the_disk(
    vm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(part: FilePart, index: int, content: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FilePart, "write", full)
    await refused(tmp_path / "file", "copying memory of slot 0 failed: No space left")
    await refused(vm, "copying memory failed: No space left")


@pytest.mark.parametrize("name", ["file", "vm"])
async def test_cancelling_leaves_nothing(
    vm: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    write = FilePart.write
    task: asyncio.Task[SnapshotKind]

    def cancelling(part: FilePart, index: int, content: Any) -> bytes:
        loop.call_soon_threadsafe(task.cancel)
        return write(part, index, content)

    monkeypatch.setattr(FilePart, "write", cancelling)
    task = asyncio.create_task(convert(vm.parent / name, vm.parent / "made"))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(os.listdir(vm.parent)) == ["file", "vm"]


@pytest.mark.parametrize("name", ["file", "vm"])
async def test_a_rename_that_may_not_be_durable(
    vm: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def failing(fd: int) -> None:
        if (vm.parent / "made").exists():
            raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    await refused(vm.parent / name, "making the rename durable failed: Input/output error")


@pytest.mark.parametrize("name", ["file", "vm"])
async def test_cancelled_while_it_appears(
    vm: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    rename = directory.rename_new
    task: asyncio.Task[SnapshotKind]

    def cancelling(parent: int, old: str, new: str) -> None:
        rename(parent, old, new)
        loop.call_soon_threadsafe(task.cancel)

    monkeypatch.setattr(directory, "rename_new", cancelling)
    task = asyncio.create_task(convert(vm.parent / name, vm.parent / "made"))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(os.listdir(vm.parent)) == ["file", "vm"]


@pytest.mark.parametrize("name", ["file", "vm"])
async def test_space_is_asked_for_before_anything_is_copied(
    vm: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ["memory-ranges"] if name == "file" else ["memory-0", "memory-5", "memory-6"]
    needed = sum((vm.parent / name / file).stat().st_blocks * 512 for file in files)
    assert needed > 4 * MIB
    found = os.statvfs(vm)
    free = needed // found.f_frsize - 1
    values = [*found[:4], free, *found[5:]]
    monkeypatch.setattr(os, "fstatvfs", lambda _: os.statvfs_result(values))
    monkeypatch.delattr(FilePart, "write")
    await refused(
        vm.parent / name, f"{needed} bytes are needed and {free * found.f_frsize} are free"
    )


def is_whole(made: Path, source: Path) -> bool:
    """Whether `made`, which is there, is all that `source` converts to, and ready for use."""
    if (made / "config.json").exists():
        return files_of(made) == files_of(source.parent / "file")
    with StoredVm.open(made) as stored:
        checked = len(stored.verify())
        same = files_of(made) == files_of(source.parent / "vm")
        return same and checked == 5 and stored.refusal() is None


@pytest.mark.parametrize("name", ["file", "vm"])
async def test_a_kill_at_any_step_leaves_all_or_nothing(vm: Path, name: str) -> None:
    source, killed = vm.parent / name, vm.parent / "killed"
    killed.mkdir()
    command = [sys.executable, "-m", "tests.engine.converting_killed", str(source), str(killed)]

    def run() -> list[bool]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        assert done.returncode == 0, done.stderr
        places = [killed / str(child + 1) for child in range(int(done.stdout))]
        for place in places:
            rest = [file for file in os.listdir(place) if not file.startswith(".made.partial-")]
            assert rest in ([], ["made"])
        assert all(
            is_whole(place / "made", source) for place in places if (place / "made").exists()
        )
        return [(place / "made").exists() for place in places]

    whole = await asyncio.to_thread(run)
    # What was killed before or in the rename, after it, and what was not killed at all.
    assert whole == [False] * (len(whole) - 2) + [True, True]
    assert len(whole) > 12
    # What a kill leaves is in nobody's way.
    await convert(source, killed / "3" / "made")


@pytest.mark.parametrize("name", ["file", "vm"])
async def test_what_is_in_the_making_is_in_use(
    vm: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = FilePart.write
    seen: list[tuple[str, ...]] = []

    def looking(part: FilePart, index: int, content: Any) -> bytes:
        seen.append(directory.leftovers(str(vm.parent / "made")))
        return write(part, index, content)

    monkeypatch.setattr(FilePart, "write", looking)
    await convert(vm.parent / name, vm.parent / "made")
    assert set(seen) == {()}
