"""Source and destination as two processes in two network namespaces, and the link between them.

`python -m tests.faults.away source` and `... destination` are the two: each reads what to do from
its standard input and writes what happens to its standard output, a JSON object a line, one
migration after the other. At the moment that it was told it says so and stands still until a line
comes, so that the link is taken down exactly then.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiomigrate
from aiomigrate import Deadlines, MigrationError, MigrationFailed, Pace, ReceiveOptions, SendOptions
from aiomigrate.testing import Link, Namespace
from tests.support.image import Mapping
from tests.support.vms import MIB, Guest, Landing

__all__ = ["AT_DESTINATION", "AT_SOURCE", "DATA", "Away"]

ROOT = Path(__file__).resolve().parents[2]
RAM = (Mapping(0, 0, 32 * MIB, "mem0", virtio_mem=False, file_offset=0),)
DATA = 16 * MIB
"""A `Guest`'s first half; the rest is zeros."""
DIRT = 8 * MIB  # more than fits into the downtime, so that there is another iteration
SHORT_S = 1.5
HASTY = Deadlines(
    connect_s=SHORT_S,
    header_s=SHORT_S,
    pace=Pace(min_bytes=64 << 10, seconds=SHORT_S),
    memory_answer_s=SHORT_S,
    answer_s=SHORT_S,
    idle_s=SHORT_S,
    linger_s=0.5,
    abandon_s=0.5,
    settle_s=0.5,
)
AT_SOURCE = ("iteration 0", "a later iteration", "the last pass")
AT_DESTINATION = ("the answer to State", "the answer to Complete")
Said = dict[str, Any]


class Away:
    """The link and the two processes. A context manager; entering raises `LinkUnavailable`."""

    def __init__(self) -> None:
        self._link = Link()
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        self._link.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        self._link.__exit__(kind, error, trace)

    def migrate(self, moment: str, connections: int, *, comes_back: bool) -> tuple[Said, Said]:
        """Migrate, with the link down from `moment` on: what source and destination came to.

        It comes back once TCP has tried in vain and tried again, and both are patient; or when both
        have come to an end, by short deadlines.
        """
        try:
            if not self._processes:
                self._start("source", self._link.near)
                self._start("destination", self._link.far)
            order: Said = {"connections": connections, "hasty": not comes_back}
            listening = f"tcp:{self._link.far_address}:0"
            self._tell("destination", order | {"address": listening, "moment": moment})
            address = self._hear("destination")["listening"]
            self._tell("source", order | {"address": address, "moment": moment})
            side = "source" if moment in AT_SOURCE else "destination"
            assert self._hear(side) == {"at": moment}
            in_vain = self._sent_in_vain()
            self._link.down()
            self._tell(side, {})
            if comes_back:
                while self._sent_in_vain() < in_vain + 2:
                    time.sleep(0.01)
                self._link.up()
            ends = self._hear("source"), self._hear("destination")
            self._link.up()
        except BaseException:
            self._end()
            raise
        return ends

    def _start(self, side: str, namespace: Namespace) -> None:
        command = [sys.executable, "-m", "tests.faults.away", side]
        self._processes[side] = namespace.call(
            lambda: subprocess.Popen(
                command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )

    def _end(self) -> None:
        for process in self._processes.values():
            with process:  # closes its pipes, and waits
                process.kill()
        self._processes.clear()

    def _tell(self, side: str, what: Said) -> None:
        pipe = self._processes[side].stdin
        assert pipe is not None
        pipe.write(json.dumps(what) + "\n")
        pipe.flush()

    def _hear(self, side: str) -> Said:
        pipe = self._processes[side].stdout
        assert pipe is not None
        line = pipe.readline()
        assert line, f"the {side} has ended"
        said: Said = json.loads(line)
        return said

    def _sent_in_vain(self) -> int:
        """How often in both namespaces a segment had no route, or was not acknowledged in time."""
        total = 0
        for namespace in (self._link.near, self._link.far):
            total += _count(namespace, "snmp", "Ip:", "OutNoRoutes")
            total += _count(namespace, "netstat", "TcpExt:", "TCPTimeouts")
        return total


def _count(namespace: Namespace, file: str, table: str, name: str) -> int:
    """A counter of the kernel's; proc_net_snmp(5) has the format."""
    lines = namespace.call(Path(f"/proc/thread-self/net/{file}").read_text).splitlines()
    names, counts = (line.split() for line in lines if line.startswith(table))
    return int(counts[names.index(name)])


# The two processes


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _stand_still(moment: str) -> None:
    """All of this process does."""
    _say(at=moment)
    sys.stdin.readline()


async def _outcome(migration: aiomigrate.Migration) -> Said:
    try:
        report = await migration.result()
    except MigrationError as error:
        outcome = "failed" if isinstance(error, MigrationFailed) else "unknown"
        return {"outcome": outcome, "owner": error.owner, "what": str(error)}
    return {"outcome": "done", "owner": report.owner}


def _deadlines(order: Said) -> Deadlines:
    return HASTY if order["hasty"] else Deadlines()


async def _send(order: Said) -> None:
    moment = order["moment"]
    options = SendOptions(
        connections=order["connections"],
        deadlines=_deadlines(order),
        downtime_ms=1,
        chunk_bytes=MIB,
    )

    async def once_memory_moves() -> None:
        while not migration.progress.bytes_done:
            await asyncio.sleep(0)
        assert migration.progress.bytes_done < DATA
        _stand_still(moment)

    def write() -> None:
        guest.write(0, bytes(DIRT))

    def write_and_stand_still() -> None:
        write()
        _stand_still(moment)

    with Guest(RAM) as guest:
        if moment == "iteration 0":
            # The kernels may have all of that memory by then, and its answers while this process
            # stands still: there is more to move.
            guest.script["collect 1"] = write
        elif moment == "a later iteration":
            guest.script["collect 1"] = write_and_stand_still
        elif moment == "the last pass":
            guest.script["pause"] = write_and_stand_still
        migration = aiomigrate.send(guest, order["address"], options)
        async with migration:
            watching = asyncio.create_task(once_memory_moves()) if moment == "iteration 0" else None
            outcome = await _outcome(migration)
            if watching is not None:
                await watching
        _say(**outcome, running=guest.running, ended=guest.ended, digest=str(guest.digest()))


async def _receive(order: Said) -> None:
    moment = order["moment"]
    options = ReceiveOptions(deadlines=_deadlines(order), linger_s=SHORT_S)
    hooks = dict(zip(AT_DESTINATION, ("restore", "resume"), strict=True))
    with Landing() as landing:
        if moment in hooks:
            landing.script[hooks[moment]] = lambda: _stand_still(moment)
        async with aiomigrate.receive(landing, order["address"], options) as reception:
            _say(listening=str(reception.address))
            outcome = await _outcome(reception)
        discarded = len(landing.discarded)
        _say(**outcome, runs=landing.runs, discarded=discarded, digest=str(landing.digest()))


def main(side: str) -> None:
    """One of the two processes."""
    migrate: Callable[[Said], Any] = _send if side == "source" else _receive
    for line in sys.stdin:
        asyncio.run(migrate(json.loads(line)))


if __name__ == "__main__":
    main(sys.argv[1])
