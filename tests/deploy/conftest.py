"""The units of deploy/ as a test reads them, and the places that they name."""

import shlex
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PROGRAM = "/opt/aiomigrate/bin/aiomigrate"
COMMAND = [sys.executable, "-m", "aiomigrate.cli"]


def settings(unit: str, name: str) -> list[str]:
    """All values of a setting, in order; an empty one takes back those before."""
    values: list[str] = []
    for line in (DEPLOY / unit).read_text().replace("\\\n", "").splitlines():
        key, _, value = line.partition("=")
        if key == name:
            values = [*values, value] if value else []
    return values


def executed(unit: str, name: str, place: Path) -> list[str]:
    """A command line of a unit, its specifiers below `place`."""
    (line,) = settings(unit, name)
    for specifier, directory in (("%t", "run"), ("%S", "state"), ("%d", "credentials")):
        line = line.replace(specifier, str(place / directory))
    program, *arguments = shlex.split(line)
    assert program == PROGRAM
    return COMMAND + arguments


@pytest.fixture
def api_socket(tmp_path: Path) -> Path:
    """Where the socket unit listens, with the directories that systemd makes for the service."""
    (listens_at,) = settings("aiomigrate.socket", "ListenStream")
    path = Path(listens_at.replace("%t", str(tmp_path / "run")))
    path.parent.mkdir(parents=True)
    for directory in settings("aiomigrate.service", "StateDirectory")[0].split():
        (tmp_path / "state" / directory).mkdir(parents=True)
    return path
