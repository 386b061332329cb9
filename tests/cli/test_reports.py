"""Files with reports, and files that are none."""

import io
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate import (
    Account,
    Downtime,
    History,
    Iteration,
    Owner,
    Phase,
    PhaseBegin,
    Report,
    Sample,
)
from aiomigrate.cli.reports import ReportError, load

MIB = 1 << 20

HISTORY = History(
    samples=tuple(
        Sample(
            at_s=at / 10,
            phase=Phase.PRECOPY,
            iteration=at // 10,
            left_bytes=(10 - at % 10) * MIB,
            bytes_done=at * MIB,
            rate=10.0 * MIB,
            bandwidth=9.0 * MIB if at >= 10 else None,
            dirty_rate=4.0 * MIB if at >= 10 else None,
            expected_downtime_ms=100.0 if at >= 10 else None,
            throttle_percent=None,
            connections={"lane 1": 6.0 * MIB, "lane 2": 4.0 * MIB},
        )
        for at in range(20)
    ),
    iterations=(
        Iteration(
            number=0,
            bytes=10 * MIB,
            bytes_sent=9 * MIB,
            zero_bytes=MIB,
            duration_s=1.0,
            bandwidth=9.0 * MIB,
            dirty_rate=4.0 * MIB,
            expected_downtime_ms=444.0,
            throttle_percent=None,
            decision="send another iteration: 4194304 bytes are dirty",
        ),
        Iteration(
            number=1,
            bytes=4 * MIB,
            bytes_sent=4 * MIB,
            zero_bytes=0,
            duration_s=0.4,
            bandwidth=None,
            dirty_rate=None,
            expected_downtime_ms=None,
            throttle_percent=None,
            decision="",
        ),
    ),
    phases=(PhaseBegin(phase=Phase.PRECOPY, at_s=0.0), PhaseBegin(phase=Phase.DONE, at_s=1.9)),
)
FIGURES: dict[str, Any] = {
    "duration_s": 1.9,
    "bytes": 13 * MIB,
    "zero_bytes": MIB,
    "iterations": 2,
    "connections": 2,
    "lanes_lost": 0,
    "warnings": ("careful",),
    "decisions": ("send another iteration: 4194304 bytes are dirty",),
    "history": HISTORY,
}
ACCOUNT = Account(**FIGURES)
REPORT = Report(
    owner=Owner.DESTINATION,
    running=True,
    downtime_ms=21.5,
    confirmed=True,
    downtime=Downtime(
        pause_ms=1, last_pass_ms=12.5, capture_ms=2, hand_over_ms=0, restore_ms=4, waiting_ms=2
    ),
    **FIGURES,
)
ONE = {"direction": "send", "vm": "web-1", "url": "tcp:b:6000"}


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "report.json"
    path.write_text(text)
    return str(path)


def lines(*events: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(event)}\n" for event in events)


def told(report: Account) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(report.as_dict()))
    return value


def test_what_a_command_printed(tmp_path: Path) -> None:
    last = {"event": "report", "summary": "sent to b, it runs there", "status": 0, **told(REPORT)}
    ended = load(written(tmp_path, lines({"event": "progress"}, last) + "\n"))
    assert (ended.title, ended.owner, ended.error) == (
        "sent to b, it runs there",
        "destination",
        "",
    )
    assert ended.report == REPORT


def test_of_a_failed_one(tmp_path: Path) -> None:
    last = {"event": "error", "error": "no luck", "owner": "source", "status": 1, **told(ACCOUNT)}
    ended = load(written(tmp_path, lines({"event": "progress"}, last)))
    assert (ended.owner, ended.error, ended.report) == ("source", "no luck", None)
    assert ended.account == ACCOUNT


def test_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO(json.dumps(told(REPORT)).encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(data))
    assert load("-").account == REPORT


@pytest.mark.parametrize("indent", [None, 2])
def test_what_a_service_says(tmp_path: Path, indent: int | None) -> None:
    one = ONE | {"owner": "destination", "error": None, "account": None, "report": told(REPORT)}
    ended = load(written(tmp_path, json.dumps(one, indent=indent)))
    assert (ended.title, ended.account) == ("send web-1, tcp:b:6000", REPORT)
    one = ONE | {"owner": None, "error": None, "account": told(ACCOUNT), "report": None}
    ended = load(written(tmp_path, json.dumps(one, indent=indent)))
    assert (ended.owner, ended.error, ended.account) == (None, "", ACCOUNT)
    one |= {"owner": "unknown", "error": "nobody knows"}
    ended = load(written(tmp_path, json.dumps(one, indent=indent)))
    assert (ended.owner, ended.error) == ("unknown", "nobody knows")


def test_of_another_version(tmp_path: Path) -> None:
    """What has a default may be missing; what is not known is passed over."""
    value = told(REPORT) | {"weather": "fine"}
    for name in ("history", "warnings", "decisions", "downtime"):
        del value[name]
    ended = load(written(tmp_path, json.dumps(value)))
    assert ended.account == replace(
        REPORT, history=History(), warnings=(), decisions=(), downtime=None
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("\n \n", "it is empty"),
        ("hello\nworld\n", "no report: line 2, column 1: Expecting value"),
        ("{}", "no report of a migration"),
        ("7", "no report of a migration"),
        ("[" * 100_000, "no report"),
        ("9" * 5000, "no report"),
        ("[]", "a list, which has no report in full"),
        (lines({"event": "listening"}, {"event": "progress"}), "line 2: the last thing told is"),
        (lines({"event": "error", "error": "no such file"}), "nothing was begun, so there"),
        (json.dumps(ONE | {"account": None, "report": None}), "of which nothing is told yet"),
        ('{"owner": "source", "downtime_ms": NaN}', "NaN is no number of JSON"),
        (lines({}, {"event": "report"}), "line 2: duration_s is missing"),
        (json.dumps(ONE | {"report": {}}), "report.duration_s is missing"),
        (json.dumps(ONE | {"report": 5}), "report is not an object: 5"),
    ],
)  # fmt: skip
def test_what_is_no_report(tmp_path: Path, text: str, why: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ReportError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(path)
    assert why in message


@pytest.mark.parametrize(
    ("member", "value", "why"),
    [
        ("bytes", "many", 'bytes is not a whole number: "many"'),
        ("bytes", True, "bytes is not a whole number: true"),
        ("running", 1, "running is not true or false: 1"),
        ("owner", "me", 'owner is not one of source, destination, unknown: "me"'),
        ("owner", {}, "owner is not one of"),
        ("duration_s", None, "duration_s is not a number: null"),
        ("warnings", "x" * 99, f'warnings is not a list: "{"x" * 39}...'),
        ("warnings", ["a", 2], "warnings[1] is not text: 2"),
        ("downtime", [], "downtime is not an object: []"),
        ("downtime", {}, "downtime.pause_ms is missing"),
        ("history", {"samples": [{}]}, "history.samples[0].at_s is missing"),
        (
            "history",
            {"phases": [{"phase": "lost", "at_s": 0}]},
            "history.phases[0].phase is not one",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, member: str, value: object, why: str) -> None:
    with pytest.raises(ReportError) as caught:
        load(written(tmp_path, json.dumps(told(REPORT) | {member: value})))
    assert why in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="none: No such file"):
        load(str(tmp_path / "none"))
    with pytest.raises(ReportError, match="Is a directory"):
        load(str(tmp_path))
    (tmp_path / "binary").write_bytes(b"{\xff}")
    with pytest.raises(ReportError, match="binary: no report: byte 1 is no UTF-8"):
        load(str(tmp_path / "binary"))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.sampled_from(sorted(told(REPORT))), _JSON, st.booleans())
def test_nothing_but_a_report_error(
    tmp_path_factory: pytest.TempPathFactory, member: str, value: object, served: bool
) -> None:
    """Whatever a member is."""
    report = told(REPORT) | {member: value}
    text = json.dumps(ONE | {"report": report} if served else report)
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(text)
    with suppress(ReportError):
        assert load(str(path)).report is not None
