"""A conversion that is cancelled, killed or failed by its disk leaves all or nothing."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiomigrate import SnapshotKind, convert
from aiomigrate.memory import directory
from aiomigrate.memory.blocks import FilePart
from aiomigrate.memory.stored import StoredVm
from tests.engine.engine_snapshots import exportable, files_of, refused

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
async def vm(tmp_path: Path) -> Path:
    return await exportable(tmp_path)


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
