"""Pre-copy of simulated guests, on the virtual clock: lanes that move so many pages a second, and a
guest that writes so many. What is sent is real elsewhere (test_embedding.py, test_tuning.py).
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import pytest

from aiomigrate import MigrationFailed, Phase, SendOptions, TimeoutStrategy
from aiomigrate.downtime import Stopwatch
from aiomigrate.executor import JobExecutor
from aiomigrate.hold import GuestHold
from aiomigrate.hooks import Hooks
from aiomigrate.iterating import Precopy
from aiomigrate.lanes import Lanes
from aiomigrate.progress import Tracker
from aiomigrate.tuning import Tuning
from tests.support.clock import VirtualClockLoop
from tests.support.image import PAGE
from tests.support.vms import Guest

pytestmark = [
    pytest.mark.asyncio(loop_factories=["virtual"]),
    pytest.mark.usefixtures("no_leaks"),
]
_PAGES = 1024
T = TypeVar("T")


class _Plain(Guest):
    """Writes `rate` different pages a second while it runs, as far as it is not throttled."""

    rate = 0.0
    percent = 0

    async def _hook(self, name: str) -> None:
        if name.startswith("collect "):
            now = asyncio.get_running_loop().time()
            if self.running:
                share = (100 - self.percent) / 100
                pages = min(_PAGES, round((now - self._looked_at) * self.rate * share))
                self.write(0, b"x" * (pages * PAGE) if pages else b"")
            self._looked_at = now
        await super()._hook(name)

    async def pause(self) -> None:
        # What was written up to here is collected with the guest paused.
        now = asyncio.get_running_loop().time()
        pages = min(_PAGES, round((now - self._looked_at) * self.rate))
        if pages:
            self.write(0, b"x" * pages * PAGE)
        await super().pause()

    _looked_at = 1000.0


class _Throttled(_Plain):
    async def throttle(self, percent: int) -> None:
        await self._hook(f"throttle {percent}")
        self.percent = percent


class _Lanes:
    """Lanes that move `bandwidth` pages a second."""

    def __init__(self, bandwidth: float) -> None:
        self.bandwidth = bandwidth
        self.moved: list[int] = []
        """Pages of each iteration that was moved to its end."""
        self.cancelled = 0

    async def move(self, tables: Iterator[Any], *, fresh: object = None) -> int:
        assert fresh is None
        nbytes = sum(int(table["length"].sum()) for table in tables)
        try:
            await asyncio.sleep(nbytes / PAGE / self.bandwidth)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.moved.append(nbytes // PAGE)
        return nbytes


@dataclass
class _Simulation:
    guest: _Plain
    lanes: _Lanes
    hold: GuestHold
    tracker: Tracker
    tuning: Tuning
    stopwatch: Stopwatch
    precopy: Precopy

    async def run(self) -> None:
        await self.precopy.run(None)

    async def failure(self) -> MigrationFailed:
        with pytest.raises(MigrationFailed) as caught:
            await self.run()
        return caught.value


class _Inline(JobExecutor):
    """Jobs that take none of the virtual time."""

    def start(self, job: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        done.set_result(job(*arguments))
        return done


@contextmanager
def _simulated(
    rate: float,
    *,
    bandwidth: float = 1000.0,
    throttles: bool = False,
    embedder_s: float = 300.0,
    **options: Any,
) -> Iterator[_Simulation]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    loop.patience = 0.001  # nothing here waits for a descriptor
    allowed = SendOptions(**({"downtime_ms": 100, "timeout_s": 60} | options))
    with _Throttled() if throttles else _Plain() as guest:
        guest.rate = rate
        tracker, tuning, stopwatch = Tracker(), Tuning(allowed), Stopwatch()
        hold = GuestHold(guest, Hooks("source", embedder_s, tracker.warnings))
        lanes = _Lanes(bandwidth)
        with _Inline() as executor:
            precopy = Precopy(
                guest.memory, hold, cast("Lanes", lanes), executor, tracker, tuning, stopwatch
            )
            yield _Simulation(guest, lanes, hold, tracker, tuning, stopwatch, precopy)


async def test_a_guest_that_writes_less_converges(clock: VirtualClockLoop) -> None:
    with _simulated(500.0) as simulation:
        await simulation.run()
        # Half as much is left each time; what fits into 100 ms is moved with the guest paused.
        assert simulation.lanes.moved == [1024, 512, 256, 128, 64]
        assert simulation.tracker.trouble == ""
        assert simulation.tracker.bandwidth == pytest.approx(1000 * PAGE)
        assert simulation.tracker.dirty_rate == pytest.approx(500 * PAGE)
        assert simulation.tracker.expected_downtime_ms == pytest.approx(64)
        assert simulation.stopwatch.stop().last_pass_ms == pytest.approx(64)
        assert simulation.guest.calls[-2:] == ["pause", "collect 5"]
    assert clock.time() == pytest.approx(1000 + 1.984)


async def test_a_guest_that_writes_more_does_not_and_that_is_said(clock: VirtualClockLoop) -> None:
    with _simulated(2000.0) as simulation:
        failure = await simulation.failure()
        assert "pause" not in simulation.guest.calls
    assert failure.what.startswith("pre-copy did not converge: 60 s are over, and ")
    assert failure.hint.startswith(
        "The guest writes 3.9 MiB/s and 3.9 MiB/s are moved: a downtime "
        "of 1024 ms, more bandwidth or a guest that writes less would help. "
    )
    # At the limit itself, not when the iteration has ended.
    assert clock.time() == pytest.approx(1060)
    assert simulation.lanes.cancelled == 1


async def test_the_throttle_rescues_it(clock: VirtualClockLoop) -> None:
    with _simulated(1500.0, throttles=True, timeout_s=600) as simulation:
        await simulation.run()
        calls = simulation.guest.calls
        throttled = [call for call in calls if call.startswith("throttle")]
        assert throttled == ["throttle 20", "throttle 30", "throttle 40"]
        assert simulation.tracker.throttle_percent == 40
        assert [text for text in simulation.tracker.decisions if text.startswith("throttle")] == [
            text for text in simulation.tracker.decisions if "iterations without progress" in text
        ]
        # Iteration 0 and four without progress, then two for each raise.
        assert [calls[calls.index(call) - 1] for call in throttled] == [
            "collect 5", "collect 7", "collect 9",
        ]  # fmt: skip
        await simulation.hold.release()
        assert calls[-3:] == ["throttle 0", "stop", "release"]
    assert clock.time() < 1060


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_throttle_that_does_not_work_ends_it(clock: VirtualClockLoop, hangs: bool) -> None:
    def fail() -> None:
        raise RuntimeError("no such cgroup")

    with _simulated(1500.0, throttles=True, embedder_s=20) as simulation:
        guest = simulation.guest
        guest.script["throttle 20"] = asyncio.Event().wait if hangs else fail
        failure = await simulation.failure()
        why = "did not return in 20 s" if hangs else "failed: RuntimeError('no such cgroup')"
        assert failure.what == f"source: throttle {why}"
        # Half of it may have been done.
        assert await simulation.hold.undo(failure) == ["", ""]
        assert guest.calls[-3:] == ["throttle 20", "throttle 0", "stop"]
        assert guest.running
    assert clock.time() < 1060


async def test_a_throttle_that_cannot_be_undone_is_told(clock: VirtualClockLoop) -> None:
    def fail() -> None:
        raise RuntimeError("no such cgroup")

    with _simulated(1e6, throttles=True) as simulation:
        guest = simulation.guest
        guest.script["throttle 0"] = fail
        failure = await simulation.failure()
        problems = await simulation.hold.undo(failure)
        assert "no such cgroup" in problems[0]
        assert guest.calls[-2:] == ["throttle 0", "stop"]
        assert simulation.tracker.warnings == [problems[0]]
    assert clock.time() == pytest.approx(1060)


async def test_a_guest_whose_cap_is_0_is_never_throttled(clock: VirtualClockLoop) -> None:
    with _simulated(1500.0, throttles=True, throttle_cap_percent=0) as simulation:
        failure = await simulation.failure()
        await simulation.hold.undo(failure)
        assert not any(call.startswith("throttle") for call in simulation.guest.calls)
    assert "a higher throttle cap would help" in failure.hint
    assert clock.time() == pytest.approx(1060)


async def test_a_lower_cap_eases_the_guest_within_an_iteration(clock: VirtualClockLoop) -> None:
    seen = []
    with _simulated(3000.0, throttles=True) as simulation:
        guest = simulation.guest

        def lower() -> None:
            assert guest.percent == 30
            seen.append((clock.time(), len(simulation.lanes.moved)))
            simulation.tuning.change(throttle_cap_percent=10)

        guest.script["throttle 30"] = lambda: clock.call_later(0.5, lower)
        guest.script["throttle 10"] = lambda: seen.append(
            (clock.time(), len(simulation.lanes.moved))
        )
        await simulation.failure()
        assert simulation.tracker.throttle_percent == 10
        assert [call for call in guest.calls if call.startswith("throttle")] == [
            "throttle 20", "throttle 30", "throttle 10",
        ]  # fmt: skip
    assert seen[0] == seen[1]


# The time limit


async def test_the_time_limit_ends_a_first_iteration(clock: VirtualClockLoop) -> None:
    with _simulated(0.0, bandwidth=1.0) as simulation:
        failure = await simulation.failure()
        await simulation.hold.undo(failure)
        assert simulation.guest.calls == ["start", "stop"]
    assert failure.what == (
        "pre-copy did not converge: 60 s are over, and "
        f"{_PAGES * PAGE} bytes of iteration 0 are not moved yet"
    )
    assert clock.time() == pytest.approx(1060)


async def test_the_time_limit_pauses_within_an_iteration(clock: VirtualClockLoop) -> None:
    with _simulated(1.0, bandwidth=8.0, timeout_strategy=TimeoutStrategy.IGNORE) as simulation:
        await simulation.run()
        # The iteration goes on with the guest paused, and what was written meanwhile follows.
        assert simulation.guest.calls == ["start", "pause", "collect 1"]
        assert simulation.lanes.moved == [1024, 60]
        assert simulation.stopwatch.stop().last_pass_ms == pytest.approx(1000 * (128 - 60 + 60 / 8))
        left = _PAGES * PAGE
        assert list(simulation.tracker.decisions) == [
            f"pause the guest: 60 s are over, and {left} bytes of iteration 0 are not moved yet"
        ]
        assert simulation.tracker.phase is Phase.SWITCHOVER
    assert clock.time() == pytest.approx(1000 + 128 + 60 / 8)


def _slow_once_paused(simulation: _Simulation) -> None:
    def slow() -> None:
        simulation.lanes.bandwidth = 0.1

    simulation.guest.script["pause"] = slow


async def test_the_time_limit_ends_the_last_pass(clock: VirtualClockLoop) -> None:
    with _simulated(50.0) as simulation:
        _slow_once_paused(simulation)
        failure = await simulation.failure()
        assert simulation.guest.calls[-2:] == ["pause", "collect 2"]
        await simulation.hold.undo(failure)
        assert simulation.guest.calls[-2:] == ["resume", "stop"]
        assert simulation.guest.running
    assert "60 s are over" in failure.what
    assert clock.time() == pytest.approx(1060)


async def test_the_last_pass_has_its_downtime_in_any_case(clock: VirtualClockLoop) -> None:
    """What fits is sent also when the time is over meanwhile."""
    tight: dict[str, Any] = {"bandwidth": 520.0, "timeout_s": 2, "downtime_ms": 700}
    with _simulated(100.0, **tight) as simulation:
        await simulation.run()
        assert simulation.lanes.moved == [1024, 197]
    assert clock.time() == pytest.approx(1000 + 1024 / 520 + 197 / 520)
    with _simulated(100.0, **tight) as simulation:
        simulation.guest._looked_at = began = clock.time()
        _slow_once_paused(simulation)
        assert "2 s are over" in (await simulation.failure()).what
    assert clock.time() == pytest.approx(began + 1024 / 520 + 0.7)


async def test_the_last_pass_takes_its_time_where_the_limit_is_ignored(
    clock: VirtualClockLoop,
) -> None:
    with _simulated(50.0, timeout_strategy=TimeoutStrategy.IGNORE) as simulation:
        _slow_once_paused(simulation)
        await simulation.run()
        assert simulation.lanes.moved == [1024, 51]
    assert clock.time() == pytest.approx(1000 + 1.024 + 510)


# Switching over when asked


async def test_it_switches_over_within_an_iteration(clock: VirtualClockLoop) -> None:
    with _simulated(2000.0) as simulation:
        clock.call_later(0.5, simulation.tuning.ask_to_switch_over)
        at: list[float] = []
        simulation.guest.script["pause"] = lambda: at.append(clock.time())
        await simulation.run()
        assert at == [pytest.approx(1000.5)]
        assert simulation.guest.calls == ["start", "pause", "collect 1"]
        assert simulation.lanes.moved == [1024, 1000]
    assert simulation.tracker.decisions[-1].startswith("pause the guest: it was asked for, and ")


async def test_what_that_iteration_carries_is_not_sent_again(clock: VirtualClockLoop) -> None:
    with _simulated(500.0) as simulation:
        clock.call_later(1.1, simulation.tuning.ask_to_switch_over)
        await simulation.run()
        # What was written in the 76 ms of iteration 1 before the pause.
        assert simulation.lanes.moved == [1024, 512, 38]


async def test_it_switches_over_as_soon_as_memory_is_sent(clock: VirtualClockLoop) -> None:
    with _simulated(2000.0) as simulation:
        simulation.tuning.ask_to_switch_over()
        await simulation.run()
        assert simulation.lanes.moved == [1024]
        assert simulation.stopwatch.stop().last_pass_ms == pytest.approx(1024)
    assert clock.time() == pytest.approx(1001.024)


async def test_it_pauses_once_however_often_it_is_asked(clock: VirtualClockLoop) -> None:
    with _simulated(2000.0) as simulation:
        for at in (0.5, 0.6, 1.5):
            clock.call_later(at, simulation.tuning.ask_to_switch_over)
        await simulation.run()
        assert simulation.guest.calls.count("pause") == 1
        assert simulation.guest.percent == 0


async def test_more_downtime_is_heeded_when_the_iteration_ends(clock: VirtualClockLoop) -> None:
    with _simulated(2000.0) as simulation:
        clock.call_later(1.5, lambda: simulation.tuning.change(downtime_ms=1100))
        await simulation.run()
        assert simulation.lanes.moved == [1024, 1024, 1024]
    assert clock.time() == pytest.approx(1000 + 3 * 1.024)


# Failures within an iteration


async def test_a_pause_that_fails_within_an_iteration_leaves_no_task(
    clock: VirtualClockLoop,
) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    with _simulated(0.0) as simulation:
        simulation.guest.script["pause"] = fail
        clock.call_later(0.5, simulation.tuning.ask_to_switch_over)
        assert (await simulation.failure()).what == "source: pause failed: RuntimeError('no')"
        assert simulation.lanes.cancelled == 1


async def test_an_error_of_the_lanes_comes_out(
    clock: VirtualClockLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object, **__: object) -> int:
        clock.skip(1.0)
        raise MigrationFailed("the lane was lost")

    with _simulated(0.0) as simulation:
        monkeypatch.setattr(simulation.lanes, "move", lost)
        assert (await simulation.failure()).what == "the lane was lost"


async def test_cancelling_ends_the_iteration(clock: VirtualClockLoop) -> None:
    with _simulated(0.0) as simulation:
        running = asyncio.create_task(simulation.run())
        clock.call_later(0.5, running.cancel)
        await asyncio.wait([running])
        assert running.cancelled()
        assert simulation.lanes.cancelled == 1
