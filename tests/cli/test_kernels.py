"""Whether compiled kernels are there, for each module that has some."""

import os
from pathlib import Path

import pytest

from aiomigrate.cli import kernels

SOURCES = Path(__file__).resolve().parents[2] / "aiomigrate"
MODULES = sorted(
    ".".join(path.relative_to(SOURCES).with_suffix("").parts)
    for path in SOURCES.rglob("*.py")
    if "\n@compiled(" in path.read_text(encoding="utf-8")
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds a kernel of each module, compiled just now."""
    monkeypatch.setattr(kernels, "cache_directory", lambda: tmp_path)
    for module in MODULES:
        index(tmp_path, module).parent.mkdir(exist_ok=True)
        index(tmp_path, module).touch()
    return tmp_path


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
def test_a_module_that_has_changed_since_is_cold(cache: Path, module: str) -> None:
    changed = SOURCES.joinpath(*module.split(".")).with_suffix(".py").stat().st_mtime
    os.utime(index(cache, module), (changed - 1, changed - 1))
    assert not kernels.are_warm(kernels.ALL)
