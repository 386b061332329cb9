from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.goals import Goal, fuzz_goals, goals_of
from benchmarks.results import Recording, Result


@pytest.mark.parametrize(
    ("figure", "bound", "value", "verdict"),
    [
        (0.9, "at least", 0.8, "met"),
        (0.8, "at least", 0.8, "met"),
        (0.6, "at least", 0.8, "missed by 25 %"),
        (4.9, "under", 5, "met"),
        (5, "under", 5, "just missed"),
        (89.7, "at least", 90, "missed by 0.333 %"),
        (1841, "at least", 1_000_000, "missed by 99.8 %"),
        (100, "under", 5, "missed by 1,900 %"),
        (10, "under", 5, "missed by 100 %"),
        (0, "at most", 0, "met"),
        (2, "at most", 0, "missed"),
    ],
)
def test_verdicts(figure: float, bound: str, value: float, verdict: str) -> None:
    goal = Goal("what", figure, bound, value)
    assert goal.verdict == verdict
    assert goal.met == (verdict == "met")


def test_units_stand_beside_both_numbers() -> None:
    goal = Goal("what", 4.321, "under", 5.0, "ms")
    assert (goal.aim, goal.measured) == ("under 5 ms", "4.32 ms")
    assert Goal("what", 1, "at least", 10_000_000).aim == "at least 10,000,000"
    assert Goal("what", 1.0, "at least", 0.8).aim == "at least 0.8"


def test_the_slower_end_and_each_number_of_lanes_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    with Recording("tls", "benchmarks.tls", {}) as record:
        record.row("medians", lanes=1, ratio=0.9)
        record.row("medians", lanes=4, ratio=0.6)
        record.row("callbacks", lanes=1, end="source", wall_p99_ms=1.0, cpu_p99_ms=0.9)
        record.row("callbacks", lanes=1, end="destination", wall_p99_ms=6.0, cpu_p99_ms=0.5)
    goals = goals_of(Result.read("tls"))
    figures = [(goal.figure, goal.met) for goal in goals]
    assert figures == [(0.9, True), (0.6, False), (6.0, False), (0.9, True)]


def test_fuzzing_is_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for name, executions in (("config", 6_000_000), ("table", 5_000_000), ("receive", 999_999)):
        with Recording(f"fuzz_{name}", "fuzz", {}) as record:
            record.row("fuzzed", target=name, executions=executions)
    ran = [Result.read(f"fuzz_{name}") for name in ("config", "table", "receive")]
    parsers, receptions = fuzz_goals(ran)
    assert (parsers.figure, parsers.met) == (11_000_000, True)
    assert (receptions.figure, receptions.met) == (999_999, False)


def test_what_has_no_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    with Recording("kill_matrix", "tests.faults.kills", {}):
        pass
    assert goals_of(Result.read("kill_matrix")) == []
