"""A report as one HTML file: what is in it, and what Chromium makes of it without any network."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from aiomigrate.cli.text import size_text
from aiomigrate.web import render_html
from tests.web.browser import PHONE, WIDE, Browser
from tests.web.guests import FOREVER, Pair

BREAKING = "a</script><script>document.title = 'broken'</script><!-- <img src=x> & \"' –"
DATA = re.compile(r'<script type="application/json" id="report">(.*?)</script>', re.DOTALL)


def account(**others: Any) -> dict[str, Any]:
    """Of one that moved nothing yet."""
    return {
        "duration_s": 0.0,
        "bytes": 0,
        "zero_bytes": 0,
        "iterations": 1,
        "connections": 1,
        "lanes_lost": 0,
        "warnings": [],
        "decisions": [],
        "history": {"samples": [], "iterations": [], "phases": []},
        **others,
    }


def rendered(**others: Any) -> str:
    """A report that has `others` in it."""
    told: dict[str, Any] = {"title": "", "owner": "source", "error": "", "report": None}
    return render_html(**{**told, "account": account(), **others})


def test_what_is_told_cannot_end_what_it_is_in() -> None:
    page = rendered(title=BREAKING, error=BREAKING, account=account(warnings=[BREAKING]))
    assert page.count("</script>") == 3
    (data,) = DATA.findall(page)
    assert "<" not in data
    told = json.loads(data)
    assert (told["title"], told["error"], told["account"]["warnings"]) == (
        BREAKING,
        BREAKING,
        [BREAKING],
    )


def test_what_is_not_known_is_null() -> None:
    (data,) = DATA.findall(rendered(account=account(duration_s=float("inf"), bytes=float("nan"))))
    told = json.loads(data)["account"]
    assert (told["duration_s"], told["bytes"]) == (None, None)


def test_scripts_are_put_together_without_imports() -> None:
    page = rendered()
    assert not re.search(r"^(import|export) ", page, re.MULTILINE)
    assert "http" not in re.sub(r"https?://github.com/leeoniya/uPlot|http-equiv", "", page)


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_of_a_migration_that_was(
    browser: Browser, guests: Pair, tmp_path: Path, size: tuple[int, int]
) -> None:
    guests.send(**FOREVER, connections=2)
    while guests.source.get("vm.migration")["progress"]["iteration"] < 2:
        pass
    guests.source.put("vm.tune-migration", switch_over_now=True)
    while (sent := guests.source.get("vm.migration"))["ended"] is None:
        pass
    report = sent["report"]
    path = tmp_path / "report.html"
    title, owner = "sent web-1", report["owner"]
    path.write_text(render_html(title=title, owner=owner, error="", report=report, account=None))
    browser.open(f"file://{path}")
    assert browser.text(".owner") == "The destination has the VM, and the guest runs there."
    assert browser.tiles()["Moved"] == size_text(report["bytes"])
    assert len(browser.driver.find_elements("css selector", ".plot canvas")) == 4
    rows = browser.driver.find_elements("css selector", "section.part:nth-of-type(3) tbody tr")
    assert len(rows) == len(report["history"]["iterations"])
    for scheme in ("light", "dark"):
        browser.look(scheme=scheme, size=size)
        assert browser.violations() == []
    width = browser.driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= size[0]
    assert browser.asked() == {"file://"}
    assert browser.complaints() == []


def test_much_that_happened_stays_in_its_place(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(rendered(account=account(warnings=[f"warning {n}" for n in range(100)])))
    browser.open(f"file://{path}")
    script = """return [...document.querySelectorAll(".part:not([hidden])")].map(
        (part) => [part.scrollHeight, part.clientHeight])"""
    for needed, there in browser.driver.execute_script(script):
        assert needed <= there < WIDE[1]
    assert browser.violations() == []


@pytest.mark.parametrize(
    ("owner", "state", "sentence"),
    [
        ("source", "failed", "The source has the VM"),
        ("unknown", "outcome unknown", "It is not known who has the VM"),
        (None, "running", "The source has the VM"),
    ],
)
def test_of_one_that_failed(
    browser: Browser, tmp_path: Path, owner: str | None, state: str, sentence: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(rendered(title=BREAKING, owner=owner, error=BREAKING))
    browser.open(f"file://{path}")
    assert browser.text(".head .state") == state
    assert browser.text("h2") == BREAKING
    assert browser.text(".head .error span") == BREAKING
    assert browser.text(".owner").startswith(sentence)
    assert browser.driver.title == f"{BREAKING} – aiomigrate"
    assert browser.violations() == []
    assert browser.complaints() == []


@pytest.mark.parametrize(
    ("phase", "sentence"),
    [
        ("switchover", "The source has the VM. Its guest is paused"),
        ("completing", "The VM is changing hands"),
        ("serving", "The destination has the VM."),
        ("failed", "It has ended early. Who has the VM is told once"),
    ],
)
def test_of_one_that_had_not_ended_when_it_was_saved(
    browser: Browser, tmp_path: Path, phase: str, sentence: str
) -> None:
    path = tmp_path / "report.html"
    phases = [{"phase": "connecting", "at_s": 0.0}, {"phase": phase, "at_s": 1.0}]
    history = {"samples": [], "iterations": [], "phases": phases}
    path.write_text(rendered(owner=None, account=account(history=history)))
    browser.open(f"file://{path}")
    assert browser.text(".owner").startswith(sentence)
    assert browser.complaints() == []
