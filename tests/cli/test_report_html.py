"""`aiomigrate report --html`: which file it writes; what is in it is tested in tests/web."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aiomigrate.cli.app import app
from tests.cli.test_reports import ACCOUNT, REPORT, told, written


def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["report", *arguments], input=stdin)
    return done.exit_code, done.stdout, done.stderr


def data_in(page: str) -> dict[str, object]:
    assert page.startswith("<!doctype html>")
    text = page.partition('<script type="application/json" id="report">')[2]
    data: dict[str, object] = json.loads(text.partition("</script>")[0])
    return data


def test_beside_the_report(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(told(REPORT)))
    assert run(path, "--html") == (0, f"{tmp_path}/report.html\n", "")
    assert data_in((tmp_path / "report.html").read_text()) == {
        "title": "",
        "owner": "destination",
        "error": "",
        "report": told(REPORT),
        "account": None,
    }
    assert Path(path).read_text() == json.dumps(told(REPORT))


@pytest.mark.parametrize("name", ["report", "report.html"])
def test_the_report_itself_is_never_written_over(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(told(REPORT)))
    assert run(str(path), "--html") == (0, f"{path}.html\n", "")
    assert path.read_text() == json.dumps(told(REPORT))


def test_to_a_file_of_choice(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(told(REPORT)))
    assert run(path, "--html", f"{tmp_path}/page") == (0, f"{tmp_path}/page\n", "")
    assert data_in((tmp_path / "page").read_text())["report"] == told(REPORT)


def test_from_standard_input_to_standard_output() -> None:
    failed = {"event": "error", "error": "why", "owner": "source", "status": 1, **told(ACCOUNT)}
    status, page, err = run("-", "--html", stdin=json.dumps(failed))
    assert (status, err) == (0, "")
    data = data_in(page)
    assert (data["report"], data["account"], data["error"]) == (None, told(ACCOUNT), "why")


def test_what_cannot_be(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(told(REPORT)))
    status, out, err = run(path, "--html", f"{tmp_path}/no/page")
    assert (status, out) == (1, "")
    assert err == f"aiomigrate: {tmp_path}/no/page: No such file or directory\n"
    assert run(path, "--html", "--text")[0] == 2
    assert run(path, "page")[0] == 2
    assert run(written(tmp_path, "{}"), "--html")[0] == 2


def test_characters_that_no_file_can_hold(tmp_path: Path) -> None:
    sent = {"direction": "send", "vm": "\ud800", "url": "tcp:b:1", "report": told(REPORT)}
    path = written(tmp_path, json.dumps(sent))
    assert run(path, "--html") == (0, f"{tmp_path}/report.html\n", "")
    page = (tmp_path / "report.html").read_text()
    assert data_in(page)["title"] == "send \ud800, tcp:b:1"


def test_what_a_file_says_is_no_command_to_a_terminal(tmp_path: Path) -> None:
    wrong = {"event": "error", "error": "\x1b]0;mine\x07"}
    status, _, err = run(written(tmp_path, json.dumps(wrong)), "--html")
    assert status == 2
    assert "begun, so there is no report: \\x1b]0;mine\\x07\n" in err
