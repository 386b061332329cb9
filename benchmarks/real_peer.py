"""A real Cloud Hypervisor: its guest comes to us and goes back, and the downtime that it logs.

    CLOUD_HYPERVISOR_BIN=... CH_REMOTE_BIN=... python -m benchmarks.real_peer [--rounds 7]

Runs the interoperability tests of each cell (running and paused, 1, 4 and 8 connections), then
measures the downtime of an idle guest towards `aiomigrate receive`. The versions of a dialect share
a result, `real_peer_v52` or `real_peer_v53`.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import uvloop

from benchmarks.results import Recording, need_programs, skip
from tests.interop.test_cloud_hypervisor import give, take
from tests.support.cloud_hypervisor import (
    COUNTERS,
    Guest,
    Installation,
    Vmm,
    find_installation,
    work_of,
)


async def there_and_back(
    found: Installation, guest: Guest, work: Path, connections: int, *, running: bool
) -> tuple[str, int, str]:
    """How the guest came to us, the downtime in ms that its source logs, and how it went back."""
    (work / "first").mkdir()
    (work / "second").mkdir()
    taken = work / "taken"
    with Vmm(found, guest, work / "first", boots=True) as source:
        source.wait_work(more_than=COUNTERS)
        if not running:
            source.pause()
        came = await take(source, taken, connections)
        downtime = source.downtime_ms
    worked = work_of(next(taken.glob("memory-*")))
    with Vmm(found, guest, work / "second", boots=False) as destination:
        await give(taken, destination, connections, found.dialect, resume=running)
        state = destination.state
        if not running:
            destination.resume()
        destination.wait_work(more_than=worked)
    return ("running" if came.running else "paused"), downtime, f"{state}, counts on"


async def downtime(found: Installation, guest: Guest, work: Path, connections: int) -> int:
    """Milliseconds that the real source logs."""
    (work / "first").mkdir()
    with Vmm(found, guest, work / "first", boots=True) as source:
        await take(source, work / "taken", connections)
        return source.downtime_ms


def measure(record: Recording, found: Installation, built: Path, rounds: int) -> None:
    """All cells, and the downtimes."""
    record.row("peer", cloud_hypervisor=found.version, dialect=found.dialect)
    busy, idle = Guest.build(built, "slow"), Guest.build(built, "idle")
    for running in (True, False):
        for connections in (1, 4, 8):
            work = Path(tempfile.mkdtemp(dir=built))
            came, downtime_ms, went = uvloop.run(
                there_and_back(found, busy, work, connections, running=running)
            )
            record.row(
                "cells",
                guest="running" if running else "paused",
                connections=connections,
                came_to_us=came,
                downtime_ms=downtime_ms,
                went_back=went,
            )
    for connections in (1, 4, 8):
        figures = [
            uvloop.run(downtime(found, idle, Path(tempfile.mkdtemp(dir=built)), connections))
            for _ in range(rounds)
        ]
        record.row(
            "downtime",
            connections=connections,
            median_ms=statistics.median(figures),
            least_ms=min(figures),
            most_ms=max(figures),
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    need_programs("gcc", "ld")
    found = find_installation()
    if isinstance(found, str):
        skip(found)
    name = f"real_peer_{found.dialect}"
    with (
        tempfile.TemporaryDirectory() as built,
        Recording(name, "benchmarks.real_peer", vars(arguments)) as record,
    ):
        measure(record, found, Path(built), arguments.rounds)


if __name__ == "__main__":
    main()
