"""A guest's memfd into a stored VM, beside `cp --sparse=always` plus `sync` of it, in turn.

    python -m benchmarks.offload_snapshot [--gib 4] [--populated 0.25] [--rounds 5] [--into DIR]

Also in turn: the same bytes by splice(2) through a pipe and fsync, which makes no checksum and sees
no zeros (copy_file_range does not go from a memfd to a disk), and our copy with compression. Then
how long it takes until the first page of a VM restored on demand is served, for several sizes; and
how much the process' own memory grew at most. All is durable when a clock stops. Half of the
populated memory cannot be compressed.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from aiomigrate import VmConfig
from aiomigrate.copying import save_memory
from aiomigrate.executor import JobExecutor
from aiomigrate.memory.stored import StoredVm
from aiomigrate.memory.storing import StoredVmWriter
from aiomigrate.serving import PageServer
from benchmarks.results import Recording

GIB = 1 << 30
MIB = 1 << 20
PAGE = 4096
_PIPE = MIB


def config_of(size: int) -> VmConfig:
    """A guest with one mapping."""
    mapping = {
        "slot": 0,
        "gpa": 0,
        "size": size,
        "zone_id": "mem0",
        "virtio_mem": False,
        "file_offset": 0,
    }
    document = {"vm_config": {}, "memory_manager_data": {"guest_ram_mappings": [mapping]}}
    return VmConfig.parse(json.dumps(document).encode())


def guest_of(size: int, populated: float) -> int:
    """A memfd of which a part is populated, in runs of 64 KiB to 8 MiB anywhere."""
    chance = random.Random(1)
    noise = chance.randbytes(8 * MIB)
    text = (b"what a guest may have in its memory " * (8 * MIB // 36 + 1))[: 8 * MIB]
    fd = os.memfd_create("guest")
    os.ftruncate(fd, size)
    while os.fstat(fd).st_blocks * 512 < populated * size:
        length = 64 * 1024 << chance.randrange(8)
        at = chance.randrange(0, size - length, PAGE)
        os.pwrite(fd, chance.choice((noise, text))[:length], at)
    return fd


def ours(fd: int, config: VmConfig, into: Path, *, compressed: bool) -> None:
    """A stored VM, durable and whole."""

    async def main() -> None:
        with JobExecutor() as executor, closing(StoredVmWriter(into)) as writer:
            writer.prepare(config, compressed=compressed)
            await save_memory(writer, config, {0: fd}, executor, lambda _: None)
            writer.write_state(b'{"snapshots": {}, "snapshot_data": null}')
            await executor.run(writer.sync)
            await executor.run(writer.commit, False, "benchmark")
            await executor.run(writer.confirm)

    asyncio.run(main())


def cp(fd: int, into: Path) -> None:
    """What an operator would type."""
    source = f"/proc/{os.getpid()}/fd/{fd}"
    subprocess.run(["cp", "--sparse=always", source, str(into)], check=True)
    subprocess.run(["sync", str(into)], check=True)


def splice(fd: int, into: Path) -> None:
    """The kernel moves the data, extent by extent."""
    size = os.fstat(fd).st_size
    target = os.open(into, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    first, second = os.pipe()
    try:
        os.ftruncate(target, size)
        at = 0
        while at < size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(fd, at, os.SEEK_HOLE)
            while at < end:
                moved = os.splice(fd, second, min(_PIPE, end - at), offset_src=at)
                done = 0
                while done < moved:
                    done += os.splice(first, target, moved - done, offset_dst=at + done)
                at += moved
        os.fsync(target)
    finally:
        for opened in (target, first, second):
            os.close(opened)


def timed(work: Callable[[Path], None], into: Path) -> float:
    """Seconds; what was made is removed."""
    begun = time.perf_counter()
    work(into)
    taken = time.perf_counter() - begun
    if into.is_dir():
        shutil.rmtree(into)
    else:
        into.unlink()
    os.sync()
    return taken


def compare(record: Recording, fd: int, config: VmConfig, rounds: int, place: Path) -> None:
    """All ways in turn."""
    ways: dict[str, Callable[[Path], None]] = {
        "ours": lambda into: ours(fd, config, into, compressed=False),
        "cp --sparse=always; sync": lambda into: cp(fd, into),
        "splice; fsync": lambda into: splice(fd, into),
        "ours, compressed": lambda into: ours(fd, config, into, compressed=True),
    }
    timed(ways["ours"], place / "warm")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            seconds[name].append(timed(work, place / "made"))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    base = seconds["cp --sparse=always; sync"]
    for name, taken in seconds.items():
        ratio = statistics.median(theirs / mine for theirs, mine in zip(base, taken, strict=True))
        record.row(
            "ways",
            way=name,
            median_s=statistics.median(taken),
            least_s=min(taken),
            most_s=max(taken),
            cp_and_sync_to_it=ratio,
        )
    record.row("memory", peak_grew_by_mib=grown / 1024)


def on_demand(record: Recording, sizes: list[int], place: Path) -> None:
    """Until the first page is served, and what was read for it."""
    for size in sizes:
        config = config_of(size)
        fd = os.memfd_create("guest")
        os.ftruncate(fd, size)
        for at in range(0, size, 64 * MIB):
            os.pwrite(fd, b"x" * 64 * PAGE, at)
        ours(fd, config, place / "vm", compressed=False)
        os.close(fd)
        taken = []
        held = 0
        for _ in range(5):
            empty = os.memfd_create("restored")
            begun = time.perf_counter()
            os.ftruncate(empty, size)

            async def first(empty: int = empty, size: int = size) -> None:
                with JobExecutor() as executor, StoredVm.open(place / "vm") as vm:
                    await PageServer(vm, {0: empty}, executor).serve(size // 2, PAGE)

            asyncio.run(first())
            taken.append(time.perf_counter() - begun)
            held = os.fstat(empty).st_blocks * 512
            os.close(empty)
        shutil.rmtree(place / "vm")
        record.row(
            "first_page",
            guest_gib=size // GIB,
            first_page_ms=statistics.median(taken) * 1000,
            memory_then_bytes=held,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=int, default=4)
    parser.add_argument("--populated", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--into", default=None, help="a directory on the disk to measure")
    arguments = parser.parse_args()
    size = arguments.gib * GIB
    with (
        tempfile.TemporaryDirectory(dir=arguments.into) as place,
        Recording("offload_snapshot", "benchmarks.offload_snapshot", vars(arguments)) as record,
    ):
        fd = guest_of(size, arguments.populated)
        compare(record, fd, config_of(size), arguments.rounds, Path(place))
        os.close(fd)
        on_demand(record, [GIB, 8 * GIB, 64 * GIB], Path(place))


if __name__ == "__main__":
    main()
