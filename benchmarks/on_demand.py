"""Until a stored guest runs whose memory comes on demand, from 1 to 64 GiB.

    python -m benchmarks.on_demand [--rounds 5]

A whole `OnDemandSource` migration over a unix socket into the tests' receiver, which behaves as
Cloud Hypervisor's: it asks for one page before it restores, and is looked at when it has answered
Complete. The guests have 64 pages in each 64 MiB.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import aiomigrate
from aiomigrate import MigrationError, OnDemandSource, SendOptions
from benchmarks.offload_snapshot import GIB, MIB, PAGE, config_of, ours
from benchmarks.results import Recording
from tests.support.peer import Peer

SIZES = (1, 8, 64)


class Watched(Peer):
    """Asks for nothing more once it runs."""

    ran_at = 0.0

    def _ask_for_pages(self, *, first: bool) -> None:
        if not first:
            self.ran_at = time.perf_counter()
            raise OSError("it runs")
        super()._ask_for_pages(first=True)


async def seconds(stored: Path, address: str) -> float:
    """From opening the directory to the answer to Complete."""
    with Watched(address=address, fault_bytes=PAGE) as peer:
        begun = time.perf_counter()
        async with (
            OnDemandSource(stored, resume=True, force=True) as source,
            aiomigrate.send(source, peer.address, SendOptions(local=True)) as migration,
        ):
            with suppress(MigrationError):  # not all of its memory was fetched
                await migration.result()
        return peer.ran_at - begun


def measure(record: Recording, size: int, rounds: int) -> None:
    """A guest of so many GiB."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # on a disk, where /tmp may be memory
        place = Path(name)
        fd = os.memfd_create("guest")
        os.ftruncate(fd, size * GIB)
        for at in range(0, size * GIB, 64 * MIB):
            os.pwrite(fd, b"x" * 64 * PAGE, at)
        ours(fd, config_of(size * GIB), place / "vm", compressed=False)
        os.close(fd)
        taken = [
            1000 * asyncio.run(seconds(place / "vm", f"unix:{place}/{n}"))
            for n in range(1 + rounds)
        ][1:]  # the first calls kernels for the first time
    record.row(
        "until_it_runs",
        guest_gib=size,
        median_ms=statistics.median(taken),
        least_ms=min(taken),
        most_ms=max(taken),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with Recording("on_demand", "benchmarks.on_demand", vars(arguments)) as record:
        for size in SIZES:
            measure(record, size, arguments.rounds)


if __name__ == "__main__":
    main()
