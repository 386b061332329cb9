"""What is imported when, and what the program needs of its surroundings."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import aiomigrate
from tests.cli.conftest import ROOT
from tests.support.peer import Peer

HEAVY = {"numba", "uvloop", "rich", "typer", "aiohttp"}


def imported(*arguments: str) -> set[str]:
    """The top-level packages that a Python process imports."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_the_package_imports_nothing_heavy() -> None:
    found = imported("-c", "import aiomigrate")
    assert "aiomigrate" in found
    assert found & (HEAVY | {"numpy", "asyncio", "structlog"}) == set()


def test_help_loads_no_engine() -> None:
    found = imported("-m", "aiomigrate.cli", "--help")
    assert "typer" in found
    assert found & {"numba", "numpy", "uvloop", "aiohttp"} == set()


def test_without_the_extra_it_says_what_is_missing() -> None:
    code = "import sys; sys.modules['typer'] = None; from aiomigrate.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 1
    assert result.stderr == (
        "aiomigrate: the command line needs typer, which is not installed: "
        "pip install 'aiomigrate[cli]'\n"
    )


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root and setpriv to become another user",
)
def test_another_user_without_home_and_cache(vm: Path, tmp_path: Path) -> None:
    install = tmp_path / "install"
    package = Path(aiomigrate.__file__).parent
    shutil.copytree(package, install / "aiomigrate", ignore=shutil.ignore_patterns("__pycache__"))
    # nobody, who may read all (the interpreter can be in somebody's home) and write nothing here.
    nobody = [
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
        "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
    ]  # fmt: skip

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*nobody, sys.executable, "-m", "aiomigrate.cli", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(install)},
        )

    warming = run("warm-up")
    assert warming.returncode == 1
    assert "set NUMBA_CACHE_DIR" in warming.stderr.splitlines()[-1]
    # It may not note in the directory that it gives the VM away, so that it has one of its own.
    shutil.chown(vm, 65534)
    vm.chmod(0o700)
    for file in vm.iterdir():
        shutil.chown(file, 65534)
    with Peer(timeout=90) as peer:  # it compiles for some seconds first
        sending = run("send", str(vm), peer.address, "--progress", "none")
        assert (sending.returncode, sending.stdout) == (0, ""), sending.stderr
        assert peer.finished() == "paused"
    journal, kernels = sending.stderr.splitlines()
    assert "no journal is kept" in journal
    assert "kernels are compiled at each start, without a cache" in kernels
