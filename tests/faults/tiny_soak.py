"""A guest that checks its own memory goes to and fro between two processes, hundreds of times.

`python -m tests.faults.tiny_soak --round-trips 500` starts examples/tiny_vmm twice and has its
guest, which writes memory all the time, migrated over 4 connections from one to the other. In each
place it looks at every one of its pages before it moves on: a write that was lost ends the run, and
so do a number that it left out and a process that grows. Prints its seed, which decides how long
the guest stays where it is, then tables, of which docs/soak.md is made.
"""

import argparse
import asyncio
import os
import random
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from aiomigrate.tiny_vmm.kvm import why_unusable
from benchmarks.results import Recording, heading
from tests.support.terminal import Terminal
from tests.support.tiny import check

__all__ = ["Journey"]

MEMORY_MIB, BATCH, TICK_MS = 32, 64, 1
PASS = -(-(MEMORY_MIB - 1) * 256 // BATCH)
"""Ticks for all of the guest's pages."""
CONNECTIONS = 4
DOWNTIME_MS = 20
"""Shorter than the default, so that there are iterations."""
WITHIN_S = 120.0
"""For each thing that is waited for."""
WARM_TRIPS = 5
"""Round trips before it is looked what the processes hold: whatever is made once and kept."""
GROWTH_KIB = 16 << 10
"""Of a process' memory without the guest's that its allocator may keep."""


@dataclass(frozen=True)
class Holdings:
    """What a process holds."""

    anonymous_kib: int
    """Resident; guest memory is shared memory and does not count."""
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> "Holdings":
        status = Path(f"/proc/{pid}/status").read_text()
        numbers = {name: int(value) for name, value in re.findall(r"(\w+):\s+(\d+)", status)}
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        return cls(numbers["RssAnon"], descriptors, numbers["Threads"])


@dataclass
class Journey:
    """Two processes, and the guest's way between them so far."""

    here: Terminal
    there: Terminal
    chance: random.Random
    counted: list[str] = field(default_factory=list)
    """All that the guest has written, in order."""
    iterations: Counter[int] = field(default_factory=Counter)
    downtimes_ms: list[float] = field(default_factory=list)
    moved_mib: float = 0.0
    _begin: dict[Terminal, int] = field(default_factory=dict)

    async def migrate(self) -> None:
        """The guest moves, and looks at all of its pages there."""
        here, there = self.here, self.there
        if self.downtimes_ms:
            there.type("receive tcp:127.0.0.1:0")
        begin, heard_from = self._begin.get(here, 0), self._begin.get(there, 0)
        async with asyncio.timeout(WITHIN_S):
            heard = await there.expect("listening on (.*)", heard_from)
            here.type(f"send {heard[1]} {CONNECTIONS} {DOWNTIME_MS}")
            sent = await here.expect(
                r"sent: (\S+) MiB in (\d+) iterations, downtime (\S+) ms; the destination has",
                begin,
            )
            await there.expect("received: the guest runs here", heard_from)
            stay = PASS + 1 + self.chance.randrange(PASS)
            await there.expect(r"\| [0-9a-f]{8}$", heard_from, count=stay)
        self.counted += here.serial(begin)
        self._begin[here] = len(here.lines)
        self.moved_mib += float(sent[1])
        self.iterations[int(sent[2])] += 1
        self.downtimes_ms.append(float(sent[3]))
        self.here, self.there = there, here

    async def go(self, round_trips: int) -> None:
        """There and back, so often."""
        for trip in range(1, round_trips + 1):
            for _ in range(2):
                await self.migrate()
            if trip % 25 == 0:
                self.check()
                said = f"{trip} round trips: {self.holdings()}"
                print(said, file=sys.stderr, flush=True)

    def check(self) -> None:
        """AssertionError unless the guest counted without a gap and never complained."""
        check(self.counted + self.here.serial(self._begin.get(self.here, 0)))

    def holdings(self) -> tuple[Holdings, Holdings]:
        """Of the process with the guest, and of the other one."""
        return Holdings.of(self.here.pid), Holdings.of(self.there.pid)


async def _run(record: Recording, seed: int, round_trips: int, cpu: str) -> bool:
    guest = ("--memory-mib", str(MEMORY_MIB), "--batch", str(BATCH), "--tick-ms", str(TICK_MS))
    async with (
        Terminal("run", "--cpu", cpu, *guest) as first,
        Terminal("receive", "tcp:127.0.0.1:0") as second,
    ):
        journey = Journey(first, second, random.Random(seed))
        await first.expect(r"\| ", count=2 * PASS)
        began = time.monotonic()
        await journey.go(WARM_TRIPS)
        before = journey.holdings()
        await journey.go(round_trips - WARM_TRIPS)
        took = time.monotonic() - began
        after = journey.holdings()
        journey.check()
    _tell(record, journey, cpu, took)
    steady = True
    for process, old, new in zip(("first", "second"), before, after, strict=True):
        for what in ("anonymous_kib", "descriptors", "threads"):
            start, end = getattr(old, what), getattr(new, what)
            record.row("held", process=process, what=heading(what), start=start, end=end)
            steady &= end - start < (GROWTH_KIB if what == "anonymous_kib" else 1)
    return steady


def _tell(record: Recording, journey: Journey, cpu: str, took: float) -> None:
    downtimes = sorted(journey.downtimes_ms)
    record.row(
        "round_trips",
        guest=f"{MEMORY_MIB} MiB, {cpu}",
        round_trips=len(downtimes) // 2,
        time_s=round(took),
        counted_to=len(journey.counted),
        moved_gib=journey.moved_mib / 1024,
        connections=CONNECTIONS,
        downtime_median_ms=downtimes[len(downtimes) // 2],
        downtime_longest_ms=downtimes[-1],
    )
    for iterations, times in sorted(journey.iterations.items()):
        record.row("iterations", iterations=iterations, migrations=times)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--round-trips", type=int, default=500, help=f"{WARM_TRIPS} or more")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--cpu", choices=["kvm", "thread"], help="kvm where it can be used")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    cpu = arguments.cpu or ("thread" if why_unusable() else "kvm")
    print(f"seed {seed}", flush=True)
    options = {"round_trips": arguments.round_trips, "seed": seed, "cpu": cpu}
    with Recording("tiny_soak", "tests.faults.tiny_soak", options) as record:
        steady = asyncio.run(_run(record, seed, arguments.round_trips, cpu))
    if not steady:
        print("a process grew", file=sys.stderr)
    return 0 if steady else 1


if __name__ == "__main__":
    sys.exit(main())
