from pathlib import Path

import pytest

from aiomigrate.protocol.extensions import EXTENSION_OF, EXTENSIONS
from aiomigrate.protocol.wire import Command, command_name
from docs.make_protocol_extensions import PAGE, main, render


def test_the_page_is_what_the_table_says() -> None:
    stale = "docs/protocol-extensions.md is stale: run `python -m docs.make_protocol_extensions`"
    assert PAGE.read_text(encoding="utf-8") == render(), stale


def test_every_extension_and_every_request_is_there() -> None:
    page = render()
    for bit, extension in enumerate(EXTENSIONS):
        assert extension == 1 << bit
        assert f"\n| {bit} | {extension.name} |" in page
        assert f"\n## {extension.name}\n" in page
    assert "\n| 1 | RETIRE_LANE | SESSION |" in page
    assert "\n| 4 | ZERO_RUNS | nothing |" in page
    for command in Command:
        row = f"\n| {command_name(command)} | {command:#06x} |"
        assert (row in page) == (command >= 0x8000)


def test_every_request_from_0x8000_up_belongs_to_an_extension() -> None:
    assert set(EXTENSION_OF) == {command for command in Command if command >= 0x8000}


def test_main_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr("docs.make_protocol_extensions.PAGE", page)
    main()
    assert page.read_text(encoding="utf-8") == render()
