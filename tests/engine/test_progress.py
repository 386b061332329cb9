import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate import Downtime, Owner, Phase
from aiomigrate.progress import Tracker
from tests.support.clock import VirtualClockLoop

pytestmark = pytest.mark.asyncio(loop_factories=["virtual"])


async def test_a_snapshot_has_the_counts_of_its_moment(clock: VirtualClockLoop) -> None:
    tracker = Tracker(total_bytes=1000)
    tracker.phase = Phase.PRECOPY
    tracker.begin_iteration(0, 800)
    tracker.moved("lane 1", 300, ranges=3, window=2000)
    tracker.moved("lane 2", 100)
    tracker.moved("lane 1", 100, ranges=2, window=1000)
    clock.skip(2.0)
    first = tracker.snapshot()
    tracker.begin_iteration(1, 50)
    tracker.moved("lane 2", 60)
    second = tracker.snapshot()
    assert (first.iteration, first.iteration_bytes, first.iteration_bytes_done) == (0, 800, 500)
    # More came than was expected.
    assert (second.iteration, second.iteration_bytes, second.iteration_bytes_done) == (1, 60, 60)
    assert (first.bytes_done, second.bytes_done) == (500, 560)
    assert [(c.name, c.bytes) for c in second.connections] == [("lane 1", 400), ("lane 2", 160)]
    assert (first.ranges, second.ranges, first.chunks_resent) == (6, 7, 0)
    assert [c.window for c in first.connections] == [1000, 0]
    assert first.elapsed_s == pytest.approx(2.0)
    assert first.total_bytes == 1000
    assert (first.dirty_rate, first.bandwidth, first.expected_downtime_ms) == (None, None, None)
    assert (first.throttle_percent, first.trouble) == (None, "")
    assert (first.fraction, second.fraction) == (0.625, 0.99)
    with pytest.raises(FrozenInstanceError):
        first.iteration = 2  # type: ignore[misc]


async def test_rates_are_averages_over_half_a_second(clock: VirtualClockLoop) -> None:
    tracker = Tracker()
    tracker.moved("lane 1", 1000)
    clock.skip(0.4)
    assert tracker.snapshot().connections[0].rate == 0
    clock.skip(0.6)
    assert tracker.snapshot().connections[0].rate == pytest.approx(1000)
    tracker.moved("lane 1", 500)
    clock.skip(0.4)
    assert tracker.snapshot().connections[0].rate == pytest.approx(1000)
    clock.skip(0.1)
    snapshot = tracker.snapshot()
    assert snapshot.connections[0].rate == pytest.approx(1000)
    clock.skip(10)
    assert tracker.snapshot().connections[0].rate == 0


async def test_the_overall_rate_begins_with_the_migration(clock: VirtualClockLoop) -> None:
    """The loop's clock does not begin at 0, and the first snapshot may be late."""
    tracker = Tracker()
    tracker.moved("lane 1", 1000)
    tracker.moved("lane 2", 1000)
    clock.skip(1.0)
    assert tracker.snapshot().rate == pytest.approx(2000)


async def test_a_report_is_what_was_done(clock: VirtualClockLoop) -> None:
    tracker = Tracker()
    tracker.begin_iteration(2, 10)
    tracker.moved("main", 10)
    tracker.warnings.append("careful")
    tracker.decisions.append("pause the guest: nothing is dirty")
    clock.skip(3.0)
    split = Downtime(
        pause_ms=1, last_pass_ms=2, capture_ms=3, hand_over_ms=4, restore_ms=5, waiting_ms=235
    )
    report = tracker.report(running=True, downtime_ms=250.0, downtime=split)
    tracker.warnings.append("later")
    assert (report.owner, report.running, report.confirmed) == (Owner.DESTINATION, True, True)
    assert report.duration_s == pytest.approx(3.0)
    assert report.downtime_ms == pytest.approx(250)
    assert (report.bytes, report.iterations, report.connections) == (10, 3, 1)
    assert report.warnings == ("careful",)
    assert json.loads(json.dumps(report.as_dict()))["owner"] == "destination"
    assert report.as_dict()["downtime"]["waiting_ms"] == 235
    assert json.loads(json.dumps(tracker.snapshot().as_dict()))["phase"] == "connecting"


async def test_beside_lanes_the_main_connection_does_not_count() -> None:
    tracker = Tracker()
    assert tracker.carriers == 0
    tracker.moved("main", 10)
    assert tracker.carriers == 1
    tracker.moved("lane 1", 10)
    assert tracker.carriers == 1
    tracker.moved("lane 2", 10)
    assert tracker.carriers == 2


@given(
    st.lists(
        st.tuples(st.integers(0, 3000), st.lists(st.integers(0, 900), max_size=4), st.booleans()),
        min_size=1,
    )
)
async def test_the_overall_figure_never_runs_backwards(
    iterations: list[tuple[int, list[int], bool]],
) -> None:
    """Whatever an iteration was expected to move and moved, as content or as zeros."""
    tracker = Tracker()
    seen = [0.0]
    for number, (expected, moves, zeros) in enumerate(iterations):
        tracker.begin_iteration(number, expected)
        seen.append(tracker.snapshot().fraction)
        for nbytes in moves:
            if zeros:
                tracker.zeroed(nbytes)
            else:
                tracker.moved("main", nbytes)
            seen.append(tracker.snapshot().fraction)
    for phase in (Phase.SWITCHOVER, Phase.COMPLETING, Phase.FAILED):
        tracker.phase = phase
        seen.append(tracker.snapshot().fraction)
    assert seen == sorted(seen)
    assert seen[-1] <= 0.99
    tracker.phase = Phase.DONE
    assert tracker.snapshot().fraction == 1
