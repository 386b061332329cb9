"""Where kernels are cached, and that none of it can stop a program."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numba
import pytest

from aiomigrate.memory import numba_cache
from aiomigrate.memory.numba_cache import cache_directory, compiled

ROOT = Path(numba_cache.__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Each test chooses anew, in an environment of its own."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(numba_cache, "__file__", str(tmp_path / "package" / "numba_cache.py"))
    cache_directory.cache_clear()
    numba_cache._go_without.cache_clear()
    yield
    cache_directory.cache_clear()
    numba_cache._go_without.cache_clear()


def test_the_user_s_choice_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "chosen"))
    assert cache_directory() == tmp_path / "chosen"


def test_then_the_user_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_directory() == tmp_path / "xdg" / "aiomigrate" / "numba"
    assert (tmp_path / "xdg" / "aiomigrate" / "numba").stat().st_mode & 0o777 == 0o700
    cache_directory.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == tmp_path / "home" / ".cache" / "aiomigrate" / "numba"


@pytest.mark.parametrize("home", ["relative", "/proc/nowhere"])
def test_then_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/nowhere")
    assert cache_directory() == tmp_path / "package" / "__pycache__" / "numba"


def test_a_uid_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert cache_directory() == tmp_path / "package" / "__pycache__" / "numba"


def test_a_directory_that_others_may_write_to_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "xdg" / "aiomigrate" / "numba").mkdir(parents=True)
    (tmp_path / "xdg" / "aiomigrate" / "numba").chmod(0o777)
    assert cache_directory() == tmp_path / "package" / "__pycache__" / "numba"


def test_nowhere_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(numba_cache, "__file__", "/proc/nowhere/numba_cache.py")
    with caplog.at_level(logging.WARNING):
        assert cache_directory() is None
        assert cache_directory() is None
        assert compiled("int64(int64)")(one_more)(1) == 2
    assert [record.message for record in caplog.records] == [
        (
            "kernels are compiled at each start, without a cache: "
            "no directory for it is writable; set NUMBA_CACHE_DIR to one"
        )
    ]


def one_more(number: int) -> int:
    return number + 1


def test_numba_s_configuration_is_left_as_it_was(tmp_path: Path) -> None:
    config = import_module("numba").config
    before = config.CACHE_DIR
    assert compiled("int64(int64)")(one_more)(1) == 2
    assert before == config.CACHE_DIR
    assert list((tmp_path / "xdg" / "aiomigrate" / "numba").rglob("*.nbc"))


def test_damaged_caches_cost_only_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiled("int64(int64)")(one_more)
    for file in (tmp_path / "xdg").rglob("*.nb?"):
        file.write_bytes(b"\x80damaged")
    with caplog.at_level(logging.WARNING):
        assert compiled("int64(int64)")(one_more)(2) == 3
    assert "cannot be used" in caplog.text


def test_a_kernel_that_does_not_compile_still_raises() -> None:
    with pytest.raises(numba.TypingError):
        compiled("int64(unicode_type)")(one_more)


@pytest.fixture
def install() -> Iterator[Path]:
    """The package alone, readable by all, writable by none (but root)."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(
            ROOT / "aiomigrate",
            Path(name, "aiomigrate"),
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        directories = [Path(name), *(path for path in Path(name).rglob("*") if path.is_dir())]
        for path in directories:
            path.chmod(0o555)
        yield Path(name)
        for path in directories:
            path.chmod(0o755)


def test_another_user_without_home_and_a_read_only_install(install: Path) -> None:
    """The whole module is compiled and works, and says once that it has no cache.

    numba is loaded before the change of user, who need not be able to read this environment.
    """
    script = (
        "import logging, os, numba; logging.basicConfig(); numba.njit('i8(i8)')(lambda n: n)\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "from aiomigrate.memory.ranges import make_table, split\n"
        "print(split(make_table([(0, 3)]), 2).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(install), "HOME": "/nonexistent"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "[(0, 2), (2, 1)]", done.stderr
    assert done.stderr.count("without a cache") == 1
    assert not list(install.rglob("*.nbc"))
