import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from aiomigrate.protocol import Command, ownership, tables
from aiomigrate.protocol.extensions import EXTENSION_OF
from aiomigrate.protocol.wire import command_name
from docs.make_protocol_states import PAGE, PICTURES, SECTIONS, Section, main, render
from docs.state_diagrams import arrows

STALE = "docs/protocol-states.md is stale: run `python -m docs.make_protocol_states`"
EVERY: list[Mapping[tuple[Any, Any], Enum]] = [
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


def test_the_page_is_what_the_tables_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), STALE


def test_every_table_has_its_section() -> None:
    assert [section.table for section in SECTIONS] == EVERY


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.picture)
def test_a_picture_shows_every_transition_and_no_other(section: Section) -> None:
    shown = arrows((PICTURES / section.picture).read_text(encoding="utf-8"))
    assert shown == section.arrows(), STALE
    labels = [label for text in shown.values() for label in text.split(", ")]
    assert len(labels) == len(section.table)


def test_every_transition_is_a_row() -> None:
    page = render()
    rows = re.findall(r"^\| [A-Z]\w+ \| [\w ]+ \| \w+ \|$", page, re.MULTILINE)
    assert len(rows) == sum(len(table) for table in EVERY)
    assert "| Configured | MemoryFd |" not in page
    assert "| MemoryFdsReceived | MemoryFd | TakingFd |" in page


def test_extensions_are_named() -> None:
    named = re.search(r"^([\w, ]+ and \w+) have their arrows only", render(), re.MULTILINE)
    assert named is not None
    extended = [command_name(command) for command in Command if command in EXTENSION_OF]
    assert sorted(re.split(r", | and ", named[1])) == sorted(extended)


def test_main_writes_the_page_and_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("docs.make_protocol_states.PAGE", tmp_path / "page.md")
    monkeypatch.setattr("docs.make_protocol_states.PICTURES", tmp_path / "pictures")
    main()
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == render()
    for section in SECTIONS:
        picture = (tmp_path / "pictures" / section.picture).read_text(encoding="utf-8")
        assert arrows(picture) == section.arrows()
        assert "prefers-color-scheme: dark" in picture
