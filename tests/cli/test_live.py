import io
from dataclasses import asdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from aiomigrate import Downtime
from aiomigrate.cli.live import Meter, downtime_sentence, drawn

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
        **members,
    }


def text_of(meter: Meter) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(drawn("send vm", meter))
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
            expected_downtime_ms=12.0,
            throttle_percent=30,
            trouble="the guest writes more than is moved: more bandwidth would help",
        )
    )
    text = text_of(meter)
    assert (
        "the guest writes 2.0 MiB/s, bandwidth 4.0 MiB/s, throttled by 30 %, "
        "expected downtime 12 ms"
    ) in text
    assert "moving memory, iteration 2: what was written meanwhile" in text
    assert (
        "It does not converge: the guest writes more than is moved: more bandwidth would help."
    ) in text
    assert "9.0 MiB moved, 3.0 MiB remain, 5.0 MiB/s" in text
    assert "lane 16 16.0 MiB/s" in text
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
    assert "switching over, the guest is paused, iteration 3" in text
    assert "9.0 MiB moved, 1.0 MiB remain" in text
    assert "that is over" not in text


def test_a_destination_at_its_switchover_waits_for_no_memory() -> None:
    meter = Meter()
    meter.update(event(phase="switchover", iteration_bytes=8 * MIB, iteration_bytes_done=MIB))
    assert "remain" not in text_of(meter)


def test_the_downtime_is_told_stage_by_stage() -> None:
    split = asdict(
        Downtime(
            pause_ms=1, last_pass_ms=2.25, capture_ms=0, hand_over_ms=3, restore_ms=4, waiting_ms=5
        )
    )
    assert downtime_sentence(split) == (
        "Of the downtime, in ms: pause 1.0, last pass 2.2, capture 0.0, hand over 3.0, "
        "restore 4.0, waiting 5.0"
    )


def test_before_and_after() -> None:
    meter = Meter()
    assert "connecting" in text_of(meter)
    meter.update(event(phase="waiting"))
    assert "waiting for a source" in text_of(meter)
    meter.update(event(phase="failed"))
    assert "failed" in text_of(meter)
