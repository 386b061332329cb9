"""The policy alone: tables for each rule, properties, and guests that are only figures."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate import SendOptions, TimeoutStrategy
from aiomigrate.precopy import Course, Decision, Figures, Verdict, decide, trouble

_CANCEL = SendOptions(downtime_ms=300, timeout_s=60)
_IGNORE = replace(_CANCEL, timeout_strategy=TimeoutStrategy.IGNORE)
_ENDS = {Verdict.SWITCH_OVER, Verdict.GIVE_UP}


def measured(dirty: int, bandwidth: float, elapsed: float = 0.0, **more: Any) -> Figures:
    known: dict[str, Any] = {
        "dirty_rate": 0.0,
        "stalled": 0,
        "since_throttle": 1,
        "throttle_percent": None,
    }
    return Figures(dirty_bytes=dirty, bandwidth=bandwidth, elapsed_s=elapsed, **(known | more))


@pytest.mark.parametrize(
    ("options", "dirty", "bandwidth", "elapsed", "verdict"),
    [
        (_CANCEL, 0, 0.0, 0.0, Verdict.SWITCH_OVER),
        (_CANCEL, 0, 0.0, 1000.0, Verdict.SWITCH_OVER),
        (_CANCEL, 300, 1000.0, 0.0, Verdict.SWITCH_OVER),
        (_CANCEL, 301, 1000.0, 0.0, Verdict.ITERATE),
        (_CANCEL, 301, 1000.0, 59.9, Verdict.ITERATE),
        (_CANCEL, 301, 1000.0, 60.0, Verdict.GIVE_UP),
        (_IGNORE, 301, 1000.0, 59.9, Verdict.ITERATE),
        (_IGNORE, 301, 1000.0, 60.0, Verdict.SWITCH_OVER),
        # What fits is sent, also when the time is over: the reference's order.
        (_CANCEL, 300, 1000.0, 60.0, Verdict.SWITCH_OVER),
        # Nothing was moved, so nothing is known.
        (_CANCEL, 1, 0.0, 0.0, Verdict.ITERATE),
        (_CANCEL, 1, 0.0, 60.0, Verdict.GIVE_UP),
    ],
)
def test_verdicts(
    options: SendOptions, dirty: int, bandwidth: float, elapsed: float, verdict: Verdict
) -> None:
    assert decide(options, measured(dirty, bandwidth, elapsed)).verdict is verdict


@pytest.mark.parametrize(
    ("now", "stalled", "since", "cap", "percent"),
    [
        (None, 100, 100, 99, 0),  # its VMM cannot
        (0, 3, 4, 99, 0),
        (0, 4, 5, 99, 20),
        (0, 4, 5, 0, 0),
        (0, 4, 5, 15, 15),
        (20, 6, 1, 99, 0),  # that iteration was dirtied before the throttle
        (20, 6, 2, 99, 30),
        (20, 1, 7, 99, 0),  # it makes progress
        (20, 2, 7, 99, 30),
        (90, 20, 2, 99, 99),
        (99, 22, 2, 99, 0),
        (50, 22, 2, 40, 0),
    ],
)
def test_how_far_a_guest_is_throttled(
    now: int | None, stalled: int, since: int, cap: int, percent: int
) -> None:
    figures = measured(
        1000, 1000.0, stalled=stalled, since_throttle=since, throttle_percent=now, dirty_rate=2e3
    )
    decision = decide(replace(_CANCEL, throttle_cap_percent=cap), figures)
    assert decision.verdict is (Verdict.THROTTLE if percent else Verdict.ITERATE)
    assert decision.throttle_percent == percent


def test_a_decision_says_why() -> None:
    def said(*figures: Any, **more: Any) -> str:
        return str(decide(_CANCEL, measured(*figures, **more)))

    assert said(0, 0.0) == "pause the guest: nothing is dirty"
    assert said(100, 1000.0) == (
        "pause the guest: 100 bytes are dirty, 100 ms at 1000 bytes/s, the limit is 300 ms"
    )
    assert said(400, 1000.0, 1.0) == (
        "send another iteration: 400 bytes are dirty, 400 ms at 1000 bytes/s"
    )
    assert said(400, 1000.0, 60.0) == (
        "give up: 400 bytes are dirty, 400 ms at 1000 bytes/s, and 60 s are over"
    )
    assert said(400, 1000.0, stalled=4, throttle_percent=0, since_throttle=4, dirty_rate=1e3) == (
        "throttle the guest and send another iteration: 400 bytes are dirty, 400 ms at 1000 "
        "bytes/s, and the guest writes 1000 bytes/s; 4 iterations without progress: by 20 %"
    )


@pytest.mark.parametrize(
    ("stalled", "dirty_rate", "diverging"),
    [(0, 2000.0, False), (1, 999.0, False), (1, 1000.0, True), (5, 2000.0, True)],
)
def test_what_cannot_converge(stalled: int, dirty_rate: float, diverging: bool) -> None:
    figures = measured(1000, 1000.0, stalled=stalled, dirty_rate=dirty_rate)
    assert figures.diverging is diverging
    assert bool(trouble(_CANCEL, figures)) is diverging


@pytest.mark.parametrize(
    ("options", "percent", "helps"),
    [
        ({}, None, "more bandwidth or a guest that writes less"),
        ({"rate_limit": 1 << 20}, None, "a higher rate limit or a guest that writes less"),
        ({}, 20, "more bandwidth or throttling, which will go further by itself"),
        ({"throttle_cap_percent": 0}, 0, "more bandwidth or a higher throttle cap"),
        ({}, 99, "more bandwidth or a guest that writes less"),
    ],
)
def test_what_would_help_is_said(options: Any, percent: int | None, helps: str) -> None:
    mib = float(1 << 20)
    figures = measured(
        800 << 20, 1000 * mib, stalled=1, dirty_rate=1500 * mib, throttle_percent=percent
    )
    assert trouble(replace(_CANCEL, **options), figures) == (
        "the guest writes 1500.0 MiB/s and 1000.0 MiB/s are moved: "
        f"a downtime of 800 ms, {helps} would help"
    )
    assert trouble(replace(_CANCEL, downtime_ms=800), figures) == ""


# What is measured


def test_rates_are_those_of_the_last_four_iterations() -> None:
    course = Course()
    course.add(moved=10_000, settled=10_000, dirty=9_000, seconds=1.0)
    for dirty in (100, 200, 300, 400):
        course.add(moved=1000, settled=1000, dirty=dirty, seconds=0.5)
    figures = course.figures(elapsed_s=3.0, throttle_percent=None)
    assert (figures.bandwidth, figures.dirty_rate) == (2000.0, 500.0)
    assert figures.dirty_bytes == 400


def test_a_long_iteration_ago_does_not_count() -> None:
    course = Course()
    course.add(moved=60_000, settled=60_000, dirty=600, seconds=60.0)
    assert course.figures(elapsed_s=60.0, throttle_percent=None).bandwidth == 1000.0
    course.add(moved=50, settled=50, dirty=60, seconds=1.0)
    figures = course.figures(elapsed_s=61.0, throttle_percent=None)
    assert (figures.bandwidth, figures.dirty_rate) == (50.0, 60.0)


def test_no_time_at_all_counts_as_what_a_clock_can_tell() -> None:
    course = Course()
    course.add(moved=1000, settled=1000, dirty=10, seconds=0.0)
    assert course.figures(elapsed_s=0.0, throttle_percent=None).bandwidth == 1_000_000.0


def test_progress_is_less_than_ever_before() -> None:
    course = Course()
    stalled = []
    for dirty in (100, 90, 95, 90, 89, 200):
        course.add(moved=100, settled=100, dirty=dirty, seconds=1.0)
        stalled.append(course.figures(elapsed_s=0.0, throttle_percent=None).stalled)
    assert stalled == [0, 0, 1, 2, 0, 1]


# Properties

_OPTIONS = st.builds(
    SendOptions,
    downtime_ms=st.integers(1, 5000),
    timeout_s=st.integers(1, 100),
    timeout_strategy=st.sampled_from(TimeoutStrategy),
    throttle_cap_percent=st.integers(0, 99),
)
_FIGURES = st.builds(
    Figures,
    dirty_bytes=st.integers(0, 10_000),
    bandwidth=st.floats(0, 10_000),
    dirty_rate=st.floats(0, 10_000),
    stalled=st.integers(0, 10),
    since_throttle=st.integers(0, 10),
    throttle_percent=st.none() | st.integers(0, 99),
    elapsed_s=st.floats(0, 200),
)


@given(_OPTIONS, _FIGURES, st.integers(0, 5000))
def test_more_downtime_never_keeps_a_guest_from_switching_over(
    options: SendOptions, figures: Figures, more: int
) -> None:
    decision = decide(options, figures)
    eased = decide(replace(options, downtime_ms=options.downtime_ms + more), figures)
    assert eased.verdict is Verdict.SWITCH_OVER or eased == decision


@given(_OPTIONS, _FIGURES, st.integers(0, 100))
def test_more_time_never_leads_to_an_earlier_end(
    options: SendOptions, figures: Figures, more: int
) -> None:
    before, after = (
        decide(given, figures).verdict
        for given in (options, replace(options, timeout_s=options.timeout_s + more))
    )
    assert before in _ENDS or after not in _ENDS
    if after is Verdict.GIVE_UP:
        assert before is Verdict.GIVE_UP


@given(_OPTIONS, _FIGURES, st.integers(0, 10_000))
def test_less_dirt_never_keeps_a_guest_from_switching_over(
    options: SendOptions, figures: Figures, less: int
) -> None:
    cleaner = replace(figures, dirty_bytes=max(0, figures.dirty_bytes - less))
    if decide(options, figures).verdict is Verdict.SWITCH_OVER:
        assert decide(options, cleaner).verdict is Verdict.SWITCH_OVER


@given(_OPTIONS, _FIGURES)
def test_what_a_decision_may_be(options: SendOptions, figures: Figures) -> None:
    decision = decide(options, figures)
    if decision.verdict is Verdict.GIVE_UP:
        assert figures.elapsed_s >= options.timeout_s
        assert options.timeout_strategy is TimeoutStrategy.CANCEL
    if decision.verdict is Verdict.THROTTLE:
        assert figures.throttle_percent is not None
        assert figures.throttle_percent < decision.throttle_percent
        assert decision.throttle_percent <= options.throttle_cap_percent
    else:
        assert decision.throttle_percent == 0


# Guests that are only figures


def _migrated(
    writes: float, *, bandwidth: float = 1000.0, throttles: bool = False, **options: Any
) -> list[Decision]:
    """A guest of 10,000 bytes that writes `writes` bytes a second, all of them different ones."""
    allowed = SendOptions(downtime_ms=500, timeout_s=300, **options)
    course = Course()
    percent = 0 if throttles else None
    decisions: list[Decision] = []
    to_move, elapsed = 10_000.0, 0.0
    while True:
        seconds = to_move / bandwidth
        elapsed += seconds
        dirty = min(10_000.0, writes * (100 - (percent or 0)) / 100 * seconds)
        course.add(moved=int(to_move), settled=int(to_move), dirty=int(dirty), seconds=seconds)
        decision = decide(allowed, course.figures(elapsed_s=elapsed, throttle_percent=percent))
        decisions.append(decision)
        if decision.verdict in _ENDS:
            return decisions
        if decision.verdict is Verdict.THROTTLE:
            percent = decision.throttle_percent
            course.throttled()
        to_move = dirty


def test_a_guest_that_writes_less_than_is_moved_converges() -> None:
    decisions = _migrated(500.0)
    # 5000, 2500, 1250, 625 and 312 bytes are left.
    assert [decision.verdict for decision in decisions] == [
        *[Verdict.ITERATE] * 4,
        Verdict.SWITCH_OVER,
    ]


def test_a_guest_that_writes_more_than_is_moved_does_not() -> None:
    decisions = _migrated(1500.0)
    assert {decision.verdict for decision in decisions[:-1]} == {Verdict.ITERATE}
    assert decisions[-1].verdict is Verdict.GIVE_UP
    assert "the guest writes 1000 bytes/s, and 300 s are over" in decisions[-1].reason


def test_the_throttle_rescues_it() -> None:
    decisions = _migrated(1500.0, throttles=True)
    raised = [decision.throttle_percent for decision in decisions if decision.throttle_percent]
    # It writes 1500 bytes/s less 40 %: from there on each iteration leaves less.
    assert raised == [20, 30, 40]
    verdicts = [decision.verdict for decision in decisions]
    assert verdicts.index(Verdict.THROTTLE) == 4
    assert verdicts[5:9] == [
        Verdict.ITERATE, Verdict.THROTTLE, Verdict.ITERATE, Verdict.THROTTLE,
    ]  # fmt: skip
    assert verdicts[-1] is Verdict.SWITCH_OVER


def test_a_cap_that_is_too_low_does_not() -> None:
    decisions = _migrated(1500.0, throttles=True, throttle_cap_percent=25)
    raised = [decision.throttle_percent for decision in decisions if decision.throttle_percent]
    assert raised == [20, 25]
    assert decisions[-1].verdict is Verdict.GIVE_UP


@given(writes=st.floats(1, 950), bandwidth=st.floats(1000, 2000))
def test_whoever_writes_less_than_is_moved_converges(writes: float, bandwidth: float) -> None:
    assert _migrated(writes, bandwidth=bandwidth)[-1].verdict is Verdict.SWITCH_OVER
