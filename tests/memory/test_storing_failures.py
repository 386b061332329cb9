"""Disks that refuse: a failed write is final, and what was made can be discarded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiomigrate.memory import directory
from aiomigrate.memory.errors import StoredVmError
from aiomigrate.memory.map import Mapping, VmConfig
from aiomigrate.memory.storing import StoredVmWriter
from tests.memory.memory_storing import ConfigMaker, committed, names, write_vm


def test_a_failed_write_is_final(
    target: Path, config: VmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports it once, and says yes to the next fsync."""
    writer = StoredVmWriter(target)
    memory = write_vm(writer, config)

    def failing(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(StoredVmError, match="writing to disk failed: Input/output error"):
            writer.sync()
    for again in (writer.sync, lambda: writer.commit(True, "tcp:a:1")):
        with pytest.raises(StoredVmError, match="earlier write"):
            again()
    memory.close()
    writer.discard()
    assert names(target.parent) == []


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_commit_that_fails_can_be_discarded(
    target: Path, config: VmConfig, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    """Also after the rename, when its durability is in doubt."""
    writer = StoredVmWriter(target)
    memory = write_vm(writer, config)
    writer.sync()
    fsync = os.fsync
    calls = 0

    def failing(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError(28, "No space left on device")
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(StoredVmError, match="No space left"):
            writer.commit(True, "tcp:a:1")
    assert target.exists() is (failing_call == 2)
    memory.close()
    writer.discard()
    assert names(target.parent) == []


def test_a_rename_that_fails(
    target: Path, config: VmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = StoredVmWriter(target)
    memory = write_vm(writer, config)

    def failing(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(directory, "rename_new", failing)
        with pytest.raises(StoredVmError, match="renaming failed: Read-only"):
            writer.commit(True, "tcp:a:1")
    memory.close()
    writer.discard()
    assert names(target.parent) == []


def test_a_manifest_that_cannot_be_replaced_stays(
    target: Path, config: VmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = committed(target, config)
    before = (target / "aiomigrate.json").read_bytes()

    def failing(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(StoredVmError, match="writing the manifest failed: No space left"):
            writer.add_checksums()
    assert (target / "aiomigrate.json").read_bytes() == before
    assert len(names(target)) == 5
    writer.close()


def test_a_manifest_that_was_being_replaced_leaves_nothing_for_ever(
    target: Path, config: VmConfig
) -> None:
    writer = committed(target, config)
    (target / ".aiomigrate.json.partial-0123abcd").write_bytes(b"half of i")
    writer.add_checksums()
    assert len(names(target)) == 5
    writer.close()


def test_no_parent(tmp_path: Path) -> None:
    with pytest.raises(StoredVmError, match="making the directory failed: No such file"):
        StoredVmWriter(tmp_path / "missing" / "vm")


def test_a_read_only_file_system(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses to remove what is not there, too, instead of saying that it is not."""

    def refuse(*_: object, **_options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(StoredVmError, match="making the directory failed: Read-only"):
        StoredVmWriter(target)


def test_no_permission(tmp_path: Path) -> None:
    root = os.geteuid() == 0
    tmp_path.chmod(0o500)
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(StoredVmError, match="making the directory failed: Permission denied"):
            StoredVmWriter(tmp_path / "vm")
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o700)
    assert names(tmp_path) == []


def test_memory_that_no_file_can_hold(target: Path, make_config: ConfigMaker) -> None:
    huge = VmConfig.parse(make_config([Mapping(5, 0, 2**62, "a", False, 0)]))
    writer = StoredVmWriter(target)
    with pytest.raises(StoredVmError, match=r"making 4611686018427387904 bytes .* slot 5 failed"):
        writer.configure(huge)
    writer.discard()
    assert names(target.parent) == []


def test_space_that_is_not_there(target: Path) -> None:
    writer = StoredVmWriter(target)
    writer.require_space(0)
    writer.require_space(1 << 20)
    free = os.statvfs(target.parent)
    with pytest.raises(StoredVmError, match=r"\d+ bytes are needed and \d+ are free") as caught:
        writer.require_space((free.f_bavail << 10) * free.f_frsize)
    assert str((free.f_bavail << 10) * free.f_frsize) in str(caught.value)
    writer.close()
