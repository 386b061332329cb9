"""What is not ours is what was written down, and comes with its licence (`make vendor`)."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.web.vendoring import PLACES


@pytest.mark.parametrize("place", PLACES, ids=["package", "tests"])
def test_files_are_the_recorded_ones(place: Path) -> None:
    recorded = {"vendor.json"}
    for package in json.loads((place / "vendor.json").read_text()).values():
        assert package["version"]
        assert package["license"]
        for kept in package["files"].values():
            content = (place / kept["name"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == kept["sha256"], kept["name"]
            recorded.add(kept["name"])
        assert any(kept["name"].endswith("LICENSE") for kept in package["files"].values())
    assert recorded == {path.name for path in place.iterdir()}
