"""A test that a page names, in backquotes, is there, and there is one of that name only."""

import re
from collections import Counter

from tests.support.snippets import ROOT, pages

_NAMED = re.compile(r"`(test_\w+|tests/[\w/]+\.py)`")
_DEFINED = re.compile(r"def (test_\w+)\(")


def there() -> Counter[str]:
    """The modules below tests/, and the names of all tests."""
    found: Counter[str] = Counter()
    for file in (ROOT / "tests").rglob("*.py"):
        found[str(file.relative_to(ROOT))] += 1
        found.update(_DEFINED.findall(file.read_text(encoding="utf-8")))
    return found


def test_each_test_that_a_page_names_is_there_once() -> None:
    count = there()
    assert [
        f"{page.relative_to(ROOT)}: {count[name]} are called {name}"
        for page in pages()
        for name in _NAMED.findall(page.read_text(encoding="utf-8"))
        if count[name] != 1
    ] == []


def test_each_invariant_and_each_guarantee_names_one() -> None:
    explanation = ROOT / "docs" / "explanation"
    rules = (explanation / "invariants.md").read_text(encoding="utf-8").split("\n## ")[1:-1]
    assert len(rules) > 5
    assert [rule.partition("\n")[0] for rule in rules if not _NAMED.search(rule)] == []
    guarantees = (explanation / "guarantees.md").read_text(encoding="utf-8")
    promised, shown = (
        [row for row in section.splitlines() if row.startswith("| ")][2:]
        for section in guarantees.split("\n## ")[:2]
    )
    assert len(shown) == len(promised)
    assert [row for row in shown if not _NAMED.search(row)] == []
