"""Lanes that are lost on the way, between `send` and `receive`: what they carried is sent again."""

import asyncio
import contextlib
import random
import struct
from typing import Any

import pytest

import aiomigrate
from aiomigrate import MigrationFailed, Owner, SendOptions
from aiomigrate.lanes import Lanes
from aiomigrate.memory.ranges import Table
from aiomigrate.opening import Door
from aiomigrate.protocol import Extension
from aiomigrate.testing import Cut, Direction, Fault, FaultRelay, Reset, Stall
from aiomigrate.transport import ConnectFailed
from tests.engine.engine_running import CHUNK, assert_moved, through
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import ERROR, OK, Raw, Server
from tests.support.image import PAGE
from tests.support.peer import START, STATE
from tests.support.turns import turns, until
from tests.support.vms import Guest, Landing

pytestmark = pytest.mark.usefixtures("no_leaks")
virtual = pytest.mark.asyncio(loop_factories=["virtual"])

JOIN, RETIRE_LANE = 0x8001, 0x8002
JOIN_BYTES = 36
PLAIN = Extension.NONE


def writes(guest: Guest, rounds: int) -> None:
    """In each of so many iterations a part of memory is written again."""
    chance = random.Random(11)

    def write() -> None:
        for _ in range(24):
            gpa = chance.randrange(guest.mappings[0].size // PAGE) * PAGE
            guest.write(gpa, chance.randbytes(PAGE))

    for number in range(1, rounds + 1):
        guest.script[f"collect {number}"] = write
        guest.script[f"collected {number}"] = write


@pytest.mark.parametrize("kind", [Cut, Reset])
async def test_three_of_four_lanes_are_lost_one_after_the_other_while_memory_is_written(
    kind: type[Cut | Reset],
) -> None:
    # Replacements come as connections 5, 6, ...: one of them is lost too.
    faults = [
        kind(connection=1, direction=Direction.UP, after=JOIN_BYTES + CHUNK // 2),
        kind(connection=2, direction=Direction.UP, after=JOIN_BYTES + 2 * CHUNK),
        kind(connection=3, direction=Direction.UP, after=JOIN_BYTES + 3 * CHUNK),
        kind(connection=5, direction=Direction.UP, after=JOIN_BYTES + CHUNK),
    ]
    options = SendOptions(connections=4, chunk_bytes=CHUNK, downtime_ms=1)
    with Guest() as guest, Landing() as landing:
        writes(guest, 4)
        sent, received, relay = await through(guest, landing, faults, options)
        sent = assert_moved(guest, landing, sent, received)
        struck = {strike.connection for strike in relay.strikes}
        assert {1, 2, 3} <= struck
        assert sent.lanes_lost == len(struck)
        assert sum("was lost" in warning for warning in sent.warnings) == len(struck)


@virtual
async def test_a_lane_that_falls_silent_is_lost_by_its_deadline(clock: VirtualClockLoop) -> None:
    stall = Stall(connection=2, direction=Direction.UP, after=JOIN_BYTES + CHUNK // 2)
    options = SendOptions(connections=2, chunk_bytes=CHUNK)
    with Guest() as guest, Landing() as landing:
        began = clock.time()
        sent, received, _ = await through(guest, landing, [stall], options)
        sent = assert_moved(guest, landing, sent, received)
        assert sent.lanes_lost == 1
        assert clock.time() - began < 2 * options.deadlines.memory_answer_s + 10


async def test_without_any_lane_the_main_connection_carries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both are lost, and nothing can be connected any more."""
    opened = 0
    open_lane = Door.open

    async def only_two(door: Door, number: int) -> Any:
        nonlocal opened
        opened += 1
        if opened > 2:
            raise ConnectFailed(str(door.address), ["no route"])
        return await open_lane(door, number)

    monkeypatch.setattr(Door, "open", only_two)
    faults = [
        Reset(connection=1, direction=Direction.UP, after=JOIN_BYTES + CHUNK // 2),
        Reset(connection=2, direction=Direction.UP, after=JOIN_BYTES + CHUNK + 100),
    ]
    options = SendOptions(connections=2, chunk_bytes=CHUNK, downtime_ms=1)
    with Guest() as guest, Landing() as landing:
        writes(guest, 3)
        sent, received, relay = await through(guest, landing, faults, options)
        assert_moved(guest, landing, sent, received)
        assert len(relay.connections) == 3
        main = relay.connections[0]
        assert main.passed[Direction.UP] > guest.mappings[0].size // 4


@virtual
async def test_a_lane_that_replaces_the_only_one_between_two_iterations(
    clock: VirtualClockLoop,
) -> None:
    """The newest content wins: nothing of the iteration before is still on the way. On the virtual
    clock: until a lane is replaced.
    """
    options = SendOptions(connections=2, chunk_bytes=CHUNK, downtime_ms=1)
    with Guest() as guest, Landing() as landing:
        async with (
            aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception,
            aiomigrate.send(guest, str(reception.address), options) as migration,
        ):
            lanes: list[Lanes] = []

            async def lose_all() -> None:
                """Between two iterations; the new lanes are there before the next one."""
                lanes.append(migration._attempt._lanes)  # type: ignore[attr-defined]
                for number in range(0, 64, 3):
                    guest.write(number * PAGE, bytes([guest.collects]) * PAGE)
                old = lanes[-1].lanes
                for lane in old:
                    lane.connection.abort()
                while set(lanes[-1].lanes) & set(old) or len(lanes[-1].lanes) < 2:
                    await asyncio.sleep(0.01)

            for number in (1, 2, 3):
                guest.script[f"collect {number}"] = lose_all
            sent, received = await asyncio.gather(migration.result(), reception.result())
        assert_moved(guest, landing, sent, received)
        assert sent.lanes_lost == 6


@pytest.mark.parametrize("who", ["source", "destination"])
async def test_with_a_side_that_does_not_retire_a_lost_lane_ends_the_migration(who: str) -> None:
    reset = Reset(connection=1, direction=Direction.UP, after=2 + CHUNK // 2)
    options = SendOptions(
        connections=2, chunk_bytes=CHUNK, extensions=PLAIN if who == "source" else Extension(31)
    )
    with Guest() as guest, Landing() as landing:
        extensions = PLAIN if who == "destination" else None
        sent, received, _ = await through(guest, landing, [reset], options, extensions)
        assert isinstance(sent, MigrationFailed)
        assert isinstance(received, MigrationFailed)
        assert sent.owner is received.owner is Owner.SOURCE
        assert guest.running
        assert landing.runs is None
        assert len(landing.discarded) == 1


@virtual
async def test_lanes_that_are_refused_at_first_are_tried_again(clock: VirtualClockLoop) -> None:
    """Towards a peer that can retire lanes: some of them are enough to begin. On the virtual clock:
    until the one that was refused is connected again.
    """
    faults: list[Fault] = [Reset(connection=3, direction=Direction.UP, after=0)]
    options = SendOptions(connections=4, chunk_bytes=CHUNK)
    with Guest() as guest, Landing() as landing:
        tried = asyncio.Event()
        guest.script["collect 1"] = tried.wait
        async with (
            aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception,
            FaultRelay(str(reception.address), faults=faults) as relay,
            aiomigrate.send(guest, relay.address, options) as migration,
        ):
            while len(relay.connections) < 6:
                await asyncio.sleep(0.01)
            tried.set()
            sent, received = await asyncio.gather(migration.result(), reception.result())
        assert_moved(guest, landing, sent, received)
        assert any("1 of 4 lanes were refused" in warning for warning in sent.warnings)


async def test_a_refused_memory_is_no_lost_lane() -> None:
    """The disk at the destination is full: that is no reason to send it again elsewhere."""

    def full(table: Table) -> None:
        raise OSError(28, "No space left on device")

    options = SendOptions(connections=2, chunk_bytes=CHUNK)
    with Guest() as guest, Landing() as landing:

        def fill() -> None:
            if landing.memory is not None:
                landing.memory.prepare = full  # type: ignore[method-assign]

        landing.script["configure"] = lambda: asyncio.get_running_loop().call_soon(fill)
        sent, received, _ = await through(guest, landing, [], options)
        assert isinstance(sent, MigrationFailed)
        assert isinstance(received, MigrationFailed)
        assert "No space left on device" in str(received)
        assert guest.running


async def test_nothing_is_sent_again_before_the_lane_is_fenced() -> None:
    """By hand: the destination takes its time to answer RetireLane, and has a lane that is idle."""
    options = SendOptions(connections=2, chunk_bytes=CHUNK)
    with Guest() as guest, Server() as server:
        # All of it: this destination does not promise fresh memory.
        chunks = guest.mappings[0].size // CHUNK
        migration = aiomigrate.send(guest, server.address, options)
        async with asyncio.TaskGroup() as group:
            group.create_task(_refused_in_the_end(migration))
            with await server.accept() as main:
                await _accept_session(server, main)
                with await server.accept() as one, await server.accept() as other:
                    for lane in (one, other):
                        assert (await server.request(lane))[0] == JOIN
                        await lane.send(OK)
                    lost = await _all_taken(migration, chunks)
                    one.close(reset=True)
                    before = [await _answered(server, other) for _ in range(chunks - len(lost))]
                    assert await server.request(main) == (RETIRE_LANE, struct.pack("<I", 1))
                    await turns()
                    assert not other.unread()
                    await main.send(OK)
                    after = [await _answered(server, other) for _ in lost]
                    assert after == lost
                    assert not set(before) & set(lost)
                    assert (await server.request(main))[0] == STATE
                    await main.send(ERROR)
        assert guest.running


@virtual
async def test_chunks_that_every_lane_is_lost_with_end_the_migration(
    clock: VirtualClockLoop,
) -> None:
    """By hand: each lane is taken, and reset at its first Memory once the next one has come."""
    options = SendOptions(connections=2, chunk_bytes=CHUNK)
    with Guest() as guest, Server() as server:
        began = clock.time()
        migration = aiomigrate.send(guest, server.address, options)
        async with asyncio.TaskGroup() as group:
            with await _accepted(group, server, migration) as main:
                retiring = group.create_task(_answer_all(server, main))
                resetting = group.create_task(_reset_lanes(server))
                with pytest.raises(MigrationFailed, match="no Memory was answered") as caught:
                    await migration.result()
                resetting.cancel()
                await retiring
        assert caught.value.owner is Owner.SOURCE
        assert guest.running
        assert clock.time() - began < options.deadlines.answer_s + 60


async def _accepted(group: asyncio.TaskGroup, server: Server, migration: Any) -> Raw:
    """The main connection of a migration that runs in `group`, up to the answer to Config."""

    async def run() -> None:
        with contextlib.suppress(MigrationFailed):
            async with migration:
                await migration.result()

    group.create_task(run())
    main = await server.accept()
    await _accept_session(server, main)
    return main


async def _answer_all(server: Server, main: Raw) -> None:
    while (await server.request(main))[0] != -1:
        await main.send(OK)


async def _reset_lanes(server: Server) -> None:
    lanes: list[Raw] = []
    try:
        while True:
            lanes.append(await server.accept())
            assert (await server.request(lanes[-1]))[0] == JOIN
            await lanes[-1].send(OK)
            if len(lanes) > 1:
                await server.request(lanes[0])
                lanes.pop(0).close(reset=True)
    finally:
        for lane in lanes:
            lane.close()


async def _refused_in_the_end(migration: aiomigrate.Migration) -> None:
    with pytest.raises(MigrationFailed, match="refused State"):
        async with migration:
            pass


async def _accept_session(server: Server, main: Raw) -> None:
    assert (await server.request(main))[0] == START
    await main.send(struct.pack("<HIHQ", 1, 3, 0, 0))
    for _ in ("Session", "Config"):
        await server.request(main)
        await main.send(OK)


async def _all_taken(migration: Any, chunks: int) -> list[bytes]:
    """Wait until the two lanes have taken all there is: the tables of what lane 1 has."""
    lanes: Lanes = migration._attempt._lanes
    await until(lambda: sum(len(lane.unanswered_chunks) for lane in lanes.lanes) == chunks)
    (one,) = (lane for lane in lanes.lanes if lane.number == 1)
    return [chunk.table.tobytes() for chunk in one.unanswered_chunks]


async def _answered(server: Server, lane: Raw) -> bytes:
    """The table of the next Memory, which is answered."""
    _, table = await server.take_memory(lane)
    await lane.send(OK)
    return table
