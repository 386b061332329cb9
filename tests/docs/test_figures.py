"""Pages with figures are what the results say, and results say where and when."""

import json
import re
import shutil
from pathlib import Path

import jinja2
import pytest

from benchmarks import results
from benchmarks.results import RESULTS, Result
from docs import make_figures
from docs.make_figures import DOCS, TEMPLATES, render

NAMES = sorted(path.stem for path in RESULTS.glob("*.json"))


def test_the_pages_and_pictures_are_what_the_results_say() -> None:
    rendered = render()
    stale = [
        path.name
        for path, text in rendered.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run `python -m docs.make_figures`"
    assert sorted((DOCS / "figures").iterdir()) == sorted(
        path for path in rendered if path.suffix == ".svg"
    )


def test_every_result_is_on_a_page_with_its_machine_and_date() -> None:
    pages = "\n".join(text for path, text in render().items() if path.suffix == ".md")
    assert NAMES
    for name in NAMES:
        if not name.startswith("fuzz_") or name == "fuzz_receive":
            assert Result.read(name).circumstances in pages, name
        else:
            assert f"| {name.removeprefix('fuzz_')} |" in pages


def test_a_table_ends_where_it_should() -> None:
    """Else the paragraph or heading behind it is another row."""
    for path, text in render().items():
        assert re.findall(r"^\|.*\n[^|\n].*$", text, re.MULTILINE) == [], path.name


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results that may be changed."""
    folder = tmp_path / "results"
    shutil.copytree(RESULTS, folder)
    monkeypatch.setattr(results, "RESULTS", folder)
    return folder


def change(file: Path, table: str, key: str, value: float) -> None:
    document = json.loads(file.read_text())
    for row in document["tables"][table]:
        row[key] = value
    file.write_text(json.dumps(document))


def test_another_figure_is_another_page_and_another_picture(copied: Path) -> None:
    before = render()
    change(copied / "tls.json", "medians", "ours_gib_s", 7.654)
    after = render()
    assert after.keys() == before.keys()
    changed = {path.name for path in after if after[path] != before[path]}
    assert changed == {"figures.md", "tls.svg"}
    assert "7.65" in after[DOCS / "figures.md"]


def test_verdicts_come_from_the_figures(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    goal = r"\| ours to C, 4 lanes \| at least 0.8 \| (\S+) \| (.+) \|"
    for ratio, verdict in ((0.95, "met"), (0.4, "**missed by 50 %**")):
        change(copied / "tls.json", "medians", "ratio", ratio)
        found = re.search(goal, render()[DOCS / "figures.md"])
        assert found is not None
        assert (float(found[1]), found[2]) == (ratio, verdict)


def test_a_missing_result_is_named(copied: Path) -> None:
    (copied / "tls.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tls\.json is missing.*make figures"):
        render()


def test_a_number_that_no_result_has_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_figures, "TEMPLATES", tmp_path)
    (tmp_path / "figures.md").write_text('{{ table("tls", "no_such_table") }}')
    with pytest.raises(KeyError):
        render()
    (tmp_path / "figures.md").write_text("{{ no_such_name }}")
    with pytest.raises(jinja2.UndefinedError):
        render()


def test_main_writes_all_and_says_what_is_missed(
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(make_figures, "DOCS", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    change(copied / "tls.json", "medians", "ratio", 0.4)
    make_figures.main()
    for path, text in render().items():
        assert path.is_relative_to(tmp_path)
        assert path.read_text(encoding="utf-8") == text
    missed = "tls: ours to C, 4 lanes: at least 0.8, is 0.400: missed by 50 %\n"
    assert missed in capsys.readouterr().out


@pytest.mark.parametrize("template", sorted(path.name for path in TEMPLATES.iterdir()))
def test_prose_has_no_rate_and_no_time_with_a_fraction(template: str) -> None:
    """As measured numbers have them; they come from the results."""
    prose = (TEMPLATES / template).read_text(encoding="utf-8")
    assert re.findall(r"\d[\d.,]* (?:[GM]iB/s)|\d+\.\d+ (?:ms|s)\b", prose) == []
