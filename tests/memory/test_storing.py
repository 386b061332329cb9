"""Storing a VM: whole or not at all, private, in an order that a crash cannot spoil."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aiomigrate.memory import directory
from aiomigrate.memory.errors import StoredVmError
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import Mapping, VmConfig
from aiomigrate.memory.ranges import make_table
from aiomigrate.memory.stored import StoredVm
from aiomigrate.memory.storing import StoredVmWriter

MIB = 1 << 20
STATE = b'{"snapshots":{}, "snapshot_data":null}'
ConfigMaker = Callable[..., bytes]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "vm"


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def write_vm(writer: StoredVmWriter, config: VmConfig) -> GuestMemory:
    """All that comes before `sync`: Config, State and some memory."""
    memory = writer.configure(config)
    memory.populate_write(make_table([(4096, 1)]))
    writer.write_state(STATE)
    (partial,) = Path(writer.path).parent.glob(".vm.partial-*")
    with open(partial / "memory-7", "r+b") as file:
        file.write(b"high memory")
    return memory


def committed(target: Path, config: VmConfig) -> StoredVmWriter:
    writer = StoredVmWriter(target)
    write_vm(writer, config).close()
    writer.sync()
    writer.commit(True, "tcp:10.0.0.1:6000")
    return writer


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


@pytest.mark.parametrize("call", ["open", "fchmod", "flock"])
def test_a_directory_that_is_swept_before_it_is_locked_is_made_anew(
    call: str, target: Path, config: VmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that starts sweeps all of its directory while another process makes a VM there."""
    module = fcntl if call == "flock" else os
    real = getattr(module, call)
    swept: list[list[str]] = []

    def sweep_first(what: object, *arguments: object, **keywords: object) -> object:
        made = any(".vm.partial-" in name for name in names(target.parent))
        if made and not swept:
            swept.append(names(target.parent))
            directory.sweep_all(str(target.parent))
        return real(what, *arguments, **keywords)

    monkeypatch.setattr(module, call, sweep_first)
    writer = StoredVmWriter(target)
    write_vm(writer, config).close()
    (partial,) = names(target.parent)
    assert len(swept) == 1
    assert partial not in swept[0]
    writer.sync()
    writer.commit(True, "tcp:10.0.0.1:6000")
    writer.close()
    assert names(target.parent) == ["vm"]


def test_a_directory_that_somebody_looks_at_is_made_anew(
    target: Path, config: VmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks for leftovers holds the lock for a moment."""
    lock = directory.lock
    held: list[int] = []

    def look_first(fd: int, path: str) -> None:
        if not held:
            (partial,) = target.parent.iterdir()
            held.append(os.open(partial, os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_SH)
        lock(fd, path)

    monkeypatch.setattr(directory, "lock", look_first)
    writer = StoredVmWriter(target)
    os.close(held[0])
    write_vm(writer, config).close()
    writer.discard()
    assert names(target.parent) == []


def test_a_directory_that_is_always_swept_is_given_up(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "lock", lambda *_: directory.sweep_all(str(target.parent)))
    with pytest.raises(StoredVmError, match="swept away again and again"):
        StoredVmWriter(target)
    assert names(target.parent) == []


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


def test_space_that_is_not_there(target: Path) -> None:
    writer = StoredVmWriter(target)
    writer.require_space(0)
    writer.require_space(1 << 20)
    free = os.statvfs(target.parent)
    with pytest.raises(StoredVmError, match=r"\d+ bytes are needed and \d+ are free") as caught:
        writer.require_space((free.f_bavail << 10) * free.f_frsize)
    assert str((free.f_bavail << 10) * free.f_frsize) in str(caught.value)
    writer.close()


def test_documents_have_checksums_at_once(target: Path, config: VmConfig) -> None:
    writer = StoredVmWriter(target)
    writer.configure(config).close()
    writer.write_state(b"state")
    writer.commit(False, "tcp:a:1")
    writer.close()
    with StoredVm.open(target) as stored:
        assert stored.verify() == ("migration_config.json", "state.json")
