"""Every fault at every place of a migration: who owns the VM afterwards?

A clean migration is recorded first, so that it is known where its messages begin and end. Then,
for each end of a message and the middle of each of its parts, on the main connection and on the
first lane, in both directions, a migration runs whose relay strikes just there. Through TLS it
strikes before and inside of records: of the handshake, of the first requests and of the last ones.
The clock is virtual: whatever waits, waits for a deadline.

`python -m tests.faults.matrix` runs all of it; docs/fault-matrix.md is made from its results.
"""

import asyncio
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import aiomigrate
from aiomigrate import (
    Deadlines,
    MigrationError,
    OutcomeUnknown,
    Owner,
    Pace,
    ReceiveOptions,
    Report,
    SendOptions,
)
from aiomigrate.protocol import ALL_EXTENSIONS, Extension
from aiomigrate.testing import Cut, Direction, FaultRelay, HalfClose, Reset, Stall
from benchmarks.results import Recording
from tests.support.captures import messages_of
from tests.support.certificates import Authority
from tests.support.clock import VirtualClockLoop
from tests.support.image import PAGE, Mapping
from tests.support.tap import tap
from tests.support.vms import Guest, Landing

__all__ = ["KINDS", "SETTINGS", "Setting", "Spot", "Wrong", "run_at", "spots_between", "spots_of"]

KINDS = (Cut, Reset, HalfClose, Stall)
MEMORY = (Mapping(0, 0, 128 * PAGE, "mem0", virtio_mem=False, file_offset=0),)
CHUNK = 8 * PAGE
DEADLINES = Deadlines(
    connect_s=1.0,
    header_s=1.0,
    pace=Pace(min_bytes=64 << 10, seconds=1.0),
    memory_answer_s=1.0,
    answer_s=2.0,
    idle_s=4.0,
    linger_s=0.5,
    abandon_s=1.0,
    commit_grace_s=0.5,
)
_RECORDS = 10
"""Of TLS, so many of the first and of the last are struck: a handshake has four or five."""
LIMIT_S = 60.0
"""No combination of these deadlines adds up to as much."""
NAMES = {1: "Start", 2: "Config", 3: "State", 4: "Memory", 5: "Complete", 6: "Abandon"} | {
    0x8000: "Session",
    0x8001: "Join",
    0x8002: "RetireLane",
    0x8004: "Zeros",
    0x8005: "Confirm",
}


class Wrong(AssertionError):
    """A fault that broke an invariant."""


@dataclass(frozen=True)
class Setting:
    """How the two sides migrate."""

    connections: int
    extensions: Extension
    fast: bool = False
    """Whether State and Complete go in one flight to a plain peer too."""
    tls_dir: Path | None = None

    def __str__(self) -> str:
        plain = "extensions" if self.extensions else "plain, fast" if self.fast else "plain"
        tls = "" if self.tls_dir is None else ", TLS"
        return f"{self.connections} connection{'s' * (self.connections > 1)}, {plain}{tls}"

    def through_tls(self, tls_dir: Path) -> "Setting":
        """The same with these certificates."""
        return replace(self, tls_dir=tls_dir)

    @property
    def sending(self) -> SendOptions:
        return SendOptions(
            connections=self.connections,
            chunk_bytes=CHUNK,
            downtime_ms=1,
            extensions=self.extensions,
            fast_switchover=self.fast,
            tls_dir=self.tls_dir,
            deadlines=DEADLINES,
        )

    @property
    def receiving(self) -> ReceiveOptions:
        return ReceiveOptions(
            linger_s=2.0, extensions=self.extensions, tls_dir=self.tls_dir, deadlines=DEADLINES
        )


SETTINGS = tuple(
    Setting(connections, extensions, fast)
    for connections in (1, 4)
    for extensions, fast in (
        (Extension.NONE, False),
        (Extension.NONE, True),
        (ALL_EXTENSIONS, False),
    )
)


@dataclass(frozen=True)
class Spot:
    """A byte of a connection, and what it is in the middle of or at the end of."""

    connection: int
    direction: Direction
    offset: int
    where: str


def make_guest() -> Guest:
    """A guest that writes before the first two collections, and while it is captured."""
    guest = Guest(MEMORY)
    chance = random.Random(5)

    def write() -> None:
        for _ in range(12):
            guest.write(chance.randrange(128) * PAGE, chance.randbytes(PAGE))

    for hook in ("collect 1", "collected 1", "collect 2", "capture"):
        guest.script[hook] = write
    return guest


async def spots_of(setting: Setting) -> list[Spot]:
    """The places of a clean migration: of the main connection and one lane, each way."""
    with make_guest() as guest, Landing() as landing:
        return await spots_between(guest, landing, setting.sending, setting.receiving)


async def spots_between(
    source: aiomigrate.Source,
    destination: aiomigrate.Destination,
    sending: SendOptions,
    receiving: ReceiveOptions,
) -> list[Spot]:
    """The same, of the migration of anything."""
    async with (
        aiomigrate.receive(destination, "tcp:127.0.0.1:0", receiving) as reception,
        tap(str(reception.address)) as (address, connections),
        aiomigrate.send(source, address, sending) as migration,
    ):
        await asyncio.gather(migration.result(), reception.result())
    spots: list[Spot] = []
    for number, tapped in enumerate(connections[:2]):
        who = "lane" if number else "main"
        if sending.tls_dir is not None:
            spots += _records(number, Direction.UP, bytes(tapped.up), who)
            spots += _records(number, Direction.DOWN, bytes(tapped.down), who)
            continue
        role = bool(number) and not sending.extensions
        spots += _up(number, bytes(tapped.up), who, role=role)
        spots += _down(number, bytes(tapped.up), len(tapped.down), who, role=role)
    return spots


def _up(number: int, data: bytes, who: str, *, role: bool) -> Iterator[Spot]:
    seen: Counter[str] = Counter()
    for message in messages_of(data, role=role):
        name = "role" if message.command is None else NAMES[message.command]
        seen[name] += 1
        if seen[name] > 2:  # one Memory is like the other
            continue
        yield Spot(number, Direction.UP, message.start, f"{who}: before {name}")
        for part in message.parts:
            middle = (part.start + part.end) // 2
            what = "" if part.kind == "role" else f"the {part.kind} of "
            yield Spot(number, Direction.UP, middle, f"{who}: in {what}{name}")
        yield Spot(number, Direction.UP, message.end, f"{who}: after {name}")


def _down(number: int, data: bytes, answered: int, who: str, *, role: bool) -> Iterator[Spot]:
    requests = [m for m in messages_of(data, role=role) if m.command is not None]
    seen: Counter[str] = Counter()
    for index, message in enumerate(requests[: answered // 16]):
        name = NAMES[message.command or 0]
        seen[name] += 1
        if seen[name] <= 2:
            at = 16 * index
            yield Spot(number, Direction.DOWN, at, f"{who}: before the answer to {name}")
            yield Spot(number, Direction.DOWN, at + 8, f"{who}: in the answer to {name}")


def _records(number: int, direction: Direction, data: bytes, who: str) -> Iterator[Spot]:
    """Before each TLS record, and in it (RFC 8446, section 5.1): the first and the last ones."""
    starts = []
    at = 0
    while at < len(data):
        starts.append(at)
        at += 5 + int.from_bytes(data[at + 3 : at + 5], "big")
    ends = [*starts[1:], at]
    way = "from the source" if direction is Direction.UP else "from the destination"
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if _RECORDS <= index < len(starts) - _RECORDS:
            continue
        yield Spot(number, direction, start, f"{who}, TLS: before a record {way}")
        yield Spot(number, direction, (start + end) // 2, f"{who}, TLS: in a record {way}")


async def run_at(setting: Setting, kind: type[Cut | Reset | HalfClose | Stall], spot: Spot) -> str:
    """Migrate with that fault: `done`, `source` or `unknown`. Raises `Wrong`."""
    fault = kind(connection=spot.connection, direction=spot.direction, after=spot.offset)
    clock = asyncio.get_running_loop()
    began = clock.time()
    with make_guest() as guest, Landing() as landing:
        async with (
            aiomigrate.receive(landing, "tcp:127.0.0.1:0", setting.receiving) as reception,
            FaultRelay(str(reception.address), faults=[fault]) as relay,
        ):
            async with aiomigrate.send(guest, relay.address, setting.sending) as migration:
                sent = await _end_of(migration)
            if reception.progress.phase == "waiting":  # it met strangers only, and waits on
                reception.cancel()
            received = await _end_of(reception)
        what = f"{kind.__name__} on {spot} ({setting}): {sent!r}, {received!r}"
        if clock.time() - began > LIMIT_S:
            raise Wrong(f"took {clock.time() - began:.1f} s: {what}")
        outcome = _judge(guest, landing, sent, what)
        if outcome == "source":
            await _migrate_again(guest, setting, what)
    return outcome


async def _end_of(migration: aiomigrate.Migration) -> Report | MigrationError:
    try:
        return await migration.result()
    except MigrationError as error:
        return error


def _judge(guest: Guest, landing: Landing, sent: Report | MigrationError, what: str) -> str:
    owned = landing.runs is not None
    if guest.running and owned:
        raise Wrong(f"two owners: {what}")
    if isinstance(sent, Report):
        if not owned or landing.digest() != guest.at_pause or guest.running:
            raise Wrong(f"not done: {what}")
        return "done"
    if isinstance(sent, OutcomeUnknown):
        if guest.running or guest.calls[-2:] != ["lost", "stop"]:
            raise Wrong(f"not paused: {what}")
        return "unknown"
    if sent.owner is not Owner.SOURCE or owned or not guest.running or guest.dirty.on:
        raise Wrong(f"not the source's: {what}")
    if "discard" not in landing.calls and "configure" in landing.calls:
        raise Wrong(f"not discarded: {what}")
    return "source"


async def _migrate_again(guest: Guest, setting: Setting, what: str) -> None:
    with Landing() as landing:
        async with (
            aiomigrate.receive(landing, "tcp:127.0.0.1:0", setting.receiving) as reception,
            aiomigrate.send(guest, str(reception.address), setting.sending) as migration,
        ):
            try:
                await asyncio.gather(migration.result(), reception.result())
            except MigrationError as error:
                raise Wrong(f"a new migration failed ({error}) after {what}") from error
        if landing.digest() != guest.at_pause:
            raise Wrong(f"a new migration brought other memory after {what}")


async def _run_all(record: Recording, tls_dir: Path) -> None:
    outcomes: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for setting in (*SETTINGS, *(one.through_tls(tls_dir) for one in SETTINGS)):
        for spot in await spots_of(setting):
            for kind in KINDS:
                outcome = await run_at(setting, kind, spot)
                outcomes[spot.where][_NAMES[kind]][outcome] += 1
        print(f"{setting}: done", flush=True)
    for where, by_fault in outcomes.items():
        cells = {fault: _cell(by_fault[fault]) for fault in _NAMES.values()}
        record.row("outcomes", where=where, **cells)
    runs = sum(count.total() for by_fault in outcomes.values() for count in by_fault.values())
    record.row("runs", migrations=runs)


_NAMES = {Cut: "cut", Reset: "reset", HalfClose: "half-close", Stall: "stall"}
_OUTCOMES = ("done", "source", "unknown")


def _cell(count: Counter[str]) -> str:
    return ", ".join(f"{outcome} {count[outcome]}" for outcome in _OUTCOMES if count[outcome])


def main() -> None:
    """Run the whole matrix and write its page."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Recording("fault_matrix", "tests.faults.matrix", {}) as record,
        asyncio.Runner(loop_factory=VirtualClockLoop) as runner,
    ):
        runner.run(_run_all(record, Authority().directory(Path(directory) / "tls")))


if __name__ == "__main__":
    main()
