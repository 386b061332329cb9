"""Whether compiled kernels are there, for each module that has some."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from aiomigrate.cli import kernels

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "aiomigrate"
MODULES = sorted(
    ".".join(path.relative_to(SOURCES).with_suffix("").parts)
    for path in SOURCES.rglob("*.py")
    if "\n@compiled(" in path.read_text(encoding="utf-8")
)


@pytest.fixture(params=["digest", "time and size"])
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds a kernel of each module as it is now, by numba's ways of saying that."""
    monkeypatch.setattr(kernels, "cache_directory", lambda: tmp_path)
    for module in MODULES:
        source = SOURCES.joinpath(*module.split(".")).with_suffix(".py")
        by_time = (source.stat().st_mtime, source.stat().st_size)
        by_digest = hashlib.sha256(source.read_bytes()).digest()
        write(index(tmp_path, module), by_digest if request.param == "digest" else by_time)
    return tmp_path


def write(path: Path, stamp: object) -> None:
    """An index as numba writes it, with an object of a type of its own for a signature."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps("0.68.1") + pickle.dumps((stamp, {Path("int64"): "a.nbc"})))


def index(cache: Path, module: str) -> Path:
    room, _, name = module.partition(".")
    return cache / room / f"{name}.some-1.py311.nbi"


def test_kernels_of_every_module_make_it_warm(cache: Path) -> None:
    assert set(MODULES) == set(kernels.ALL)
    assert {module for module in MODULES if module.startswith("memory.")} == set(kernels.ENGINE)
    assert kernels.are_warm()
    assert kernels.are_warm(kernels.ALL)


def test_the_demos_guest_is_no_business_of_a_migration(cache: Path) -> None:
    index(cache, "tiny_vmm.thread_cpu").unlink()
    assert kernels.are_warm()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_without_kernels_in_the_cache_is_cold(cache: Path, module: str) -> None:
    index(cache, module).unlink()
    assert not kernels.are_warm(kernels.ALL)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("stamp", [b"another", (1.5, 1)])
def test_a_module_that_has_changed_since_is_cold(cache: Path, module: str, stamp: object) -> None:
    write(index(cache, module), stamp)
    assert not kernels.are_warm(kernels.ALL)


def test_a_checkout_that_is_newer_than_its_kernels_is_warm(cache: Path) -> None:
    """Numba takes the kernels of the same source, whenever they were compiled."""
    for module in MODULES:
        os.utime(index(cache, module), (1, 1))
    assert kernels.are_warm(kernels.ALL)


def test_a_damaged_index_is_cold_and_runs_no_code(cache: Path) -> None:
    index(cache, MODULES[0]).write_bytes(b"\x80\x05nonsense")
    assert not kernels.are_warm(kernels.ALL)
    index(cache, MODULES[0]).write_bytes(b"cos\n_exit\n(I7\ntR.")
    assert not kernels.are_warm(kernels.ALL)


def test_what_numba_writes_is_understood(tmp_path: Path) -> None:
    """In a process of its own: a cache that is cold, and warm after that."""
    program = [sys.executable, "-m", "aiomigrate.cli", "warm-up"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for said in ("kernels compiled in", "kernels were there already, loaded in"):
        done = subprocess.run(
            program, check=True, capture_output=True, text=True, cwd=ROOT, env=environment
        )
        assert done.stdout.startswith(said)
