"""SIGKILL of either process at each boundary of a migration: what do the journals say afterwards?

A stored VM is sent from one process to another, through a relay that stops one direction of a
connection at a byte. When it has, one of the two processes is killed, and the other one goes on to
its end. Which side has the VM is then plain to see: the destination's directory stands, or it does
not. The journals are read as `aiomigrate outcome` reads them: the destination's must be right, the
source's must be right or in doubt, and never in doubt where it was not its own process that
ended too early to ask.

`python -m tests.faults.kills` runs all of it; docs/kill-matrix.md is made from its results.
"""

import asyncio
import shutil
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from aiomigrate import (
    MigrationError,
    Owner,
    ReceiveOptions,
    SendOptions,
    StoredDestination,
    StoredSource,
    receive,
    send,
)
from aiomigrate.outcome import find_all
from aiomigrate.protocol import REQUEST_BYTES
from aiomigrate.testing import Direction, FaultRelay, Stall
from benchmarks.results import Recording
from tests.faults.matrix import CHUNK, DEADLINES, Spot, Wrong, spots_between
from tests.support.image import Mapping
from tests.support.vms import MIB, store_vm

__all__ = ["Kill", "kills", "run"]

MEMORY = (Mapping(0, 0, MIB, "mem0", virtio_mem=False, file_offset=0),)
SIDES = ("source", "destination")
QUICK = replace(DEADLINES, settle_s=0.5)
WITHIN_S = 60.0


@dataclass(frozen=True)
class Kill:
    """Who is killed, and when: the bytes before `spot` have got through."""

    spot: Spot
    side: str
    connections: int


async def kills(connections: int) -> list[Kill]:
    """Each boundary of the main connection, and the middle of the answers to Complete and to what
    confirms it, for each side.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store_vm(folder / "vm", MEMORY)
        async with (
            StoredDestination(folder / "copy") as landing,
            StoredSource(folder / "vm", resume=True) as vm,
        ):
            spots = await spots_between(vm, landing, _sending(connections), _receiving())
    main = [spot for spot in spots if spot.connection == 0]
    last = (" in the answer to Complete", " in the answer to Confirm")
    boundaries = [spot for spot in main if " in " not in spot.where or spot.where.endswith(last)]
    return [Kill(spot, side, connections) for spot in boundaries for side in SIDES]


async def run(kill: Kill, folder: Path) -> str:
    """Migrate and kill: `destination` or `source`, and what the source's journal says of it.

    Raises `Wrong`.
    """
    store_vm(folder / "vm", MEMORY)
    stall = Stall(connection=0, direction=kill.spot.direction, after=kill.spot.offset)
    processes: dict[str, asyncio.subprocess.Process] = {}
    try:
        processes["destination"] = await _start("receive", folder, "tcp:127.0.0.1:0")
        address = await _line(processes["destination"])
        async with FaultRelay(address, faults=[stall]) as relay:
            processes["source"] = await _start("send", folder, relay.address, str(kill.connections))
            async with asyncio.timeout(WITHIN_S):
                await relay.struck(0)
                processes[kill.side].send_signal(signal.SIGKILL)
                await processes[kill.side].wait()
                relay.release()
                up = kill.spot.direction is Direction.UP
                started = kill.spot.offset >= (REQUEST_BYTES if up else 1)
                if kill.side == "source" and not started:  # the other may have met a stranger
                    processes["destination"].terminate()
                for process in processes.values():
                    await process.wait()
    finally:
        for process in processes.values():
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return await asyncio.to_thread(_judge, kill, folder)


def _judge(kill: Kill, folder: Path) -> str:
    owner = Owner.DESTINATION if (folder / "copy").exists() else Owner.SOURCE
    claims = {
        side: [finding.owner for finding in find_all(folder / side)]
        for side in SIDES
        if (folder / side).exists()
    }
    what = f"{kill.side} killed at {kill.spot} of {kill.connections}: {owner}, {claims}"
    destination, source = claims.get("destination", []), claims.get("source", [])
    if any(claim not in (owner, Owner.UNKNOWN) for claim in destination + source):
        raise Wrong(f"a journal is wrong: {what}")
    if Owner.UNKNOWN in destination:
        raise Wrong(f"a stored VM's destination always knows: {what}")
    if owner is Owner.DESTINATION and not destination:
        raise Wrong(f"taken over without a record: {what}")
    if not source:
        # Nothing had been given away.
        if owner is Owner.DESTINATION:
            raise Wrong(f"given away without a record: {what}")
        return "source, before any record"
    return f"{owner}, known" if source == [owner] else f"{owner}, in doubt at the source"


async def _start(*arguments: str | Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.faults.kills",
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(WITHIN_S):
        return (await process.stdout.readline()).decode().strip()


# The two processes


def _sending(connections: int, journal: Path | None = None) -> SendOptions:
    return SendOptions(connections=connections, chunk_bytes=CHUNK, deadlines=QUICK, journal=journal)


def _receiving(journal: Path | None = None) -> ReceiveOptions:
    return ReceiveOptions(deadlines=QUICK, linger_s=1.0, journal=journal)


async def _send(folder: Path, address: str, connections: int) -> None:
    options = _sending(connections, folder / "source")
    async with (
        StoredSource(folder / "vm", resume=True) as vm,
        send(vm, address, options) as migration,
    ):
        with suppress(MigrationError):
            await migration.result()


async def _receive(folder: Path, address: str) -> None:
    options = _receiving(folder / "destination")
    async with (
        StoredDestination(folder / "copy") as landing,
        receive(landing, address, options) as reception,
    ):
        print(reception.address, flush=True)
        with suppress(MigrationError):
            await reception.result()


# The command


async def _run_all(record: Recording) -> None:
    outcomes: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for connections in (1, 4):
        for kill in await kills(connections):
            folder = Path(tempfile.mkdtemp())
            outcomes[kill.spot.where][kill.side][await run(kill, folder)] += 1
            shutil.rmtree(folder)
        print(f"{connections} connections: done", flush=True)
    for where, by_side in outcomes.items():
        cells = {f"the {side} is killed": "; ".join(sorted(by_side[side])) for side in SIDES}
        record.row("outcomes", when=where, **cells)
    runs = sum(count.total() for by_side in outcomes.values() for count in by_side.values())
    record.row("runs", migrations=runs)


def main(arguments: list[str]) -> None:
    """One of the two processes, or all of it."""
    match arguments:
        case ["send", folder, address, connections]:
            asyncio.run(_send(Path(folder), address, int(connections)))
        case ["receive", folder, address]:
            asyncio.run(_receive(Path(folder), address))
        case _:
            with Recording("kill_matrix", "tests.faults.kills", {}) as record:
                asyncio.run(_run_all(record))


if __name__ == "__main__":
    main(sys.argv[1:])
