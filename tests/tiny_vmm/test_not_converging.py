"""A running guest writes faster than its memory may move, and whoever watches is told."""

import pytest

import aiomigrate
from aiomigrate import Progress, SendOptions
from aiomigrate.tiny_vmm.migrate import VmDestination, VmSource
from tests.support.tiny import KINDS, PASS, SerialLine, booted, check

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("kind", KINDS)
async def test_it_says_so_and_the_bar_never_runs_backwards(kind: str) -> None:
    line = SerialLine()
    seen: list[Progress] = []
    async with booted(kind, line) as vm:
        await line.tick(PASS)
        destination = VmDestination(line)
        # The guest writes all of its 3 MiB anew while they move: some 250 MiB/s.
        limited = SendOptions(connections=2, rate_limit=8 << 20, downtime_ms=1)
        async with (
            aiomigrate.receive(destination, "tcp:127.0.0.1:0") as reception,
            aiomigrate.send(VmSource(vm), str(reception.address), limited) as migration,
        ):
            async for progress in migration:
                seen.append(progress)
                if progress.trouble and not seen[-2].trouble:
                    migration.switch_over_now()
            report = await migration.result()
            await reception.result()
        assert destination.vm is not None
        async with destination.vm:
            await line.tick(PASS + 1)
    check(line.lines)
    (told,) = {progress.trouble for progress in seen} - {""}
    troubled = next(progress for progress in seen if progress.trouble)
    assert troubled.iteration >= 2
    assert troubled.dirty_rate is not None
    assert troubled.bandwidth is not None
    assert troubled.dirty_rate >= troubled.bandwidth
    assert f"{troubled.dirty_rate / 2**20:.1f} MiB/s and" in told
    assert f"and {troubled.bandwidth / 2**20:.1f} MiB/s are moved" in told
    assert "a higher rate limit or throttling, which will go further by itself would help" in told
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert max(fractions[:-1]) < 1 == fractions[-1]
    assert report.connections == 2
