"""Whether compiled kernels are there, for each module that has some."""

import os
from pathlib import Path

import pytest

from aiomigrate.cli import kernels

SOURCES = Path(__file__).resolve().parents[2] / "aiomigrate" / "memory"
MODULES = sorted(
    path.stem for path in SOURCES.glob("*.py") if "\n@compiled(" in path.read_text(encoding="utf-8")
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds a kernel of each module, compiled just now."""
    monkeypatch.setattr(kernels, "cache_directory", lambda: tmp_path)
    (tmp_path / "memory").mkdir()
    for module in MODULES:
        (tmp_path / "memory" / f"{module}.some-1.py311.nbi").touch()
    return tmp_path / "memory"


def test_kernels_of_every_module_make_it_warm(cache: Path) -> None:
    assert MODULES
    assert kernels.are_warm()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_without_kernels_in_the_cache_is_cold(cache: Path, module: str) -> None:
    (cache / f"{module}.some-1.py311.nbi").unlink()
    assert not kernels.are_warm()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_that_has_changed_since_is_cold(cache: Path, module: str) -> None:
    changed = (SOURCES / f"{module}.py").stat().st_mtime
    os.utime(cache / f"{module}.some-1.py311.nbi", (changed - 1, changed - 1))
    assert not kernels.are_warm()
