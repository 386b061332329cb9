"""A VM as a file:// snapshot of Cloud Hypervisor's, as a stored one, and as one with its memory in
frames.
"""

import asyncio
import json
import os
import random
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from aiomigrate import StoredVmError, convert
from aiomigrate.memory.blocks import new_buffer
from aiomigrate.memory.stored import StoredVm
from aiomigrate.memory.storing import StoredVmWriter
from tests.support.image import PAGE, Mapping
from tests.support.vms import MIB

__all__ = [
    "HIGH",
    "MAPPINGS",
    "PLUGGED",
    "RANGES",
    "expected_memory",
    "exportable",
    "file_snapshot",
    "files_of",
    "pack",
    "refused",
    "state_of",
]

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


async def refused(source: Path, why: str, kind: type[Exception] = StoredVmError) -> None:
    destination = source.parent / "made"
    with pytest.raises(kind, match=why):
        await convert(source, destination)
    left = [name for name in os.listdir(source.parent) if "made" in name]
    assert left == []


async def exportable(folder: Path) -> Path:
    """A stored VM in `folder` that can be exported; beside it the snapshot that it was."""
    await convert(file_snapshot(folder / "file"), folder / "vm")
    return folder / "vm"
