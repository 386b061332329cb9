"""docs/probe.md has a section for each group of checks, and for no other."""

from pathlib import Path

from aiomigrate.probing import plan
from aiomigrate.transport import parse_address

PAGE = Path(__file__).parents[2] / "docs" / "probe.md"


def test_every_group_has_its_section() -> None:
    titles = [line[3:] for line in PAGE.read_text().splitlines() if line.startswith("## ")]
    checks = plan(parse_address("tcp:localhost:1"))
    groups = dict.fromkeys(check.name.partition("/")[0] for check in checks)
    assert titles == ["How to run it", *groups]
    assert {check.source for check in checks} == {f"docs/probe.md#{group}" for group in groups}


def test_names_are_unique() -> None:
    names = [check.name for check in plan(parse_address("tcp:localhost:1"))]
    assert len(set(names)) == len(names)
