import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.results import Recording, Result, heading, in_words, need_programs, table


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_what_was_recorded_is_read_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"gib": 2, "into": None, "mib_s": "100 200"}
    with Recording("speed", "benchmarks.speed", arguments) as record:
        record.row("rates", connections=1, ours_gib_s=2.961234, ratio=0.5)
        record.row("rates", connections=4, ours_gib_s=12.5, ratio=2 / 3)
        record.row("peer", version="v52")
    result = Result.read("speed")
    assert result.tables == {
        "rates": [
            {"connections": 1, "ours_gib_s": 2.961, "ratio": 0.5},
            {"connections": 4, "ours_gib_s": 12.5, "ratio": 0.6667},
        ],
        "peer": [{"version": "v52"}],
    }
    assert result.command == "python -m benchmarks.speed --gib 2 --mib-s 100 200"
    assert result.cell("rates", "ratio", connections=4) == 0.6667
    assert result.column("rates", "connections") == [1, 4]
    printed = capsys.readouterr().out
    assert table(result.tables["rates"]) in printed
    assert "| connections | ours, GiB/s | ratio |" in printed


def test_date_machine_load_and_commit_are_in_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 48)
    with Recording("speed", "benchmarks.speed", {}):
        pass
    result = replace(Result.read("speed"), load_before=(1.234, 0.5, 0.25))
    for told in (
        result.taken[:10],
        "48 processors",
        f"{result.machine.memory_gib} GiB",
        f"Linux {result.machine.kernel}",
        f"Python {result.machine.python}",
        "load before 1.2, 0.5, 0.2",
        result.version,
        result.commit,
    ):
        assert told in result.circumstances


def test_a_run_that_breaks_off_leaves_the_last_result(folder: Path) -> None:
    with Recording("speed", "benchmarks.speed", {}) as record:
        record.row("rates", ratio=1.0)
    before = (folder / "speed.json").read_text()

    def breaks_off() -> None:
        with Recording("speed", "benchmarks.speed", {}) as record:
            record.row("rates", ratio=2.0)
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        breaks_off()
    assert (folder / "speed.json").read_text() == before


def test_rows_of_a_table_are_alike(folder: Path) -> None:
    with Recording("speed", "benchmarks.speed", {}) as record:
        record.row("rates", ratio=1.0)
        with pytest.raises(ValueError, match="rates has"):
            record.row("rates", share=1.0)


def test_a_missing_result_says_what_makes_it(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"speed\.json is missing.*make figures"):
        Result.read("speed")


@pytest.mark.parametrize("broken", ["machine", "tables"])
def test_a_result_of_another_form_is_refused(folder: Path, broken: str) -> None:
    with Recording("speed", "benchmarks.speed", {}):
        pass
    document = json.loads((folder / "speed.json").read_text())
    del document[broken]
    (folder / "speed.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"speed\.json is not a result"):
        Result.read("speed")


def test_no_such_row(folder: Path) -> None:
    with Recording("speed", "benchmarks.speed", {}) as record:
        record.row("rates", connections=1, ratio=1.0)
    with pytest.raises(LookupError, match="no ratio in rates"):
        Result.read("speed").column("rates", "ratio", connections=8)


def test_changes_that_are_not_committed_are_told(tmp_path: Path) -> None:
    """In a repository of its own: what runs is committed, or the result says that it is not."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    assert results.commit_of(tmp_path) == "no commit"
    results.git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("1\n")
    results.git(tmp_path, "add", "code.py")
    name = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    results.git(tmp_path, *name, "commit", "--quiet", "--message", "first")
    clean = results.git(tmp_path, "rev-parse", "--short=10", "HEAD")
    (tmp_path / "page.md").write_text("figures\n")
    assert results.commit_of(tmp_path) == clean
    (tmp_path / "code.py").write_text("2\n")
    assert results.commit_of(tmp_path) == f"{clean}, changed"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("ours_gib_s", "ours, GiB/s"),
        ("link_mib_s", "link, MiB/s"),
        ("wall_p99_ms", "wall p99, ms"),
        ("time_s", "time, s"),
        ("of_the_link_percent", "of the link, %"),
        ("held_mib", "held, MiB"),
        ("bits_set", "bits set"),
        ("connections", "connections"),
    ],
)
def test_a_heading_has_its_unit(key: str, words: str) -> None:
    assert heading(key) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0"),
        (0.00123, "0.00123"),
        (0.09, "0.0900"),
        (9.996, "10.0"),
        (12.34, "12.3"),
        (46976.0, "47,000"),
        (153_000_000, "153,000,000"),
        (0, "0"),
        ("as it is", "as it is"),
        (None, ""),
    ],
)
def test_numbers_have_three_digits_that_count(value: results.Cell, words: str) -> None:
    assert in_words(value) == words


def test_what_is_not_installed_ends_the_script_as_skipped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    need_programs("true")
    with pytest.raises(SystemExit) as ended:
        need_programs("true", "no-such-program")
    assert ended.value.code == results.SKIPPED
    assert capsys.readouterr().err == "skipped: no-such-program is not installed\n"
