"""The pictures of the terminal in docs/pictures/, and how they are made."""

import json
import re
import shutil
from pathlib import Path

import pytest

from docs.make_terminal_pictures import PICTURES, Screen, draw
from tests.cli.test_reports import REPORT, told

NAMES = ("demo-running", "demo-finished", "demo-not-converging", "report", "send", "watch")


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_there_and_refers_to_no_other_host(name: str) -> None:
    picture = (PICTURES / f"{name}.svg").read_text()
    assert picture.startswith("<svg ")
    assert "aiomigrate" in picture
    assert set(re.findall(r"\w+://[^\"')\s]+", picture)) == {"http://www.w3.org/2000/svg"}


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux (Debian's package tmux)")
def test_what_a_real_terminal_shows_becomes_a_picture(tmp_path: Path) -> None:
    (tmp_path / "moved.json").write_text(json.dumps(told(REPORT)))
    with Screen("aiomigrate report moved.json", 50, tmp_path) as screen:
        picture = draw(screen.until("Warnings\n  careful"), "aiomigrate: report")
    words = re.sub(r"<[^>]*>", "", picture).replace("&#160;", " ")
    assert "The VM is with the destination, and runs there." in words
    assert "█" in words
    assert "fill: #68a0b3" in picture, "the cyan of a phase"
