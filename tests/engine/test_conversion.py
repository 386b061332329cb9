"""Conversion, against what Cloud Hypervisor itself wrote of one VM in both forms."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiomigrate import SnapshotKind, convert
from aiomigrate.memory.stored import StoredVm
from tests.engine.engine_snapshots import (
    MAPPINGS,
    expected_memory,
    exportable,
    file_snapshot,
    files_of,
    pack,
)
from tests.support.captures import unpack_file, unpack_offload
from tests.support.image import PAGE

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
async def vm(tmp_path: Path) -> Path:
    return await exportable(tmp_path)


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


async def test_compressed_memory_is_exported(vm: Path) -> None:
    await convert(await pack(vm), vm.parent / "back")
    assert files_of(vm.parent / "back") == files_of(vm.parent / "file")
