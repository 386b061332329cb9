"""The order in which a stored VM reaches the disk: no crash can spoil it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiomigrate.memory import directory
from aiomigrate.memory.errors import StoredVmError
from aiomigrate.memory.map import Mapping, VmConfig
from aiomigrate.memory.stored import StoredVm
from aiomigrate.memory.storing import StoredVmWriter
from tests.memory.memory_storing import MIB, STATE, ConfigMaker, names, write_vm


def trace(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is synced, and renames, in order."""
    calls: list[str] = []
    fsync, rename = os.fsync, directory.rename_new

    def traced_fsync(fd: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        calls.append("partial" if ".partial-" in name else name)
        fsync(fd)

    def traced_rename(parent: int, name: str, new_name: str) -> None:
        calls.append("rename")
        rename(parent, name, new_name)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(directory, "rename_new", traced_rename)
    return calls


def test_files_then_names_then_rename_then_parent(
    target: Path, config: VmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = trace(monkeypatch)
    writer = StoredVmWriter(target)
    memory = write_vm(writer, config)
    writer.sync()
    files = ["memory-0", "memory-7", "migration_config.json", "state.json"]
    assert sorted(calls[:-1]) == files
    assert calls[-1] == "partial"
    calls.clear()
    writer.sync()
    assert sorted(calls) == ["memory-0", "memory-7"]
    calls.clear()
    writer.commit(True, "tcp:a:1")
    assert calls == ["aiomigrate.json", "rename", target.parent.name]
    memory.close()
    writer.close()


def test_commit_syncs_what_sync_has_not_seen(
    target: Path, config: VmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = trace(monkeypatch)
    writer = StoredVmWriter(target)
    memory = writer.configure(config)
    writer.sync()
    calls.clear()
    writer.write_state(STATE)
    writer.commit(True, "tcp:a:1")
    assert sorted(calls[:3]) == ["memory-0", "memory-7", "state.json"]
    assert calls[3:] == ["aiomigrate.json", "rename", target.parent.name]
    memory.close()
    writer.close()


def test_a_crash_leaves_only_a_partial_directory(target: Path, make_config: ConfigMaker) -> None:
    raw = make_config([Mapping(0, 0, MIB, "a", False, 0)])
    script = f"""
import os, signal
from aiomigrate.memory.map import VmConfig
from aiomigrate.memory.storing import StoredVmWriter
writer = StoredVmWriter({str(target)!r})
memory = writer.configure(VmConfig.parse({raw!r}))
writer.write_state(b"x")
writer.sync()
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    (partial,) = target.parent.iterdir()
    assert partial.name.startswith(".vm.partial-")
    with pytest.raises(StoredVmError, match="manifest"):
        StoredVm.open(partial)
    # The next one of that name finds room: it is removed while nobody holds it.
    writer = StoredVmWriter(target)
    assert partial not in target.parent.iterdir()
    second = target.parent / names(target.parent)[0]
    with pytest.raises(StoredVmError, match="in use"):
        StoredVm.open(second)
    other = StoredVmWriter(target)
    assert second.is_dir()
    other.close()
    writer.close()
