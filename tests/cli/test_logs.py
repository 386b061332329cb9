"""Log lines: for a machine each has what it is about, and no secret."""

import json
import logging
from pathlib import Path

import pytest

from aiomigrate import ReceiveOptions, SendOptions, receive, send
from aiomigrate.cli.logs import LogFormat, configure
from tests.support.vms import Guest, Landing


@pytest.fixture
def as_json() -> None:
    """Before there is a loop, as programs do."""
    configure(LogFormat.JSON, 2)


async def test_every_line_of_a_migration_says_which(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, as_json: None
) -> None:
    tokens = []
    with Guest() as guest, Landing() as landing:
        async with receive(landing, "tcp:127.0.0.1:0", ReceiveOptions(journal=tmp_path)) as taken:
            options = SendOptions(journal=tmp_path, connections=2)
            async with send(guest, str(taken.address), options) as migration:
                await migration.result()
                tokens.append(migration._sending._token.hex())
            await taken.result()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines
    for line in lines:
        assert set(line) >= {"event", "level", "logger", "timestamp"}
        assert set(line) >= {"migration", "connection", "phase"}, line
        assert not any(token in json.dumps(line) for token in tokens)
    assert migration.id in {line["migration"] for line in lines}


def test_what_a_record_says_of_itself_counts(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogFormat.JSON, 1)
    about = {"migration": "m", "connection": "-", "phase": "done"}
    logging.getLogger("aiomigrate.api").info("it is done", extra={**about, "other": "x"})
    line = json.loads(capsys.readouterr().err)
    assert {name: line[name] for name in about} == about
    assert "other" not in line


def test_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogFormat.HUMAN, 1)
    logging.getLogger("aiomigrate").info("hello")
    assert "hello" in capsys.readouterr().err


def test_outside_of_a_migration_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogFormat.JSON, 0)
    logging.getLogger("aiomigrate").warning("hello")
    assert "migration" not in json.loads(capsys.readouterr().err)
