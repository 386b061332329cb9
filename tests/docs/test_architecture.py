"""docs/architecture.md names modules that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = set(re.findall(r"aiomigrate/[\w/]+\.py", (ROOT / "docs" / "architecture.md").read_text()))


def test_every_module_that_is_named_exists() -> None:
    assert NAMED
    assert [name for name in sorted(NAMED) if not (ROOT / name).is_file()] == []
