import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from aiomigrate.protocol import Command, ownership, tables
from aiomigrate.protocol.extensions import EXTENSION_OF
from aiomigrate.protocol.wire import command_name
from docs.make_protocol_states import PAGE, main, render


def test_the_page_is_what_the_tables_say() -> None:
    stale = "docs/protocol-states.md is stale: run `python -m docs.make_protocol_states`"
    assert PAGE.read_text(encoding="utf-8") == render(), stale


def test_every_transition_is_in_a_diagram_and_in_a_table() -> None:
    page = render()
    every: list[Mapping[tuple[Any, Any], Enum]] = [
        tables.DESTINATION_MAIN,
        tables.SOURCE_MAIN,
        tables.DESTINATION_LANE,
        tables.SOURCE_LANE,
        tables.SOURCE_QUERY,
        tables.SOURCE_FAULT,
        tables.DESTINATION_FAULT,
        ownership.SOURCE_OWNERSHIP,
        ownership.DESTINATION_OWNERSHIP,
    ]
    rows = re.findall(r"^\| [A-Z]\w+ \| [\w ]+ \| \w+ \|$", page, re.MULTILINE)
    arrows = re.findall(r"^    [A-Z]\w+ --> \w+ : (.+)$", page, re.MULTILINE)
    total = sum(len(table) for table in every)
    assert page.count("stateDiagram-v2") == len(every)
    assert len(rows) == total
    assert sum(len(labels.split(", ")) for labels in arrows) == total
    assert "| Configured | MemoryFd |" not in page
    named = re.search(r"^([\w, ]+ and \w+) have their arrows only", page, re.MULTILINE)
    assert named is not None
    extended = [command_name(command) for command in Command if command in EXTENSION_OF]
    assert sorted(re.split(r", | and ", named[1])) == sorted(extended)
    assert "| MemoryFdsReceived | MemoryFd | TakingFd |" in page
    assert "    StateReceived --> Completing : Complete, CompletePaused" in page


def test_main_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr("docs.make_protocol_states.PAGE", page)
    main()
    assert page.read_text(encoding="utf-8") == render()
