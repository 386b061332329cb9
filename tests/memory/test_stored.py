"""Opening stored VMs: ours, the reference daemon's, and damaged ones."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiomigrate.memory import directory
from aiomigrate.memory.blocks import new_buffer
from aiomigrate.memory.checksum import checksum
from aiomigrate.memory.errors import StoredVmError
from aiomigrate.memory.manifest import Given, Outcome
from aiomigrate.memory.map import Mapping, VmConfig
from aiomigrate.memory.stored import StoredVm
from aiomigrate.memory.storing import StoredVmWriter

MIB = 1 << 20
STATE = b'{"snapshots":{}}'
ConfigMaker = Callable[..., bytes]


@pytest.fixture
def vm(tmp_path: Path, config: VmConfig) -> Path:
    """A confirmed VM with checksums."""
    path = tmp_path / "vm"
    writer = StoredVmWriter(path)
    writer.configure(config).close()
    writer.write_state(STATE)
    (partial,) = tmp_path.glob(".vm.partial-*")
    with open(partial / "memory-0", "r+b") as file:
        file.seek(8192)
        file.write(b"content")
    writer.sync()
    writer.commit(False, "tcp:a:1")
    writer.confirm()
    writer.add_checksums()
    writer.close()
    return path


def refused(path: Path, why: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoredVmError, match=why):
        StoredVm.open(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_is_mapped_for_sending(vm: Path) -> None:
    with StoredVm.open(vm) as stored:
        memory = stored.map_memory()
    assert [table.tolist() for table in memory.data_tables()] == [[(8192, 4096)]]
    with open("/proc/self/maps") as maps:
        (line,) = [line for line in maps if line.endswith("memory-0\n")]
    assert line.split()[1] == "r--s"
    memory.close()


def test_zones_with_a_file_stay_known(tmp_path: Path, make_config: ConfigMaker) -> None:
    raw = make_config([Mapping(0, 0, MIB, "b", False, 0)], [{"id": "b", "file": "/srv/b"}])
    writer = StoredVmWriter(tmp_path / "vm")
    memory = writer.configure(VmConfig.parse(raw))
    assert [table.tolist() for table in memory.data_tables()] == [[(0, MIB)]]
    memory.close()
    writer.write_state(STATE)
    writer.commit(True, "unix:/x")
    writer.close()
    with StoredVm.open(tmp_path / "vm") as stored:
        memory = stored.map_memory()
        assert [table.tolist() for table in memory.data_tables()] == [[(0, MIB)]]
        memory.close()


def test_a_directory_of_the_reference_daemon(vm: Path) -> None:
    (vm / "aiomigrate.json").unlink()
    with StoredVm.open(vm) as stored:
        assert stored.manifest.running is False
        assert stored.refusal() is None
        assert stored.verify() == ()
        assert [file.name for file in stored.manifest.files] == [
            "migration_config.json",
            "state.json",
            "memory-0",
            "memory-7",
        ]
        stored.record_given("tcp:b:1", "done", True)
    with StoredVm.open(vm) as stored:
        assert "given to tcp:b:1" in (stored.refusal() or "")


def test_giving_away_is_journalled(vm: Path) -> None:
    with StoredVm.open(vm) as stored:
        stored.record_given("tcp:b:1", "unknown", True)
        assert "unknown" in (stored.refusal() or "")
        stored.record_given("tcp:b:1", "failed", True)
        assert stored.refusal() is None
    with StoredVm.open(vm) as stored:
        stored.record_given("tcp:c:1", "done", False)
    with StoredVm.open(vm) as stored:
        _taken, first, second = stored.manifest.history
        assert isinstance(first, Given)
        assert isinstance(second, Given)
        assert (first.destination, first.outcome, first.running) == ("tcp:b:1", "failed", True)
        assert (second.destination, second.outcome, second.running) == ("tcp:c:1", "done", False)
        assert stored.verify()
    assert min(entry.name for entry in vm.iterdir()) == "aiomigrate.json"


def _outcomes(vm: Path) -> list[tuple[str, str]]:
    with StoredVm.open(vm) as stored:
        given = [entry for entry in stored.manifest.history if isinstance(entry, Given)]
    return [(entry.destination, entry.outcome) for entry in given]


@pytest.mark.parametrize("last", ["done", "unknown"])
def test_what_became_of_one_giving_is_not_overwritten_by_the_next(vm: Path, last: Outcome) -> None:
    with StoredVm.open(vm) as stored:
        for destination in ("tcp:b:1", "tcp:c:1"):
            stored.record_given(destination, "unknown", True)
            stored.record_given(destination, "done", True)
        stored.record_given("tcp:d:1", "unknown", True)
        if last == "done":
            stored.record_given("tcp:d:1", "done", True)
        assert "given to" in (stored.refusal() or "")
    assert _outcomes(vm) == [("tcp:b:1", "done"), ("tcp:c:1", "done"), ("tcp:d:1", last)]


def test_an_unknown_outcome_of_before_is_kept(vm: Path) -> None:
    """Whoever opens the directory again has learnt nothing about it."""
    with StoredVm.open(vm) as stored:
        stored.record_given("tcp:b:1", "unknown", True)
    with StoredVm.open(vm) as stored:
        stored.record_given("tcp:c:1", "unknown", True)
        stored.record_given("tcp:c:1", "failed", True)
    assert _outcomes(vm) == [("tcp:b:1", "unknown"), ("tcp:c:1", "failed")]


def test_an_outcome_without_a_beginning_takes_no_place(vm: Path) -> None:
    with StoredVm.open(vm) as stored:
        stored.record_given("tcp:b:1", "unknown", True)
        stored.record_given("tcp:b:1", "failed", True)
        stored.record_given("tcp:b:1", "failed", True)
    assert _outcomes(vm) == [("tcp:b:1", "failed"), ("tcp:b:1", "failed")]


def test_a_directory_in_use_is_refused(vm: Path) -> None:
    with StoredVm.open(vm):
        refused(vm, "in use")
    StoredVm.open(vm).close()


def test_a_lock_of_somebody_else_counts(vm: Path) -> None:
    other = os.open(vm, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    refused(vm, "in use")
    os.close(other)


def test_a_stored_vm_that_is_not_closed_warns(vm: Path) -> None:
    stored = StoredVm.open(vm)
    with pytest.warns(ResourceWarning, match="not closed"):
        stored.__del__()
    stored.close()


@pytest.mark.parametrize("name", ["migration_config.json", "state.json", "memory-0", "memory-7"])
def test_every_file_is_needed_and_regular(vm: Path, name: str) -> None:
    (vm / name).unlink()
    refused(vm, f"opening {name} failed: No such file")
    os.mkfifo(vm / name)
    refused(vm, f"{name} is not a regular file")
    (vm / name).unlink()
    (vm / name).mkdir()
    refused(vm, f"{name} is not a regular file")


@pytest.mark.parametrize("name", ["state.json", "memory-0", "memory-7"])
@pytest.mark.parametrize("change", [-1, 1])
def test_every_size_is_checked(vm: Path, name: str, change: int) -> None:
    os.truncate(vm / name, (vm / name).stat().st_size + change)
    refused(vm, f"{name} has .* bytes instead of")


def test_no_directory(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "opening failed: No such file")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "Not a directory")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("migration_config.json", b"{}", "the Config cannot be used"),
        ("aiomigrate.json", b"", "the manifest cannot be used"),
        ("aiomigrate.json", b'{"version": 9}', "newer aiomigrate"),
        (
            "aiomigrate.json",
            (
                b'{"version": 1, "running": true, "history": [],'
                b' "files": [{"name": "../x", "size": 1, "checksum": null}]}'
            ),
            "unknown file '../x'",
        ),
    ],
)
def test_bad_documents(vm: Path, name: str, content: bytes, why: str) -> None:
    (vm / name).write_bytes(content)
    refused(vm, why)


def test_a_document_of_absurd_size(vm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "MAX_DOCUMENT_BYTES", 15)
    refused(vm, "too many for a document")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.sampled_from(["migration_config.json", "state.json", "aiomigrate.json"]),
    st.binary(max_size=30),
    st.integers(0, 400),
)
def test_damage_anywhere_is_a_stored_vm_error_or_none(
    vm: Path, name: str, damage: bytes, at: int
) -> None:
    path = vm / name
    before = path.read_bytes()
    path.write_bytes(before[:at] + damage + before[at + len(damage) :])
    try:
        StoredVm.open(vm).close()
        assert name == "aiomigrate.json" or path.read_bytes() == before
    except StoredVmError as error:
        assert error.path == str(vm)
    finally:
        path.write_bytes(before)
    StoredVm.open(vm).close()


@pytest.mark.parametrize("name", ["migration_config.json", "state.json"])
def test_a_document_with_another_checksum(vm: Path, name: str) -> None:
    content = (vm / name).read_bytes()
    (vm / name).write_bytes(content.replace(b"0", b"1", 1).replace(b"{}", b"[]", 1))
    refused(vm, f"{name} is damaged: xxh3-128-1m:")


@pytest.mark.parametrize("name", ["migration_config.json", "state.json", "memory-0", "memory-7"])
def test_verify_finds_a_changed_byte(vm: Path, name: str) -> None:
    with StoredVm.open(vm) as stored:
        assert len(stored.verify()) == 4
        with open(vm / name, "r+b") as file:
            file.seek(10)
            file.write(b"\x7f")
        with pytest.raises(StoredVmError, match=f"{name} is damaged"):
            stored.verify()


def test_a_file_cut_while_open_is_an_error_and_no_signal(vm: Path) -> None:
    with StoredVm.open(vm) as stored:
        os.truncate(vm / "memory-0", 4096)
        with pytest.raises(StoredVmError, match="reading memory-0 failed: the file is shorter"):
            stored.verify()
        with pytest.raises(StoredVmError, match="memory-0 has 4096 bytes"):
            stored.map_memory()


def test_a_directory_that_is_gone_cannot_be_written(vm: Path) -> None:
    with StoredVm.open(vm) as stored:
        shutil.rmtree(vm)
        with pytest.raises(StoredVmError, match="writing the manifest failed"):
            stored.record_given("tcp:b:1", "unknown", True)
        assert len(stored.manifest.history) == 1


def test_a_surplus_memory_file(vm: Path) -> None:
    (vm / "memory-1").write_bytes(b"")
    refused(vm, "memory-1 belongs to no slot of its Config")
    (vm / "aiomigrate.json").unlink()
    refused(vm, "memory-1 belongs to no slot of its Config")


def test_memory_block_by_block(vm: Path) -> None:
    with StoredVm.open(vm) as stored:
        first, second = (stored.memory(mapping) for mapping in stored.config.memory_map.mappings)
        assert (first.name, second.name) == ("memory-0", "memory-7")
        assert (first.source.size, second.source.size) == (MIB, 2 * MIB)
        assert first.source.find(0) == ([0], 1)
        assert first.source.read(0, new_buffer())[8192:8199].tobytes() == b"content"
        assert second.source.find(0) == ([], 2)
        assert first.checksum == checksum(stored._files["memory-0"], MIB)
    (vm / "aiomigrate.json").unlink()
    with StoredVm.open(vm) as stored:
        assert stored.memory(stored.config.memory_map.mappings[0]).checksum is None


@pytest.fixture
def packed(tmp_path: Path, config: VmConfig) -> Path:
    """A VM whose memory is compressed: a page in slot 0."""
    path = tmp_path / "packed"
    writer = StoredVmWriter(path)
    writer.prepare(config, compressed=True)
    for mapping in config.memory_map.mappings:
        target = writer.target(mapping)
        if mapping.slot == 0:
            target.append(0, target.write(0, np.ones(MIB, np.uint8)))
        writer.finish(mapping, "xxh3-128-1m:00")
    writer.write_state(STATE)
    writer.commit(False, "tcp:a:1")
    writer.confirm()
    writer.close()
    return path


def test_compressed_memory(packed: Path) -> None:
    with StoredVm.open(packed) as stored:
        assert stored.compressed
        (first, _) = (stored.memory(mapping) for mapping in stored.config.memory_map.mappings)
        assert first.name == "memory-0.zst"
        assert first.source.read(0, new_buffer()).tobytes() == b"\1" * MIB
        with pytest.raises(StoredVmError, match=r"memory-0\.zst is damaged: .* instead of .*:00"):
            stored.verify()
        with pytest.raises(StoredVmError, match="compressed: it can be restored or converted"):
            stored.map_memory()


def test_compressed_memory_that_was_cut_or_changed(packed: Path) -> None:
    size = (packed / "memory-0.zst").stat().st_size
    with open(packed / "memory-0.zst", "r+b") as file:
        content = file.read()
        file.seek(size // 3)
        file.write(bytes(9))
    with (
        StoredVm.open(packed) as stored,
        pytest.raises(StoredVmError, match=r"memory-0\.zst: frame 0 is damaged"),
    ):
        stored.verify()
    (packed / "memory-0.zst").write_bytes(content[:-1] + b"x")
    refused(packed, "memory-0.zst: it has no seek table of 1 frames")
    (packed / "memory-0.zst").write_bytes(content[:-1])
    refused(packed, f"memory-0.zst has {size - 1} bytes instead of {size}")
    (packed / "memory-0.zst").unlink()
    refused(packed, "opening memory-0.zst failed")


def test_compressed_memory_of_another_size_than_the_map(packed: Path) -> None:
    manifest = (packed / "aiomigrate.json").read_text()
    (packed / "aiomigrate.json").write_text(
        manifest.replace(f'"memory_size": {MIB}', '"memory_size": 4096')
    )
    refused(packed, f"memory-0.zst holds 4096 bytes of memory, not {MIB}")


def test_compressed_memory_needs_its_manifest(packed: Path) -> None:
    (packed / "aiomigrate.json").unlink()
    refused(packed, "opening memory-0 failed: No such file")
