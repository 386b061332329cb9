"""A directory that others look at or sweep away while a VM is being stored is made anew."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from aiomigrate.memory import directory
from aiomigrate.memory.errors import StoredVmError
from aiomigrate.memory.map import VmConfig
from aiomigrate.memory.storing import StoredVmWriter
from tests.memory.memory_storing import names, write_vm


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
