"""What cannot be converted is refused, by name and before anything is left of it."""

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aiomigrate import StoredVmError, UsageError, convert
from aiomigrate.memory import frames
from aiomigrate.memory.blocks import FilePart
from aiomigrate.memory.stored import StoredVm
from aiomigrate.memory.storing import StoredVmWriter
from tests.engine.engine_snapshots import (
    PLUGGED,
    RANGES,
    exportable,
    file_snapshot,
    pack,
    refused,
    state_of,
)
from tests.support.image import PAGE
from tests.support.vms import MIB

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
async def vm(tmp_path: Path) -> Path:
    return await exportable(tmp_path)


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
