import pytest

from aiomigrate.downtime import Downtime, Stage, Stopwatch
from tests.support.clock import VirtualClockLoop

pytestmark = pytest.mark.asyncio(loop_factories=["virtual"])


async def test_stages_add_up_to_the_downtime(clock: VirtualClockLoop) -> None:
    watch = Stopwatch()
    clock.skip(10.0)
    for seconds, stage in enumerate(Stage, 1):
        watch.enter(stage)
        clock.skip(seconds)
        if stage is Stage.HAND_OVER:
            watch.enter(Stage.LAST_PASS)
            clock.skip(0.5)
    downtime = watch.stop()
    clock.skip(10.0)
    assert downtime == watch.stop()
    assert downtime == Downtime(
        pause_ms=1000,
        last_pass_ms=2500,
        capture_ms=3000,
        hand_over_ms=4000,
        restore_ms=5000,
        waiting_ms=6000,
    )
    assert watch.total_ms == 21_500


async def test_a_guest_that_was_never_paused(clock: VirtualClockLoop) -> None:
    watch = Stopwatch()
    clock.skip(1.0)
    assert watch.stop().pause_ms == watch.total_ms == 0
