import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from aiomigrate.cli.live import LiveView, Meter, Picture, PlainView

MIB = 1 << 20


def event(**members: Any) -> dict[str, Any]:
    return {
        "phase": "precopy",
        "iteration": 0,
        "iteration_bytes": 0,
        "iteration_bytes_done": 0,
        "bytes_done": 0,
        "total_bytes": 0,
        "connections": (),
        "rate": 0.0,
        "dirty_rate": None,
        "expected_downtime_ms": None,
        "bandwidth": None,
        "throttle_percent": None,
        "trouble": "",
        "fraction": 0.0,
        "elapsed_s": 0.0,
        **members,
    }


def text_of(meter: Meter, **console_options: Any) -> str:
    console = Console(**{"file": io.StringIO(), "width": 100, **console_options})
    with console.capture() as capture:
        console.print(Picture("send vm", meter))
    return capture.get()


@given(st.lists(st.tuples(st.floats(0, 0.99), st.integers(0, 3 * MIB), st.integers(0, 2 * MIB))))
def test_the_bar_never_runs_backwards(looks: list[tuple[float, int, int]]) -> None:
    """Whatever it is told: (the engine's figure, bytes to move, bytes moved) a look."""
    for expected_bytes in (None, 2 * MIB):
        meter = Meter(expected_bytes)
        seen = [0.0]
        for fraction, expected, done in looks:
            meter.update(
                event(
                    fraction=fraction,
                    iteration_bytes=max(expected, done),
                    iteration_bytes_done=done,
                    bytes_done=done,
                )
            )
            seen.append(meter.fraction)
        meter.update(event(phase="failed"))
        seen.append(meter.fraction)
        assert seen == sorted(seen)
        assert seen[-1] < 1
        assert expected_bytes or meter.fraction == max(seen[0], *(look[0] for look in looks), 0.0)
        meter.update(event(phase="done", fraction=1.0))
        assert meter.fraction == 1


def test_holes_do_not_count_where_they_are_known() -> None:
    meter = Meter(expected_bytes=4 * MIB)
    meter.update(event(iteration_bytes=8 * MIB, iteration_bytes_done=MIB, bytes_done=MIB))
    assert meter.fraction == 0.25
    assert "1.0 MiB moved, 3.0 MiB remain" in text_of(meter)


def test_a_running_guest_shows_what_it_writes() -> None:
    meter = Meter()
    lanes = [{"name": f"lane {n}", "bytes": MIB, "rate": n * MIB} for n in range(1, 21)]
    meter.update(
        event(
            iteration=2,
            iteration_bytes=4 * MIB,
            iteration_bytes_done=MIB,
            bytes_done=9 * MIB,
            connections=lanes,
            rate=5 * MIB,
            dirty_rate=2 * MIB,
            bandwidth=4 * MIB,
            expected_downtime_ms=500.0,
            throttle_percent=30,
            trouble="the guest writes more than is moved: more bandwidth would help",
        )
    )
    text = text_of(meter)
    assert (
        "the guest writes 2.0 MiB/s, throttled by 30 %, expected downtime 500 ms: 2.0 MiB were"
    ) in text
    assert "moving memory, iteration 2 > switching over > handing over > done" in text
    assert (
        "It does not converge: the guest writes more than is moved: more bandwidth would help."
    ) in text
    assert "9.0 MiB moved, 3.0 MiB remain, 5.0 MiB/s" in text
    assert "lane 16 ▆ 16.0 MiB/s" in text
    assert "lane 17" not in text
    assert "and 4 more" in text


def test_the_last_iteration_shows_what_remains_of_it() -> None:
    meter = Meter()
    meter.update(
        event(
            phase="switchover",
            iteration=3,
            iteration_bytes=2 * MIB,
            iteration_bytes_done=MIB,
            bytes_done=9 * MIB,
            trouble="that is over",
        )
    )
    text = text_of(meter)
    assert "moving memory > switching over, the guest is paused, iteration 3 > handing" in text
    assert "9.0 MiB moved, 1.0 MiB remain" in text
    assert "that is over" not in text


def test_a_destination_at_its_switchover_waits_for_no_memory() -> None:
    meter = Meter()
    meter.update(event(phase="switchover", iteration_bytes=8 * MIB, iteration_bytes_done=MIB))
    assert "remain" not in text_of(meter)


def test_before_and_after() -> None:
    meter = Meter()
    assert "connecting" in text_of(meter)
    meter.update(event(phase="waiting"))
    assert "waiting for a source" in text_of(meter)
    meter.update(event(phase="failed"))
    assert "failed" in text_of(meter)


def busy(**members: Any) -> Meter:
    """A meter of a migration in its third iteration, with eight lanes."""
    meter = Meter()
    lanes = [{"name": f"lane {n}", "bytes": MIB, "rate": n * 1e8} for n in range(8)]
    for look in range(30):
        meter.update(
            event(
                iteration=2,
                iteration_bytes=400 * MIB,
                iteration_bytes_done=100 * MIB,
                bytes_done=900 * MIB,
                connections=lanes,
                rate=1e8 * (look % 7),
                elapsed_s=look / 10,
                fraction=0.5,
                dirty_rate=2e8,
                bandwidth=4e8,
                expected_downtime_ms=120.0,
                **members,
            )
        )
    return meter


@given(st.integers(40, 200), st.sampled_from(["precopy", "switchover", "done", "failed"]))
def test_it_fits_into_any_width(width: int, phase: str) -> None:
    trouble = "the guest writes more than is moved: more bandwidth would help"
    lines = text_of(busy(phase=phase, trouble=trouble), width=width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("send vm  2.9 s")
    told = {"precopy": "moving memory", "switchover": "switching over, the guest is pau"}
    assert told.get(phase, phase) in lines[1]


def test_colours_are_not_needed() -> None:
    """NO_COLOR and a terminal without Unicode: the same words."""
    plain = text_of(busy(), force_terminal=True, no_color=True)
    assert not re.search(r"\x1b\[[0-9;]*[34]\dm", plain)
    assert "50%" in plain
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    ascii_only = Console(file=narrow, width=100)
    ascii_only.print(Picture("send vm", busy()))
    narrow.flush()
    written = narrow.buffer.getvalue().decode("ascii")
    assert "lane 7 # 668 MiB/s" in written


def test_a_cancelled_one_is_not_called_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(
        "aiomigrate.cli.live.Console",
        lambda **_: Console(file=screen, width=80, force_terminal=True, color_system=None),
    )
    view = LiveView("send vm")
    view.tell({"event": "progress", **event(phase="failed")})
    assert "failed" in screen.getvalue()
    view.tell({"event": "error", "status": 130})
    view.close()
    assert "cancelled" in screen.getvalue().rpartition("send vm")[2]


def test_sentences_are_not_broken_within_words(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        "aiomigrate.cli.live.Console",
        lambda **_: Console(file=screen, width=40, force_terminal=True, color_system=None),
    )
    view = LiveView("send vm")
    view.close()
    screen.truncate(0)
    sentence = "Of the downtime, in ms: pause 0.0, last pass 3.0, capture 0.0, restore 1.0"
    view.say(sentence)
    lines = [line.rstrip() for line in screen.getvalue().lstrip("\0").splitlines()]
    assert [len(line) <= 40 for line in lines] == [True, True]
    assert " ".join(lines) == sentence


def test_a_dumb_terminal_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView("send vm")
    view.tell({"event": "listening", "address": "tcp:here"})
    for done in range(9):
        view.tell({"event": "progress", **event(fraction=done / 8, bytes_done=done * MIB)})
    view.tell({"event": "error", "status": 1})
    report = {"bytes": MIB, "duration_s": 2.0, "connections": 1, "downtime_ms": 5.0}
    view.tell(
        {"event": "report", "summary": "sent", "downtime": None, "limited_by": None, **report}
    )
    view.close()
    assert capsys.readouterr().out.splitlines() == [
        "listening on tcp:here",
        "send vm: 25%, 2.0 MiB moved, 0 B/s",
        "send vm: 50%, 4.0 MiB moved, 0 B/s",
        "send vm: 75%, 6.0 MiB moved, 0 B/s",
        "send vm: 100%, 8.0 MiB moved, 0 B/s",
        "sent: 1.0 MiB in 2.0 s (512 KiB/s) over 1 connection, downtime 5 ms",
    ]
