import subprocess
import sys
from pathlib import Path

from tests.support.captures import unpack_file


def convert(*arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aiomigrate.cli", "convert", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_there_and_back(tmp_path: Path) -> None:
    source, vm, back = unpack_file(tmp_path), tmp_path / "vm", tmp_path / "back"
    done = convert(source, vm)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"aiomigrate: {vm}: a stored VM of {source}\n"
    done = convert(vm, back)
    assert (done.returncode, done.stderr) == (
        0,
        f"aiomigrate: {back}: a file:// snapshot of {vm}\n",
    )
    for name in ("config.json", "state.json", "memory-ranges"):
        assert (back / name).read_bytes() == (source / name).read_bytes()

    again = convert(source, vm)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"aiomigrate: stored VM {vm}: the path exists already\n"


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    done = convert(tmp_path, tmp_path / "vm")
    assert done.returncode == 2
    assert "has neither of migration_config.json and config.json" in done.stderr
