"""A real Cloud Hypervisor: its guest comes to us and goes back, and the downtime that it logs.

    CLOUD_HYPERVISOR_BIN=... CH_REMOTE_BIN=... python -m benchmarks.real_peer [--rounds 5]

Runs the interoperability tests of each cell (running and paused, 1, 4 and 8 connections), then
measures the downtime of an idle guest towards `aiomigrate receive`, and prints both.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import uvloop

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
) -> tuple[str, str]:
    """How the guest came to us, and how it went back."""
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
    return (
        f"{'running' if came.running else 'paused'}, downtime {downtime} ms",
        f"{state}, counts on",
    )


async def downtime(found: Installation, guest: Guest, work: Path, connections: int) -> int:
    """Milliseconds that the real source logs."""
    (work / "first").mkdir()
    with Vmm(found, guest, work / "first", boots=True) as source:
        await take(source, work / "taken", connections)
        return source.downtime_ms


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found = find_installation()
    if isinstance(found, str):
        raise SystemExit(found)
    print(f"Cloud Hypervisor {found.version}, dialect {found.dialect}")
    with tempfile.TemporaryDirectory() as name:
        built = Path(name)
        busy, idle = Guest.build(built, "slow"), Guest.build(built, "idle")
        for running in (True, False):
            for connections in (1, 4, 8):
                work = Path(tempfile.mkdtemp(dir=built))
                came, went = uvloop.run(
                    there_and_back(found, busy, work, connections, running=running)
                )
                guest = "running" if running else "paused"
                print(f"{guest}, {connections} connections: to us {came}; back {went}")
        for connections in (1, 4, 8):
            figures = [
                uvloop.run(downtime(found, idle, Path(tempfile.mkdtemp(dir=built)), connections))
                for _ in range(options.rounds)
            ]
            print(
                f"idle guest, {connections} connections: downtime median "
                f"{statistics.median(figures)} ms of {sorted(figures)}"
            )


if __name__ == "__main__":
    main()
