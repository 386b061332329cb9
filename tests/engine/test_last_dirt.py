"""What is written last: little goes over the main connection, with what capturing writes; the rest
over the lanes, and the guest is captured only when all of that is answered.
"""

import asyncio
from collections.abc import Callable

import pytest

import aiomigrate
from aiomigrate import Report, SendOptions
from aiomigrate.iterating import SMALL_BYTES
from aiomigrate.protocol import ALL_EXTENSIONS, Extension
from tests.support.captures import messages_of
from tests.support.hostile import SMALL
from tests.support.image import PAGE
from tests.support.peer import MEMORY, STATE
from tests.support.tap import Tapped, tap
from tests.support.vms import Guest, Landing

pytestmark = pytest.mark.usefixtures("no_leaks")

MOST = SMALL_BYTES // PAGE
each_peer = pytest.mark.parametrize("extensions", [ALL_EXTENSIONS, Extension.NONE])


def _memories(tapped: Tapped, extensions: Extension, *, lane: bool) -> list[set[int]]:
    """The pages that each Memory of a connection carries."""
    return [
        {page for gpa, size in message.ranges for page in range(gpa // PAGE, (gpa + size) // PAGE)}
        for message in messages_of(bytes(tapped.up), role=lane and not extensions)
        if message.command == MEMORY
    ]


def _writes(guest: Guest, pages: range) -> Callable[[], None]:
    def write() -> None:
        for page in pages:
            guest.write(page * PAGE, bytes([page + 1]) * PAGE)

    return write


async def _migrate(
    guest: Guest,
    landing: Landing,
    extensions: Extension,
    captured: Callable[[list[Tapped]], None] = lambda _: None,
) -> tuple[Report, list[list[set[int]]]]:
    """Over two lanes: the report, and what each connection carried."""
    options = SendOptions(connections=2, chunk_bytes=8 * PAGE, extensions=extensions)
    capture = guest.script.get("capture", lambda: None)
    async with (
        aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception,
        tap(str(reception.address)) as (address, connections),
        aiomigrate.send(guest, address, options) as sending,
    ):

        def look_and_capture() -> None:
            captured(connections)
            capture()

        guest.script["capture"] = look_and_capture
        report, _ = await asyncio.gather(sending.result(), reception.result())
    assert landing.digest() == guest.at_pause
    return report, [
        _memories(tapped, extensions, lane=number > 0) for number, tapped in enumerate(connections)
    ]


@each_peer
@pytest.mark.parametrize("pages", [1, MOST])
async def test_little_goes_with_what_capturing_writes(pages: int, extensions: Extension) -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        guest.script["pause"] = _writes(guest, range(40, 40 + pages))
        guest.script["capture"] = _writes(guest, range(41, 50))
        report, (main, *lanes) = await _migrate(guest, landing, extensions)
    assert set().union(*main) == set(range(40, 50))
    assert sum(len(carried) for carried in main) == 10  # once, also what was written twice
    for lane in lanes:
        assert not set().union(*lane) & set(range(40, 50))  # they were zero in iteration 0
    assert report.iterations == 2


@each_peer
async def test_more_goes_over_the_lanes_and_capturing_waits_for_the_answers(
    extensions: Extension,
) -> None:
    def captured(connections: list[Tapped]) -> None:
        for number, tapped in enumerate(connections[1:], 1):
            messages = messages_of(bytes(tapped.up), role=not extensions)
            requests = [message for message in messages if message.command is not None]
            assert len(tapped.down) == 16 * len(requests), number
        seen.append(len(connections))

    seen: list[int] = []
    with Guest(SMALL) as guest, Landing() as landing:
        guest.script["pause"] = _writes(guest, range(40, 41 + MOST))
        report, (main, *lanes) = await _migrate(guest, landing, extensions, captured)
    assert seen == [3]
    assert main == []
    over_lanes = set().union(*(pages for lane in lanes for pages in lane))
    assert set(range(40, 41 + MOST)) <= over_lanes
    assert report.iterations == 2


@each_peer
async def test_what_capturing_writes_goes_over_the_main_connection(extensions: Extension) -> None:
    """However much it is: the lanes are closed by then."""
    with Guest(SMALL) as guest, Landing() as landing:
        guest.script["pause"] = _writes(guest, range(40, 60))
        guest.script["capture"] = _writes(guest, range(50, 64))
        _, (main, *lanes) = await _migrate(guest, landing, extensions)
    assert set().union(*main) == set(range(50, 64))
    assert set(range(40, 60)) <= set().union(*(pages for lane in lanes for pages in lane))


async def test_the_state_follows_what_was_written_last() -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        guest.script["pause"] = _writes(guest, range(40, 41))
        async with (
            aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception,
            tap(str(reception.address)) as (address, connections),
            aiomigrate.send(guest, address, SendOptions(connections=2)) as sending,
        ):
            await asyncio.gather(sending.result(), reception.result())
    commands = [message.command for message in messages_of(bytes(connections[0].up), role=False)]
    assert commands[-4:-2] == [MEMORY, STATE]
