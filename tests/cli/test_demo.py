import json
import re
import sys
from collections.abc import Callable

import pytest

from aiomigrate.cli import demo
from aiomigrate.cli.demo_view import JsonDemo, PlainDemo
from aiomigrate.cli.status import ExitStatus
from tests.cli.conftest import Program
from tests.cli.test_live import event

MIB = 1 << 20

FAKE = """
import json, sys
def tell(event, **members):
    print(json.dumps({"event": event, **members}), flush=True)
if sys.argv[1] == "boot":
    tell("running", pid=1)
    for number in range(1, 21):
        tell("serial", line=f"{number:08x}")
    sys.stdin.readline()
    figures = {"bytes": 1, "duration_s": 1.0, "connections": 1, "downtime_ms": 1.0}
    tell("report", **figures, downtime={}, limited_by=None)
else:
    tell("listening", address="tcp:nowhere", pid=2)
    tell("report")
    SCRIPT
sys.stdin.read()
"""
"""Machines of which the source counts from 1 to 20; SCRIPT is what the destination tells then."""
COUNT = "[tell('serial', line=f'{n:08x}') for n in range(BEGIN, 100)]"


def test_it_moves_a_guest_that_says_what_came_of_it(program: Program) -> None:
    status, out, err = program("demo", "--size", "16MiB", "--connections", "2").end()
    assert (status, err) == (0, "")
    assert "source: 100%" in out
    assert "destination: 100%" in out
    assert re.search(r"over [12] connections?, downtime ", out)  # one lane may have been quicker
    assert "Of the downtime, in ms: pause " in out
    assert "It has looked at each of its 3,840 pages there" in out
    assert "\x1b" not in out


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have the demo start processes that only tell what the test says."""
    monkeypatch.setattr("aiomigrate.cli.demo.signal.signal", lambda *_: None)

    def script(told: str) -> None:
        program = FAKE.replace("SCRIPT", told)
        monkeypatch.setattr(demo, "_MACHINE", (sys.executable, "-c", program))
        monkeypatch.setattr(demo, "_WARM_UP", (sys.executable, "-c", ""))

    return script


def test_the_fake_ones_would_do(fake: Callable[[str], None]) -> None:
    fake(COUNT.replace("BEGIN", "21"))
    assert demo.run("16MiB", 1) is ExitStatus.DONE


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        (COUNT.replace("BEGIN", "22"), "counted to 20 at the source and went on with 22"),
        ("tell('serial', line='00000015'); tell('serial', line='00000017')", "counted 21, then 23"),
        ("tell('serial', line='old 00100000')", "the guest says at the destination: old 00100000"),
        ("tell('ended', how='panic')", "the guest has ended at the destination: panic"),
        ("tell('error', error='no such luck')", "the destination: no such luck"),
        ("sys.exit(3)", "the destination's process ended with 3"),
    ],
)
def test_what_goes_wrong_fails_it(
    fake: Callable[[str], None], capsys: pytest.CaptureFixture[str], told: str, complaint: str
) -> None:
    fake(told)
    assert demo.run("16MiB", 1) is ExitStatus.FAILED
    out, err = capsys.readouterr()
    assert complaint in err
    assert "as they were left" not in out


def test_a_pipe_is_told_once_that_it_does_not_converge(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainDemo({"source": "source"}, 16 * MIB)
    trouble = "the guest writes 9.0 MiB/s and 8.0 MiB/s are moved: more bandwidth would help"
    for told in ("", trouble, trouble):
        view.progress("source", event(trouble=told))
    assert capsys.readouterr().out == f"   source: It does not converge: {trouble}.\n"


def test_too_little_memory_is_told_before_anything_is_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiomigrate.cli.demo.signal.signal", lambda *_: None)
    monkeypatch.setattr(demo, "_available_bytes", lambda: 100 * MIB)
    assert demo.run("16MiB", 1) is ExitStatus.FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert "100 MiB of memory are available and 544 MiB are needed" in line


@pytest.mark.parametrize(
    "size", ["lots", "2 GB", "-1GiB", "15MiB", "0", "2GiB", "8MiB", "16.5MiB", ""]
)
def test_a_size_that_cannot_be_meant(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run(size, 1) is ExitStatus.USAGE
    assert "--size" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["lots", "1", "512KiB", "-1MiB"])
def test_a_limit_that_cannot_be_meant(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run("16MiB", 1, limit) is ExitStatus.USAGE
    assert "--rate-limit" in capsys.readouterr().err


def test_a_program_gets_json_lines_and_the_report_last(
    fake: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake(COUNT.replace("BEGIN", "21"))
    assert demo.run("16MiB", 1, as_json=True) is ExitStatus.DONE
    view = JsonDemo()
    view.progress("source", {"event": "progress", "phase": "precopy"})
    report, progress = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (report["event"], report["status"], report["bytes"]) == ("report", 0, 1)
    assert progress == {"event": "progress", "phase": "precopy", "side": "source"}
