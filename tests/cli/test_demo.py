import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from aiomigrate.cli import demo, demo_vm
from aiomigrate.cli.status import ExitStatus
from tests.cli.conftest import Program
from tests.support.image import GuestImage

MIB = 1 << 20


def test_it_moves_a_vm_and_leaves_nothing(program: Program, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = program("demo", "--size", "16MiB", "--connections", "2", env=environment)
    status, out, err = process.end()
    assert (status, err) == (0, "")
    assert out.count(" equal\n") == 2
    assert "Moved 8.0 MiB in " in out
    assert "source: aiomigrate send: 100%" in out
    assert "destination: aiomigrate receive: 100%" in out
    assert "\x1b" not in out
    assert list(tmp_path.iterdir()) == []


def test_the_vm_is_as_it_says(tmp_path: Path) -> None:
    size = 32 * MIB
    demo_vm.make(tmp_path / "vm", size)
    image = GuestImage.of_directory(tmp_path / "vm")
    assert sum(slot.size for slot in image.slots.values()) == size
    assert [mapping.gpa for mapping in image.mappings] == [0, 1 << 32]
    assert sum(len(slot.pages) for slot in image.slots.values()) * 4096 == size // 2
    allocated = sum(path.stat().st_blocks * 512 for path in (tmp_path / "vm").glob("memory-*"))
    assert allocated == size // 2


@pytest.fixture
def unmoved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo whose processes are not started: the destination is a copy with one byte changed."""

    async def move(
        view: object, source: Path, destination: Path, connections: int
    ) -> Mapping[str, Mapping[str, Any]]:
        shutil.copytree(source, destination)
        with (destination / "memory-1").open("r+b") as memory:
            memory.write(b"!")
        report = {"bytes": 1, "duration_s": 1.0, "connections": 1, "downtime_ms": 1.0}
        return {"source": report, "destination": report}

    monkeypatch.setattr(demo, "_move", move)
    monkeypatch.setattr("aiomigrate.cli.demo.signal.signal", lambda *_: None)


@pytest.mark.usefixtures("unmoved")
def test_a_difference_fails_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run("16MiB", 1) is ExitStatus.FAILED
    out = capsys.readouterr().out
    assert out.count(" equal\n") == 1
    assert "memory-1" in out
    assert "DIFFERENT" in out
    assert "The memory differs" in out


@pytest.mark.usefixtures("unmoved")
def test_a_full_disk_is_told_before_anything_is_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10 * MIB))
    assert demo.run("16MiB", 1) is ExitStatus.FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert "10.0 MiB free and 80.0 MiB are needed" in line
    assert "TMPDIR" in line


@pytest.mark.parametrize("size", ["lots", "2 GB", "-1GiB", "15MiB", "0", "3.5GiB", ""])
def test_a_size_that_cannot_be_meant(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run(size, 1) is ExitStatus.USAGE
    assert "--size" in capsys.readouterr().err
