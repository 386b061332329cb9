"""What programs read: docs/reference/files.md names each event that commands print as JSON, with
its members, and docs/how-to/report.md names members of a report.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from aiomigrate import Downtime, Report
from tests.support.snippets import ROOT

PAGE = ROOT / "docs" / "reference" / "files.md"
COMMANDS = ROOT / "aiomigrate" / "cli"
NOT_FOR_OTHERS = {"demo_machine.py"}
"""What the demo's own processes tell it."""
_SPREAD = {"report": "[Report]", "account": "[Account]"}
"""What `**` stands for where one of these is in it, as the page names it."""


def told(source: str) -> Iterator[tuple[str, set[str]]]:
    """Each event that `Output.tell` is called for, with what it is called with."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="tell"), args=[ast.Constant(value=str(event))], keywords=_
            ):
                yield event, {_member(keyword) for keyword in node.keywords}


def _member(keyword: ast.keyword) -> str:
    if keyword.arg is not None:
        return keyword.arg
    spread = ast.unparse(keyword.value)
    return next(link for name, link in _SPREAD.items() if name in spread)


def test_every_event_is_there_with_its_members() -> None:
    events: defaultdict[str, set[str]] = defaultdict(set)
    for file in Path(COMMANDS).glob("*.py"):
        if file.name not in NOT_FOR_OTHERS:
            for event, members in told(file.read_text(encoding="utf-8")):
                events[event] |= members
    events["progress"] = {"[Progress]"}  # by a method of its own, from one place
    table = PAGE.read_text(encoding="utf-8").partition("## JSON lines")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)
    page = {
        event: {
            link or name
            for part in cell.split(";")
            for name, link in re.findall(r"^[^`\[]*(?:`(\w+)`|(\[\w+\]))", part)
        }
        for event, cell in rows
    }
    assert page == events


def test_the_guide_to_reports_names_members_of_one() -> None:
    guide = (ROOT / "docs" / "how-to" / "report.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", guide, re.MULTILINE)
    members = {name for cell in named for name in re.findall(r"`(\w+)`", cell)}
    stages = {field.name for field in fields(Downtime)}
    assert members >= stages
    assert members - stages <= {field.name for field in fields(Report)}
