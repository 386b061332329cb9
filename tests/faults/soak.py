"""Migrations without end: VMs whose memory is being written go back and forth, over bad links.

`python -m tests.faults.soak --migrations 10000` prints its seed, then tables: how the migrations
ended, what struck them, and what the process held at the start and at the end. docs/soak.md is made
from them. Every destination's memory is compared with the source's at pause; a VM that runs twice,
or nowhere, ends the run, and so does a process that grows.

Several VMs migrate at once, so that one may wait for a deadline while others move.
"""

import argparse
import asyncio
import gc
import hashlib
import logging
import mmap
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray

import aiomigrate
from aiomigrate import (
    GuestMemory,
    MigrationError,
    OutcomeUnknown,
    ReceiveOptions,
    Report,
    SendOptions,
    VmConfig,
)
from aiomigrate.protocol import ALL_EXTENSIONS, Extension
from aiomigrate.testing import (
    Cut,
    Delay,
    Direction,
    Fault,
    FaultRelay,
    HalfClose,
    Rate,
    Refuse,
    Reset,
    Stall,
)
from benchmarks.results import Recording, heading
from tests.faults import matrix
from tests.support.image import PAGE, Mapping
from tests.support.vms import STATE_JSON, config_of

__all__ = ["Tally", "soak"]

MEMORY = Mapping(0, 0, 512 * PAGE, "mem0", virtio_mem=False, file_offset=0)
CONFIG = config_of([MEMORY])
CHUNK = 16 * PAGE
VMS = 12
"""That migrate at once."""
WRITTEN, WRITES_S = 8, 0.01
"""Pages that a running guest writes, and how often."""
DEADLINES = replace(matrix.DEADLINES, answer_s=1.0, idle_s=2.0, settle_s=2.0)
GROWTH_KIB = 64 << 10
"""Of resident memory that the allocator and the kernel's page tables may keep."""


class Vm:
    """A running VM: what a source is, and where one arrives. Its memory is a memfd."""

    resumes = True

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.fd = os.memfd_create("soak", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, MEMORY.size)
        self.view = mmap.mmap(self.fd, MEMORY.size)
        self.running = False
        self.owned = False
        self.at_pause = b""
        self.dirty = self
        self._logging = False
        self._bitmap = self._fresh()
        self.memory: GuestMemory

    def digest(self) -> bytes:
        return hashlib.blake2b(self.view).digest()

    def map(self) -> GuestMemory:
        memory_map = VmConfig.parse(CONFIG).memory_map
        self.memory = GuestMemory.over_files(memory_map, {0: self.fd}, writable=True)
        return self.memory

    def close(self) -> None:
        self.view.close()
        os.close(self.fd)

    def write(self) -> None:
        """The guest works: some pages are written, if it runs."""
        if self.running:
            for _ in range(WRITTEN):
                self._write(self.chance.randrange(MEMORY.size // PAGE))

    def _write(self, page: int) -> None:
        at = page * PAGE
        self.view[at : at + 8] = self.chance.randbytes(8)
        self._bitmap[page // 64] |= np.uint64(1 << page % 64)

    # A dirty log

    @staticmethod
    def _fresh() -> NDArray[np.uint64]:
        return np.zeros(MEMORY.size // PAGE // 64, np.uint64)

    async def start(self) -> None:
        self._bitmap = self._fresh()

    async def collect(self) -> Sequence[NDArray[np.uint64]]:
        handed, self._bitmap = self._bitmap, self._fresh()
        return [handed]

    async def stop(self) -> None:
        pass

    # A source

    async def config(self) -> bytes:
        return CONFIG

    async def pause(self) -> None:
        self.running = False

    async def capture(self) -> bytes:
        self._write(0)  # as its devices may
        self.at_pause = self.digest()
        return STATE_JSON

    async def hand_over(self, destination: str) -> None:
        pass

    async def take_back(self, reason: BaseException) -> None:
        pass

    async def resume(self) -> None:
        self.running = self.owned = True

    async def release(self) -> None:
        self.owned = False

    async def lost(self, reason: BaseException) -> None:
        pass

    # A destination

    async def configure(self, config: VmConfig, source: str) -> GuestMemory:
        return self.map()

    async def restore(self, state: bytes) -> None:
        pass

    async def keep_paused(self) -> None:
        raise AssertionError("this guest runs")

    async def confirmed(self) -> None:
        pass

    async def discard(self, reason: BaseException) -> None:
        pass


@dataclass
class Tally:
    """What happened."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    lanes_lost: int = 0
    iterations: int = 0
    begun: int = 0

    @property
    def migrations(self) -> int:
        return self.outcomes.total()


def faults_of(chance: random.Random) -> list[Fault]:
    """None to three faults, anywhere."""
    return [_fault(chance) for _ in range(chance.choice((0, 1, 1, 1, 2, 3)))]


def _fault(chance: random.Random) -> Fault:
    connection = chance.randrange(7)
    direction = chance.choice(tuple(Direction))
    reach = 21 if direction is Direction.UP else 9
    after = int(2 ** chance.uniform(0, reach)) - 1
    at_byte = chance.choice((Cut, Reset, HalfClose, Stall))
    return chance.choice(
        (
            *4 * (at_byte(connection=connection, direction=direction, after=after),),
            Delay(connection=connection, direction=direction, seconds=chance.uniform(0, 0.02)),
            Rate(connection=connection, bytes_per_s=chance.uniform(2e5, 1e7)),
            Refuse(connection=connection, reset=chance.random() < 0.5),
        )
    )


async def _end_of(migration: aiomigrate.Migration) -> Report | MigrationError:
    try:
        return await migration.result()
    except MigrationError as error:
        return error


async def _migrate(vm: Vm, chance: random.Random, tally: Tally) -> Vm:
    """One migration; the VM as it is owned afterwards."""
    extensions = chance.choice((ALL_EXTENSIONS, ALL_EXTENSIONS, Extension.NONE))
    faults = faults_of(chance)
    sending = SendOptions(
        connections=chance.choice((1, 2, 4)),
        chunk_bytes=CHUNK,
        downtime_ms=50,
        timeout_s=5,
        timeout_strategy=aiomigrate.TimeoutStrategy.IGNORE,
        extensions=extensions,
        deadlines=DEADLINES,
    )
    receiving = ReceiveOptions(linger_s=1.0, deadlines=DEADLINES)
    arriving = Vm(chance)
    writing = asyncio.create_task(_write(vm))
    try:
        async with (
            aiomigrate.receive(arriving, "tcp:127.0.0.1:0", receiving) as reception,
            FaultRelay(str(reception.address), faults=faults) as relay,
        ):
            async with aiomigrate.send(vm, relay.address, sending) as migration:
                sent = await _end_of(migration)
            if reception.progress.phase == "waiting":
                reception.cancel()
            await _end_of(reception)
            tally.faults.update(type(strike.fault).__name__ for strike in relay.strikes)
    finally:
        writing.cancel()
    outcome = "done" if isinstance(sent, Report) else "source"
    if isinstance(sent, OutcomeUnknown):
        outcome = "unknown"
        assert not vm.running
        # Somebody looks at the destination, and decides.
        vm.owned = False
        if not arriving.owned:
            await vm.resume()
    assert vm.running + arriving.running == 1, (sent, vm.running, arriving.running)
    assert (outcome == "source") <= vm.running, sent
    assert (outcome == "done") <= arriving.running, sent
    tally.outcomes[outcome] += 1
    tally.lanes_lost += migration.progress.lanes_lost
    tally.iterations += migration.progress.iteration + 1
    ends, lives = (vm, arriving) if arriving.running else (arriving, vm)
    if arriving.running:
        assert arriving.digest() == vm.at_pause, "other memory arrived"
        vm.memory.close()
    elif hasattr(arriving, "memory"):
        await arriving.memory.aclose()
    ends.close()
    return lives


async def _write(vm: Vm) -> None:
    while True:
        vm.write()
        await asyncio.sleep(WRITES_S)


async def _live(seed: int, migrations: int, tally: Tally) -> None:
    """One VM's life, as long as there are migrations to begin."""
    chance = random.Random(seed)
    vm = Vm(chance)
    vm.map()
    vm.view[: MEMORY.size // 2] = chance.randbytes(MEMORY.size // 2)
    vm.running = vm.owned = True
    while tally.begun < migrations:
        tally.begun += 1
        vm = await _migrate(vm, chance, tally)
    await vm.memory.aclose()
    vm.close()


async def soak(seed: int, migrations: int, tally: Tally) -> None:
    """Run so many migrations; whatever goes wrong is raised."""
    async with asyncio.TaskGroup() as group:
        for number in range(min(VMS, migrations)):
            group.create_task(_live(seed + number, migrations, tally))


@dataclass(frozen=True)
class Holdings:
    """What the process holds."""

    resident_kib: int
    descriptors: int
    tasks: int

    @classmethod
    def now(cls) -> "Holdings":
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            pages * resource.getpagesize() >> 10,
            len(os.listdir("/proc/self/fd")),
            len(asyncio.all_tasks()),
        )


async def _run(record: Recording, seed: int, migrations: int) -> bool:
    await soak(seed, 4 * VMS, Tally())  # whatever is made once and kept
    before, began = Holdings.now(), time.monotonic()
    tally = Tally()
    watching = asyncio.create_task(_watch(tally))
    await soak(seed + VMS, migrations, tally)
    watching.cancel()
    await asyncio.wait([watching])
    after, took = Holdings.now(), time.monotonic() - began
    record.row(
        "migrations",
        migrations=tally.migrations,
        time_s=round(took),
        iterations=tally.iterations,
        lanes_lost=tally.lanes_lost,
    )
    for outcome, count in sorted(tally.outcomes.items()):
        record.row("outcomes", outcome=outcome, migrations=count)
    for fault, count in tally.faults.most_common():
        record.row("faults", fault=fault, struck=count)
    for name in ("resident_kib", "descriptors", "tasks"):
        start, end = getattr(before, name), getattr(after, name)
        record.row("held", what=heading(name), start=start, end=end)
    grew = after.resident_kib - before.resident_kib
    return (
        grew < GROWTH_KIB
        and after.descriptors <= before.descriptors
        and after.tasks <= before.tasks
    )


async def _watch(tally: Tally) -> None:
    while True:
        await asyncio.sleep(30)
        print(f"{tally.migrations} migrations: {dict(tally.outcomes)}", file=sys.stderr, flush=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--migrations", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    logging.disable(logging.WARNING)
    print(f"seed {seed}", flush=True)
    options = {"migrations": arguments.migrations, "seed": seed}
    with (
        Recording("soak", "tests.faults.soak", options) as record,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        steady = runner.run(_run(record, seed, arguments.migrations))
    if not steady:
        print("the process grew", file=sys.stderr)
    return 0 if steady else 1


if __name__ == "__main__":
    sys.exit(main())
