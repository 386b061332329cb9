"""The course of a migration, as the engine's tracker keeps it."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate import Phase
from aiomigrate.history import MAX_ITERATIONS, MAX_SAMPLES, History
from aiomigrate.progress import Tracker
from tests.support.clock import VirtualClockLoop

pytestmark = pytest.mark.asyncio(loop_factories=["virtual"])
_INTERVAL = 0.05

_STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.001, 0.02, _INTERVAL, 0.3, 7.0]),
        st.sampled_from(["moved", "moved", "moved", "zeroed", "phase", "iteration"]),
        st.integers(0, 3),
        st.integers(0, 1 << 20),
    ),
    max_size=60,
)


def check(history: History, tracker: Tracker) -> None:
    samples = history.samples
    assert len(samples) <= MAX_SAMPLES
    assert (samples[-1].bytes_done, samples[-1].phase) == (tracker.bytes_done, tracker.phase)
    assert samples[0].at_s == 0
    gaps = [after.at_s - before.at_s for before, after in pairwise(samples)]
    assert all(gap >= _INTERVAL - 1e-9 for gap in gaps[1:])
    assert all(gap >= 0 for gap in gaps)
    counts = [sample.bytes_done for sample in samples]
    assert counts == sorted(counts)
    # Rates are exact averages (of whole bytes a second), so that their area is what was moved.
    for (before, after), gap in zip(pairwise(samples), gaps, strict=True):
        if gap:
            moved = after.bytes_done - before.bytes_done
            assert after.rate * gap == pytest.approx(moved, abs=gap)
            assert sum(after.connections.values()) == pytest.approx(after.rate, abs=3)
    phases = [begin.at_s for begin in history.phases]
    assert phases == sorted(phases)
    numbers = [iteration.number for iteration in history.iterations]
    assert numbers == sorted(set(numbers))
    assert len(numbers) <= MAX_ITERATIONS


@given(_STEPS, st.integers(1, 40))
async def test_it_is_bounded_and_runs_forwards(
    steps: list[tuple[float, str, int, int]], repeated: int
) -> None:
    """Whatever happened when, and however often."""
    tracker = Tracker()
    clock = tracker._loop
    assert isinstance(clock, VirtualClockLoop)
    tracker.phase = Phase.CONNECTING
    tracker.phase = Phase.PRECOPY
    tracker.begin_iteration(0, 1 << 22)
    for seconds, what, connection, nbytes in steps * repeated:
        clock.skip(seconds)
        match what:
            case "moved":
                tracker.moved(f"lane {connection}", nbytes)
            case "zeroed":
                tracker.zeroed(nbytes)
            case "iteration":
                tracker.end_iteration()
                tracker.begin_iteration(tracker.iteration + 1, nbytes)
            case "phase":
                tracker.phase = Phase.SWITCHOVER
    history = tracker.account().history
    check(history, tracker)
    if len(history.iterations) <= 100:
        assert sum(one.bytes_sent for one in history.iterations) == tracker.bytes_done
        assert sum(one.zero_bytes for one in history.iterations) == tracker.zero_bytes
    tracker.phase = Phase.FAILED
    clock.skip(100)
    over = tracker.account()
    check(over.history, tracker)
    assert over == tracker.account(), "nothing is added after the end"
    assert over.duration_s == over.history.phases[-1].at_s


async def test_a_long_one_becomes_coarser_and_keeps_its_whole_length(
    clock: VirtualClockLoop,
) -> None:
    tracker = Tracker()
    tracker.phase = Phase.PRECOPY
    for seconds in (10, 1000, 100_000):
        while clock.time() < tracker.started_at + seconds:
            clock.skip(0.05 if seconds == 10 else seconds / 1000)
            tracker.moved("main", 100)
        samples = tracker.account().history.samples
        assert MAX_SAMPLES // 2 <= len(samples) <= MAX_SAMPLES
        assert samples[0].at_s == 0
        assert samples[-1].at_s == pytest.approx(seconds, rel=0.01)
        gaps = [after.at_s - before.at_s for before, after in pairwise(samples)]
        assert max(gaps) <= 4 * seconds / MAX_SAMPLES


async def test_a_standstill_is_low_and_not_hidden(clock: VirtualClockLoop) -> None:
    tracker = Tracker()
    tracker.phase = Phase.PRECOPY
    for seconds, nbytes in ((1, 1000), (9, 900), (1, 1000)):
        clock.skip(seconds)
        tracker.moved("lane 1", nbytes)
    samples = tracker.account().history.samples
    assert [(one.at_s, one.rate) for one in samples] == [(0, 0), (1, 1000), (10, 100), (11, 1000)]
    assert samples[2].connections == {"lane 1": 100}


async def test_it_is_what_progress_said_at_that_time(clock: VirtualClockLoop) -> None:
    tracker = Tracker(total_bytes=1000, throttle_percent=20)
    tracker.phase = Phase.PRECOPY
    tracker.begin_iteration(0, 1000)
    clock.skip(1)
    tracker.moved("lane 1", 600)
    clock.skip(1)
    tracker.zeroed(400)
    tracker.end_iteration()
    clock.skip(0.5)
    tracker.judged(bandwidth=300.0, dirty_rate=100.0, downtime_ms=500.0)
    tracker.decided("send another iteration: 50 bytes are dirty")
    tracker.throttle_percent = 30
    tracker.begin_iteration(1, 50)
    clock.skip(1)
    tracker.moved("lane 2", 20)
    tracker.phase = Phase.SWITCHOVER
    history = tracker.account().history
    first, second = history.iterations
    assert (first.number, first.bytes, first.bytes_sent, first.zero_bytes) == (0, 1000, 600, 400)
    assert (first.duration_s, first.throttle_percent) == (2, 20)
    assert (first.bandwidth, first.dirty_rate, first.expected_downtime_ms) == (300, 100, 500)
    assert first.decision == "send another iteration: 50 bytes are dirty"
    assert (second.bytes, second.bytes_sent, second.duration_s) == (50, 20, 1)
    assert (second.bandwidth, second.decision, second.throttle_percent) == (None, "", 30)
    last = history.samples[-1]
    assert (last.at_s, last.phase, last.iteration, last.left_bytes) == (3.5, "switchover", 1, 30)
    assert (last.bandwidth, last.dirty_rate, last.throttle_percent) == (300, 100, 30)
    assert last.expected_downtime_ms == 500
    assert [(begin.phase, begin.at_s) for begin in history.phases] == [
        ("precopy", 0),
        ("switchover", 3.5),
    ]


async def test_waiting_for_a_source_is_not_part_of_it(clock: VirtualClockLoop) -> None:
    """A destination's clock begins when the source comes."""
    tracker = Tracker()
    tracker.phase = Phase.WAITING
    clock.skip(100)
    tracker.started_at = clock.time()
    clock.skip(1)
    tracker.phase = Phase.PRECOPY
    tracker.moved("main", 100)
    history = tracker.account().history
    assert [one.at_s for one in history.samples] == [0, 1]
    assert [one.at_s for one in history.phases] == [0, 1]
    assert history.samples[1].rate == 100


async def test_of_many_iterations_the_first_and_the_last_are_kept(clock: VirtualClockLoop) -> None:
    tracker = Tracker()
    tracker.phase = Phase.PRECOPY
    for number in range(1000):
        tracker.begin_iteration(number, 1)
        clock.skip(0.01)
        tracker.end_iteration()
    numbers = [one.number for one in tracker.account().history.iterations]
    assert numbers[:9] == [*range(8), 879]
    assert numbers[8:] == list(range(879, 1000))
    assert len(numbers) == MAX_ITERATIONS


async def test_it_fits_into_a_line_of_json(clock: VirtualClockLoop) -> None:
    """With as many lanes as there can be: the demo reads lines of 2 MiB."""
    tracker = Tracker()
    tracker.phase = Phase.PRECOPY
    for _ in range(MAX_SAMPLES):
        for lane in range(128):
            tracker.moved(f"tcp:[2001:db8::1234]:{50000 + lane}", 123_456_789)
        clock.skip(_INTERVAL)
    account = tracker.account()
    assert len(account.history.samples[-2].connections) == 128
    assert len(json.dumps(account.as_dict())) < 1 << 21
