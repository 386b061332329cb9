"""Small migrations that are cancelled at any of their suspensions, one after the other."""

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import aiomigrate
from aiomigrate import (
    Deadlines,
    Destination,
    Migration,
    MigrationError,
    Phase,
    ReceiveOptions,
    Report,
)
from tests.engine.engine_hostile import LOCAL
from tests.support.awaits import Awaits
from tests.support.clock import VirtualClockLoop
from tests.support.image import PAGE, Mapping
from tests.support.leaks import Resources
from tests.support.vms import Guest, Landing

__all__ = [
    "DEADLINES",
    "RAM",
    "By",
    "Run",
    "Side",
    "exhaust",
    "running_guest",
    "suspending_landing",
]

RAM = (Mapping(0, 0, 8 * PAGE, "mem0", virtio_mem=False, file_offset=0),)
DEADLINES = Deadlines(commit_grace_s=1.0, linger_s=1.0)
ENOUGH_S = 10_000.0
Side = Literal["source", "destination"]
By = Literal["migration", "embedder"]


@dataclass
class Run:
    """One migration with a cancellation in it."""

    side: Side
    by: By
    migrations: dict[Side, Migration] = field(default_factory=dict)
    tasks: dict[Side, asyncio.Task[None]] = field(default_factory=dict)
    cancelled: bool | None = None
    committed: bool = False
    """Whether the source had handed Complete over when it was cancelled."""

    def cancel(self) -> None:
        migration = self.migrations.get(self.side)
        source = self.migrations.get("source")
        self.committed = source is not None and source._attempt.committed
        if self.by == "migration" and migration is not None:
            self.cancelled = migration.cancel()
        elif self.side in self.tasks:
            self.tasks[self.side].cancel()

    async def embed(self, side: Side, migration: Migration) -> None:
        """What an embedder does; its migration can be looked at afterwards."""
        async with migration:
            self.migrations[side] = migration
            await migration.result()

    async def take(self, destination: Destination, address: asyncio.Future[str]) -> None:
        """The same at the destination, which says where it listens."""
        options = ReceiveOptions(deadlines=DEADLINES)
        async with aiomigrate.receive(destination, LOCAL, options) as reception:
            self.migrations["destination"] = reception
            address.set_result(str(reception.address))
            await reception.result()

    def outcome(self, side: Side) -> Report | BaseException | None:
        """How the engine's own task ended; None: there was none."""
        migration = self.migrations.get(side)
        if migration is None:
            return None
        task = migration._task
        assert task.done()
        assert not task.cancelled(), f"{side}: it ended without saying who has the VM"
        return task.exception() or task.result()

    async def play(
        self,
        at: int,
        receive: Callable[["Run", asyncio.Future[str]], Awaitable[None]],
        send: Callable[["Run", str], Awaitable[None]],
    ) -> bool:
        """Run both sides to their ends; whether suspension `at` was there."""
        loop = asyncio.get_running_loop()
        address: asyncio.Future[str] = loop.create_future()
        with Awaits(at, self.cancel) as awaits:
            receiving = self.tasks["destination"] = asyncio.ensure_future(
                _task(receive(self, address))
            )
            either: list[asyncio.Future[Any]] = [address, receiving]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if address.done():
                sending = self.tasks["source"] = asyncio.ensure_future(
                    _task(send(self, address.result()))
                )
                await asyncio.wait([sending], timeout=ENOUGH_S)
                assert sending.done(), "the source hangs"
                await asyncio.wait([receiving], timeout=ENOUGH_S)
                if not receiving.done():
                    reception = self.migrations["destination"]
                    assert reception.progress.phase is Phase.WAITING, "the destination hangs"
                    receiving.cancel()  # no source came, and that is no fault
            await asyncio.wait(self.tasks.values())
        for task in self.tasks.values():
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, MigrationError), error
        return awaits.reached


async def _task(awaitable: Awaitable[None]) -> None:
    await awaitable


async def exhaust(
    once: Callable[[int], Awaitable[bool]], clock: VirtualClockLoop, least: int
) -> None:
    """`once(k)` for each k until there is no such suspension; at least `least` of them. Nothing is
    left behind, nor told to nobody.
    """
    reported: list[dict[str, Any]] = []  # exceptions that nobody took, and the like
    clock.set_exception_handler(lambda _, context: reported.append(context))
    clock.patience = 0.005
    await once(1 << 30)  # whatever is made once and kept
    at, gone = 0, 0
    # Runs differ by a few suspensions: the end is where three in a row had no such one.
    while gone < 3:
        before = Resources.now()
        with warnings.catch_warnings(record=True) as unclosed:
            warnings.simplefilter("always")
            gone = 0 if await once(at) else gone + 1
            await asyncio.sleep(0)
            left = Resources.left_since(before)
        assert left == [], f"cancelled at suspension {at}"
        # What nobody closed is closed when it is collected, and says so.
        assert [str(warning.message) for warning in unclosed] == [], f"suspension {at}"
        assert reported == [], f"cancelled at suspension {at}"
        at += 1
    assert at > least, f"only {at} suspensions: the driver does not see the engine's tasks"


def running_guest() -> Guest:
    """Its hooks suspend, and it writes: a page before it is paused, a page while captured."""
    guest = Guest(RAM)

    def writes(page: int) -> Callable[[], Awaitable[None]]:
        async def write() -> None:
            await asyncio.sleep(0)
            guest.write(page * PAGE, bytes([page]) * PAGE)
            await asyncio.sleep(0)

        return write

    for name in ("config", "collect 1", "hand_over", "take_back", "resume", "release", "lost"):
        guest.script[name] = lambda: asyncio.sleep(0)
    guest.script |= {"start": lambda: asyncio.sleep(0), "stop": lambda: asyncio.sleep(0)}
    guest.script |= {"pause": writes(6), "capture": writes(7)}
    return guest


def suspending_landing() -> Landing:
    landing = Landing()
    for name in ("configure", "restore", "resume", "keep_paused", "confirmed", "discard"):
        landing.script[name] = lambda: asyncio.sleep(0)
    return landing
