"""The network between source and destination goes away: the interfaces of a real link are taken
down while a migration is on, and brought up again while both sides still wait, or after they have
given up.

Each side runs in a network namespace of its own, with its own event loop in its own thread. Where
the link comes back in time the migration is done. Where it does not, both sides end by their
deadlines, and who has the VM is certain, unless Complete was on its way. Never have both.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

import aiomigrate
from aiomigrate import (
    Deadlines,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    Pace,
    ReceiveOptions,
    Report,
    SendOptions,
)
from aiomigrate.testing import Link, LinkUnavailable
from tests.support.image import Mapping
from tests.support.leaks import Resources
from tests.support.vms import MIB, Guest, Landing

RAM = (Mapping(0, 0, 32 * MIB, "mem0", virtio_mem=False, file_offset=0),)
DIRT = 8 * MIB  # more than fits into the downtime, so that there is another iteration
OUTAGE_S = 0.3  # TCP sends again after 0.2 s, in vain
PATIENT = Deadlines()
SHORT_S = 2.0
HASTY = Deadlines(
    connect_s=SHORT_S,
    header_s=SHORT_S,
    pace=Pace(min_bytes=64 << 10, seconds=SHORT_S),
    memory_answer_s=SHORT_S,
    answer_s=SHORT_S,
    idle_s=SHORT_S,
    linger_s=0.5,
    abandon_s=0.5,
)
Outcome = Report | BaseException


@pytest.fixture
def link() -> Iterator[Link]:
    before = Resources.now()
    with ExitStack() as stack:
        try:
            made = stack.enter_context(Link())
        except LinkUnavailable as error:
            pytest.skip(str(error))
        yield made
    assert Resources.left_since(before) == []


@dataclass
class Away:
    """A migration over `link`, which goes away when `take_away` is called."""

    link: Link
    guest: Guest
    landing: Landing
    gone: threading.Event = field(default_factory=threading.Event)
    sent: "Future[Outcome]" = field(default_factory=Future)
    received: "Future[Outcome]" = field(default_factory=Future)

    def take_away(self) -> None:
        self.link.down()
        self.gone.set()

    def write_and_take_away(self) -> None:
        self.guest.write(0, bytes(DIRT))
        self.take_away()

    def run(self, deadlines: Deadlines, connections: int, outage_s: float | None) -> None:
        """Migrate to the end of both sides. The link comes back after `outage_s`, None: then."""
        address: Future[str] = Future()

        async def receive() -> Outcome:
            options = ReceiveOptions(deadlines=deadlines, linger_s=SHORT_S)
            where = f"tcp:{self.link.far_address}:0"
            async with aiomigrate.receive(self.landing, where, options) as reception:
                address.set_result(str(reception.address))
                return await outcome(reception)

        async def send() -> Outcome:
            options = SendOptions(
                deadlines=deadlines, connections=connections, downtime_ms=1, chunk_bytes=MIB
            )
            async with aiomigrate.send(self.guest, address.result(), options) as migration:
                return await outcome(migration)

        with ThreadPoolExecutor(2) as threads:
            self.received = threads.submit(self.link.far.call, asyncio.run, receive())
            self.sent = threads.submit(self.link.near.call, asyncio.run, send())
            if outage_s is not None:
                assert self.gone.wait(60)
                time.sleep(outage_s)
                self.link.up()
            ended, _ = wait([self.sent, self.received], timeout=60)
            self.link.up()
        assert len(ended) == 2
        assert self.gone.is_set()


async def outcome(migration: aiomigrate.Migration) -> Outcome:
    try:
        return await migration.result()
    except aiomigrate.MigrationError as error:
        return error


def iteration_0(away: Away) -> None:
    """While memory arrives for the first time."""

    async def watch() -> None:
        first = bytes(4096)
        while away.landing.view(0)[:4096] == first:
            await asyncio.sleep(0)
        away.take_away()

    watching: list[asyncio.Task[None]] = []
    away.guest.script["start"] = lambda: watching.append(asyncio.create_task(watch()))


def later_iteration(away: Away) -> None:
    away.guest.script["collect 1"] = away.write_and_take_away


def last_pass(away: Away) -> None:
    away.guest.script["pause"] = away.write_and_take_away


def answer_to_state(away: Away) -> None:
    away.landing.script["restore"] = away.take_away


def answer_to_complete(away: Away) -> None:
    away.landing.script["resume"] = away.take_away


MOMENTS = [iteration_0, later_iteration, last_pass, answer_to_state, answer_to_complete]
moments = pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
lanes = pytest.mark.parametrize("connections", [1, 4])


@lanes
@moments
def test_it_comes_back_in_time(
    link: Link, moment: Callable[[Away], None], connections: int
) -> None:
    with Guest(RAM) as guest, Landing() as landing:
        away = Away(link, guest, landing)
        moment(away)
        away.run(PATIENT, connections, OUTAGE_S)
        sent, received = away.sent.result(), away.received.result()
        assert isinstance(sent, Report), sent
        assert isinstance(received, Report), received
        assert (guest.running, guest.ended, landing.runs) == (False, True, True)
        assert landing.digest() == guest.digest()


@lanes
@moments
def test_it_does_not_come_back(
    link: Link, moment: Callable[[Away], None], connections: int
) -> None:
    with Guest(RAM) as guest, Landing() as landing:
        away = Away(link, guest, landing)
        moment(away)
        away.run(HASTY, connections, None)
        sent, received = away.sent.result(), away.received.result()
        if moment is answer_to_complete:
            assert isinstance(sent, OutcomeUnknown), sent
            assert isinstance(received, Report), received
            assert (guest.running, guest.ended, landing.runs) == (False, False, True)
            assert landing.digest() == guest.digest()
        else:
            assert isinstance(sent, MigrationFailed), sent
            assert sent.owner is Owner.SOURCE
            assert isinstance(received, MigrationFailed), received
            assert (guest.running, guest.ended, landing.runs) == (True, False, None)
            assert len(landing.discarded) == 1
