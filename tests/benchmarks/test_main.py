"""`python -m benchmarks`: every script has its turn, whatever becomes of the others."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Some scripts that end in each way; and whether the pages were made."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "good.py").write_text("print('measured')\n")
    (package / "lacking.py").write_text("raise SystemExit(77)\n")
    (package / "bad.py").write_text("raise OSError('no')\n")
    (package / "endless.py").write_text("import signal\nsignal.pause()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "NAMES", ("bad", "lacking", "good"))
    pages: list[str] = []
    monkeypatch.setattr(command, "make_pages", lambda: pages.append("made"))
    return pages


def test_each_has_its_turn(
    made: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    assert command.main() == 1
    told = capfd.readouterr().out
    assert "measured" in told
    for end in ("bad: failed, status 1 (", "lacking: skipped (", "good: done ("):
        assert told.count(end) == 2, end
    assert made == ["made"]


def test_only_what_is_named(
    made: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "lacking", "good"])
    assert command.main() == 0
    assert "bad" not in capfd.readouterr().out


def test_what_takes_too_long_is_broken_off(
    made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "LIMIT_S", 0.5)
    assert command.run("endless") == "broken off after 0.5 s"


def test_a_name_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "lopback"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert "no lopback; there are import_time, loopback," in capsys.readouterr().err


@pytest.mark.parametrize("name", command.NAMES)
def test_every_name_is_a_script_that_explains_itself(name: str) -> None:
    """Its arguments are parsed before it measures anything."""
    text = (ROOT / "benchmarks" / f"{name}.py").read_text()
    assert f"python -m benchmarks.{name}" in text
    assert f'"benchmarks.{name}"' in text


def test_a_script_that_lacks_something_is_skipped() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loopback"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PATH": "/nonexistent"},
    )
    assert (done.returncode, done.stderr) == (77, "skipped: iperf3 is not installed\n")
