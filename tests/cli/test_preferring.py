"""`send --prefer`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from aiomigrate.cli.app import app


@pytest.mark.parametrize(
    ("more", "downtime"),
    [
        ((), "by 50 % at the most, a downtime of 100 ms"),
        (("--downtime-ms", "7", "--throttle-cap", "9"), "by 9 % at the most, a downtime of 7 ms"),
    ],
)
def test_it_says_what_it_chose(tmp_path: Path, more: tuple[str, ...], downtime: str) -> None:
    """And an option that was given stays."""
    arguments = ["send", str(tmp_path / "nowhere"), "tcp:127.0.0.1:1", "--prefer", "downtime"]
    done = CliRunner().invoke(app, [*arguments, *more])
    assert done.exit_code == 2
    chosen = done.stderr.splitlines()[0]
    assert chosen.startswith("aiomigrate: preferring downtime: chunks of 4 MiB")
    assert chosen.endswith(downtime)


def test_a_preference_that_is_none(tmp_path: Path) -> None:
    arguments = ["send", str(tmp_path), "tcp:127.0.0.1:1", "--prefer", "everything"]
    assert CliRunner().invoke(app, arguments).exit_code == 2
