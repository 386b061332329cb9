"""The container file, as far as it can be followed without building an image."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import Process

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/opt/aiomigrate/bin/python -m pip --disable-pip-version-check "


def instructions(name: str) -> list[str]:
    """What follows a keyword, each time that it comes."""
    text = (ROOT / "deploy" / "Containerfile").read_text().replace("\\\n", "")
    lines = [re.sub(r"\s+", " ", line) for line in text.splitlines()]
    return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


def pip(wanted: str) -> str:
    """The one RUN line that calls pip with `wanted`."""
    (line,) = [line for line in instructions("RUN") if line.startswith(PYTHON) and wanted in line]
    return line.removeprefix(PYTHON)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What the file copies, and nothing else."""
    place = tmp_path / "src"
    for line in instructions("COPY"):
        if line.startswith("--from"):
            continue
        *names, target = line.split()
        for name in names:
            into = place / target / Path(name).name if target.endswith("/") else place / target
            into.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, into, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, into)
    return place


def test_the_locks_are_installed_as_the_makefile_does_it(source: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    (locked,) = re.findall(r"^LOCKED := (.*)$", makefile, re.MULTILINE)
    assert pip("--requirement") == f"{locked} requirements/run.txt"
    assert (source / "requirements" / "run.txt").is_file()


def test_what_is_copied_is_all_that_installing_needs(source: Path, tmp_path: Path) -> None:
    *options, what = pip(" .").split()
    target = tmp_path / "target"
    subprocess.run(
        [sys.executable, "-m", "pip", *options, "--quiet", "--target", target, what],
        cwd=source,
        check=True,
    )
    there = {path.relative_to(target) for path in target.rglob("*.py")}
    assert {path.relative_to(ROOT) for path in (ROOT / "aiomigrate").rglob("*.py")} <= there
    (entry,) = instructions("ENTRYPOINT")
    assert (target / "bin" / Path(json.loads(entry)[0]).name).is_file()


def test_its_python_is_supported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for image in instructions("FROM"):
        version = re.match(r"docker\.io/library/python:(\d+\.\d+)-slim", image)
        assert version
        assert f"Programming Language :: Python :: {version[1]}" in project["classifiers"]


def test_it_starts_with_what_it_has_made(tmp_path: Path) -> None:
    """The command line, with the directories that are made for it, elsewhere."""
    (made,) = [line for line in instructions("RUN") if line.startswith("install -d ")]
    for directory in made.split():
        if directory.startswith("/"):
            (tmp_path / directory[1:]).mkdir(parents=True)
    for volume in json.loads(instructions("VOLUME")[0]):
        assert (tmp_path / volume[1:]).is_dir()
    (command,) = instructions("CMD")
    arguments = [
        str(tmp_path / one[1:]) if one.startswith("/") else one for one in json.loads(command)
    ]
    cache = dict(line.split("=") for line in instructions("ENV"))["XDG_CACHE_HOME"]
    assert (tmp_path / cache[1:] / "aiomigrate").is_dir()
    with Process(*arguments, cwd=tmp_path) as service:
        assert service.address() == f"unix:{tmp_path}/run/aiomigrate/api.sock"
        service.signal(signal.SIGTERM)
        assert service.end()[0] == 0
