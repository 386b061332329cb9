"""Storing a VM: whole or not at all, private, in its place only, step by step."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from aiomigrate.memory import directory
from aiomigrate.memory.errors import StoredVmError
from aiomigrate.memory.map import VmConfig
from aiomigrate.memory.stored import StoredVm
from aiomigrate.memory.storing import StoredVmWriter
from tests.memory.memory_storing import MIB, STATE, committed, names, write_vm


def test_a_vm_appears_whole_and_private(target: Path, config: VmConfig) -> None:
    before = os.umask(0)
    try:
        writer = StoredVmWriter(target)
        memory = write_vm(writer, config)
        assert not target.exists()
        writer.sync()
        writer.commit(True, "tcp:10.0.0.1:6000")
    finally:
        os.umask(before)
    memory.close()
    writer.close()
    assert names(target.parent) == ["vm"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in target.iterdir()} == {0o600}
    assert names(target) == [
        "aiomigrate.json",
        "memory-0",
        "memory-7",
        "migration_config.json",
        "state.json",
    ]
    with StoredVm.open(target) as stored:
        assert stored.config == config or stored.config.raw == config.raw
        assert stored.state == STATE
        assert stored.manifest.running is True
        refusal = stored.refusal()
    assert refusal is not None
    assert "10.0.0.1:6000" in refusal
    assert "not confirmed" in refusal
    assert (target / "memory-7").read_bytes()[:11] == b"high memory"
    assert (target / "memory-7").stat().st_size == 2 * MIB
    assert (target / "memory-7").stat().st_blocks * 512 < MIB


def test_modes_do_not_depend_on_the_umask(target: Path, config: VmConfig) -> None:
    before = os.umask(0o277)
    try:
        committed(target, config).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in target.iterdir()} == {0o600}


def test_confirming_and_checksums(target: Path, config: VmConfig) -> None:
    writer = committed(target, config)
    writer.confirm()
    writer.add_checksums()
    with pytest.raises(StoredVmError, match="cannot be discarded"):
        writer.discard()
    writer.close()
    writer.close()
    with StoredVm.open(target) as stored:
        assert stored.refusal() is None
        assert stored.verify() == ("memory-0", "memory-7", "migration_config.json", "state.json")


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_an_existing_path_is_refused(target: Path, kind: str) -> None:
    if kind == "directory":
        target.mkdir()
    elif kind == "file":
        target.touch()
    else:
        target.symlink_to("nowhere")
    with pytest.raises(StoredVmError, match="exists already"):
        StoredVmWriter(target)
    assert names(target.parent) == ["vm"]


@pytest.mark.parametrize("flags", [1, None])
def test_nothing_is_renamed_over_what_came_meanwhile(
    target: Path, config: VmConfig, monkeypatch: pytest.MonkeyPatch, flags: int | None
) -> None:
    """Also where renameat2 does not exist."""
    if flags is None:
        monkeypatch.setattr(directory, "_libc", object())
    writer = StoredVmWriter(target)
    memory = write_vm(writer, config)
    writer.sync()
    target.mkdir()
    with pytest.raises(StoredVmError, match="exists already"):
        writer.commit(False, "tcp:a:1")
    memory.close()
    writer.discard()
    assert names(target.parent) == ["vm"]
    assert names(target) == []


def test_a_system_without_renameat2(
    target: Path, config: VmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_libc", object())
    committed(target, config).close()
    assert names(target.parent) == ["vm"]
    StoredVm.open(target).close()


@pytest.mark.parametrize("steps", range(5))
def test_discard_leaves_nothing(target: Path, config: VmConfig, steps: int) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    writer = StoredVmWriter(target)
    memory = None
    if steps > 0:
        memory = writer.configure(config)
    if steps > 1:
        writer.write_state(STATE)
    if steps > 2:
        writer.sync()
    if steps > 3:
        writer.commit(True, "tcp:a:1")
        assert target.exists()
    writer.discard()
    assert names(target.parent) == []
    writer.discard()
    writer.close()
    if memory is not None:
        memory.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_closing_what_was_not_committed_discards_it(target: Path) -> None:
    StoredVmWriter(target).close()
    assert names(target.parent) == []


def test_a_writer_that_is_not_closed_warns(target: Path) -> None:
    writer = StoredVmWriter(target)
    with pytest.warns(ResourceWarning, match="not closed"):
        del writer


def test_the_order_is_kept(target: Path, config: VmConfig) -> None:
    writer = StoredVmWriter(target)
    for early in (writer.confirm, writer.add_checksums):
        with pytest.raises(StoredVmError, match="not committed"):
            early()
    writer.configure(config).close()
    with pytest.raises(StoredVmError, match="never came"):
        writer.commit(True, "tcp:a:1")
    with pytest.raises(StoredVmError, match="storing the Config failed"):
        writer.configure(config)
    writer.discard()


def test_the_lock_is_held_from_the_first_moment(target: Path, config: VmConfig) -> None:
    writer = committed(target, config)
    with pytest.raises(StoredVmError, match="in use"):
        StoredVm.open(target)
    writer.close()
    StoredVm.open(target).close()


def test_documents_have_checksums_at_once(target: Path, config: VmConfig) -> None:
    writer = StoredVmWriter(target)
    writer.configure(config).close()
    writer.write_state(b"state")
    writer.commit(False, "tcp:a:1")
    writer.close()
    with StoredVm.open(target) as stored:
        assert stored.verify() == ("migration_config.json", "state.json")
