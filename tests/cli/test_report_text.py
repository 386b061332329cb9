"""The page of a report, and the command that prints it."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from aiomigrate import Account, Limit, LimitedBy, Owner
from aiomigrate.cli import report
from aiomigrate.cli.plot import Plot, Point
from aiomigrate.cli.report_text import page
from aiomigrate.cli.reports import Ended, load
from aiomigrate.cli.status import ExitStatus
from tests.cli.test_reports import ACCOUNT, HISTORY, REPORT, told, written

LIMITED = LimitedBy(
    cause=Limit.RATE_LIMIT,
    share=0.75,
    seconds={limit: 3.0 if limit is Limit.RATE_LIMIT else 0.2 for limit in Limit},
    looking_s=0.0,
    reading_s=0.0,
    zero_test_s=0.0,
)


def shown(ended: Ended, width: int = 100) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width).print(page(ended))
    return "\n".join(line.rstrip() for line in screen.getvalue().splitlines())


def ended(
    account: Account, title: str = "", owner: Owner | None = Owner.DESTINATION, error: str = ""
) -> Ended:
    return Ended(title=title, owner=owner, error=error, account=account)


def test_the_page_of_one_that_succeeded() -> None:
    text = shown(ended(replace(REPORT, limited_by=LIMITED), title="sent to b"))
    assert text.startswith("sent to b\nThe VM is with the destination, and runs there.\n")
    assert "Moved 13.0 MiB in 1.9 s (6.8 MiB/s) over 2 connections, downtime 22 ms; 1.0 MiB" in text
    assert "Memory left to be moved, over 1.9 s\n  10.0 MiB" in text
    assert "The guest wrote, of different pages\n 4.0 MiB/s" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "0 10.0 MiB 9.0 MiB 1.0 MiB 1.0 s 9.0 MiB/s 4.0 MiB/s 444 ms" in lines
    assert "1 4.0 MiB 4.0 MiB - 400 ms 10.0 MiB/s - -" in lines
    assert "0 send another iteration: 4.0 MiB are dirty" in text
    assert "Downtime: 22 ms\n  pause      1.0 ms" in text
    assert "Speed was limited by the rate limit (75% of the time)\n  the rate limit " in text
    assert "Warnings\n  careful" in text


def test_a_source_that_does_not_know_is_told() -> None:
    text = shown(ended(replace(REPORT, confirmed=False, running=False)))
    assert "The VM is with the destination, and is paused." in text
    assert "has not confirmed" in text


def test_the_page_of_one_that_failed() -> None:
    text = shown(ended(ACCOUNT, owner=Owner.SOURCE, error="it broke\x1b[2J"))
    assert text.startswith("It failed: it broke\\x1b[2J\nThe VM is with the source.\n")
    assert "13.0 MiB were moved in 1.9 s over 2 connections" in text
    assert "Downtime" not in text
    assert "It is unknown who has the VM" in shown(ended(ACCOUNT, owner=Owner.UNKNOWN, error="x"))
    assert "It had not ended" in shown(ended(ACCOUNT, owner=None))


def test_of_many_iterations_the_middle_is_left_out() -> None:
    many = tuple(replace(HISTORY.iterations[0], number=number) for number in range(40))
    text = shown(ended(replace(REPORT, history=replace(HISTORY, iterations=many))))
    numbers = [line.split()[0] for line in text.splitlines() if " 444 ms" in line or "..." in line]
    assert numbers[:11] == ["0", "1", "2", "...", *map(str, range(33, 40))]


@given(st.data(), st.integers(40, 200))
@settings(max_examples=50)
def test_any_figures_make_a_page(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, width: int
) -> None:
    """Whatever a file says that can be read: extreme, negative, out of order."""
    value = json.loads(json.dumps(told(replace(REPORT, limited_by=LIMITED))))

    def spoil(here: Any) -> None:
        members = list(here.items()) if isinstance(here, dict) else list(enumerate(here))
        for name, member in members:
            if isinstance(member, dict | list):
                spoil(member)
            elif type(member) in {int, float} and data.draw(st.integers(0, 9)) == 0:
                kinds = st.integers(-(2**63), 2**63 - 1)
                drawn = kinds if type(member) is int else kinds | st.floats(-1e29, 1e29)
                here[name] = data.draw(drawn)

    spoil(value)
    path = tmp_path_factory.getbasetemp() / "figures.json"
    path.write_text(json.dumps(value))
    assert "The VM is with the destination" in shown(load(str(path)), width)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e12)), min_size=1, max_size=50),
    st.integers(1, 6),
    st.integers(21, 120),
)
def test_a_plot_is_as_high_as_its_values(
    pairs: list[tuple[float, float]], rows: int, width: int
) -> None:
    points = [Point(at, value, "") for at, (_, value) in zip(sorted(p[0] for p in pairs), pairs)]  # noqa: B905
    screen = io.StringIO()
    Console(file=screen, width=width).print(Plot(points, rows=rows, top="TOP"))
    lines = screen.getvalue().splitlines()
    assert len(lines) == rows
    assert all(len(line) <= width for line in lines)
    drawn = "".join(line[11:] for line in lines)
    assert bool(drawn.strip()) == any(point.value for point in points)
    if len({point.at for point in points}) > 1 and (highest := max(p.value for p in points)):
        shows = any(point.value == highest for point in points)
        assert ("█" in lines[0][11:]) == shows, "the highest reaches the top"


def test_a_column_shows_the_highest_of_its_time_and_what_stays_as_it_is() -> None:
    points = [Point(0, 8, ""), Point(1, 0, ""), Point(1.1, 4, ""), Point(4, 8, "")]
    screen = io.StringIO()
    Console(file=screen, width=11 + 10).print(Plot(points, rows=1, top="8"))
    assert screen.getvalue() == f"{'8':>10} ██▄▄▄▄▄▄▄█\n"


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert report.run(written(tmp_path, json.dumps(told(REPORT)))) is ExitStatus.DONE
    out, err = capsys.readouterr()
    assert "The VM is with the destination, and runs there." in out
    assert "\x1b" not in out
    assert all(len(line) <= 60 for line in out.splitlines())
    assert err == ""
    assert report.run(written(tmp_path, "{}")) is ExitStatus.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"aiomigrate: {tmp_path}/report.json: no report of a migration\n"
