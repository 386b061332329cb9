"""Lanes that join with a token, are lost, retired and replaced, at `receive`."""

import asyncio
import threading

import pytest

from aiomigrate import MigrationFailed, ReceiveOptions
from aiomigrate.protocol import Extension, Limits
from tests.engine.engine_hostile import failure_of, receiving
from tests.engine.engine_joined import (
    JOIN,
    SESSION,
    TOKEN,
    begin,
    end,
    join,
    migrating,
    page,
    retire,
)
from tests.support.hostile import ERROR, OK, ROLE_MEMORY, Raw, memory, raw_sources, request
from tests.support.image import PAGE
from tests.support.peer import STATE
from tests.support.turns import turns, until
from tests.support.vms import STATE_JSON, Landing

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_lane_joins_and_carries() -> None:
    with Landing() as landing:
        async with migrating(landing) as (reception, main):
            with await Raw.connect(reception.address) as lane:
                await lane.ask(join(1))
                await lane.ask(memory([(0, PAGE)], b"\x11" * PAGE))
                lane.close()
            await end(main)
            report = await reception.result()
        assert page(landing, 0) == b"\x11" * PAGE
        assert report.lanes_lost == 0


@pytest.mark.parametrize(
    ("opening", "answer"),
    [
        (join(2, bytes(16)), ERROR),
        (join(2, TOKEN[:15] + b"\0"), ERROR),
        (join(1), ERROR),
        (join(7), ERROR),
        (ROLE_MEMORY, b""),
        (memory([(0, PAGE)]), b""),
        (request(JOIN, TOKEN), ERROR),
        (request(JOIN, length=1 << 40), ERROR),
        (request(SESSION, TOKEN), b""),
    ],
    ids=[
        "another migration's token",
        "a token that is wrong at its end",
        "a number that is taken",
        "a number that is retired",
        "a plain peer's role",
        "a v52 peer's Memory",
        "no number",
        "a huge Join",
        "Session",
    ],
)
async def test_who_is_none_of_the_migrations_lanes_is_refused_without_harm(
    opening: bytes, answer: bytes
) -> None:
    with Landing() as landing:
        async with migrating(landing) as (reception, main):
            with (
                await Raw.connect(reception.address) as lane,
                await Raw.connect(reception.address) as other,
            ):
                await lane.ask(join(1))
                await main.ask(retire(7))
                await other.send_in_vain(opening)
                assert (await other.rest())[0] == answer
                await lane.ask(memory([(0, PAGE)], b"\x11" * PAGE))
                lane.close()
            await end(main)
            await reception.result()
        assert page(landing, 0) == b"\x11" * PAGE


async def test_a_lane_with_the_token_from_another_address_is_refused() -> None:
    with Landing() as landing:
        async with migrating(landing) as (reception, main):
            with await Raw.connect(reception.address, "127.0.0.2") as other:
                await other.send_in_vain(join(1))
                assert (await other.rest())[0] == b""
            await main.ask(memory([(0, PAGE)]))
            await end(main)
            await reception.result()


async def test_a_lane_with_the_token_from_a_network_that_is_allowed() -> None:
    options = ReceiveOptions(allow_lanes_from=("127.0.0.2/32",))
    with Landing() as landing:
        async with migrating(landing, options) as (reception, main):
            with await Raw.connect(reception.address, "127.0.0.2") as lane:
                await lane.ask(join(1))
                await lane.ask(memory([(0, PAGE)]))
                lane.close()
            await end(main)
            await reception.result()


@pytest.mark.parametrize("reset", [False, True], ids=["end of stream", "reset"])
@pytest.mark.parametrize("cut", [8, 16, 24, 32, 33, 32 + PAGE])
async def test_a_lane_that_is_lost_anywhere_is_retired_and_its_chunk_sent_again(
    cut: int, reset: bool
) -> None:
    chunk = memory([(0, 2 * PAGE)], b"\x11" * 2 * PAGE)
    with Landing() as landing:
        async with migrating(landing) as (reception, main):
            lane = await Raw.connect(reception.address)
            await lane.ask(join(1))
            await lane.send(chunk[:cut])
            lane.close(reset=reset)
            await main.ask(retire(1))
            with await Raw.connect(reception.address) as another:
                await another.ask(join(2))
                await another.ask(chunk)
                another.close()
            await end(main)
            report = await reception.result()
        assert page(landing, 0) + page(landing, 1) == b"\x11" * 2 * PAGE
        assert report.lanes_lost == 1


@pytest.mark.parametrize("how", ["lost", "stalls"])
async def test_state_is_refused_while_a_lane_is_in_the_middle_of_a_request(how: str) -> None:
    with Landing() as landing:
        async with migrating(landing) as (reception, main):
            with await Raw.connect(reception.address) as lane:
                await lane.ask(join(1))
                await lane.ask(memory([(0, PAGE)]))
                await lane.send(memory([(PAGE, 2 * PAGE)])[:-1])
                if how == "lost":
                    lane.close()
                    await until(lambda: not reception._attempt._arrivals.lanes)  # type: ignore[attr-defined]
                await main.send(request(STATE, STATE_JSON))
                assert await main.rest() == (ERROR, "eof")
            error = await failure_of(reception)
        assert "lane 1" in str(error)
        assert "in the middle of a request" in str(error)
        assert landing.state == b""


async def test_without_retirement_a_lost_lane_ends_the_migration() -> None:
    with Landing() as landing:
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as main:
                await begin(main, Extension.SESSION)
                lane = await Raw.connect(reception.address)
                await lane.ask(join(1))
                await lane.send(memory([(0, PAGE)])[:-1])
                lane.close()
                assert await main.rest() == (b"", "eof")
            error = await failure_of(reception)
        assert "the peer ended the stream after 4095 of 4096 bytes" in str(error)


async def test_late_bytes_of_a_retired_lane_do_not_reach_memory() -> None:
    """Its chunk stops in mid-page; newer content comes on another lane; then the rest comes."""
    with Landing() as landing:
        async with migrating(landing) as (reception, main):
            with (
                await Raw.connect(reception.address) as dead,
                await Raw.connect(reception.address) as lane,
            ):
                await dead.ask(join(1))
                await lane.ask(join(2))
                old = memory([(0, 2 * PAGE)], b"\x11" * 2 * PAGE)
                await dead.send(old[:-PAGE])
                await until(lambda: page(landing, 0) == b"\x11" * PAGE)
                await main.ask(retire(1))
                await lane.ask(memory([(0, 2 * PAGE)], b"\x22" * 2 * PAGE))
                await dead.send_in_vain(old[-PAGE:])
                assert (await dead.rest())[0] == b""
                lane.close()
            await end(main)
            await reception.result()
        assert page(landing, 0) + page(landing, 1) == b"\x22" * 2 * PAGE


async def test_a_lane_in_the_accept_queue_is_retired_before_it_was_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Landing() as landing:
        async with migrating(landing) as (reception, main):
            arrivals = reception._attempt._arrivals  # type: ignore[attr-defined]
            listener = arrivals._listener
            held, accept = asyncio.Event(), listener.accept

            async def accept_later() -> object:
                connection = await accept()
                await held.wait()
                return connection

            # The accept that is waiting takes one connection more; the next one is held.
            monkeypatch.setattr(listener, "accept", accept_later)
            with (
                await Raw.connect(reception.address) as first,
                await Raw.connect(reception.address) as late,
            ):
                await first.ask(join(1))
                await late.send(join(2) + memory([(0, PAGE)], b"\x11" * PAGE))
                await main.ask(retire(2))
                await first.ask(memory([(0, PAGE)], b"\x22" * PAGE))
                held.set()
                assert (await late.rest())[0] == ERROR
                first.close()
            await end(main)
            await reception.result()
        assert page(landing, 0) == b"\x22" * PAGE


async def test_a_retirement_waits_for_a_job_of_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled job goes on in its thread: it is joined before the answer."""
    begun, go_on = threading.Event(), threading.Event()
    with Landing() as landing:
        async with migrating(landing) as (reception, main):
            assert landing.memory is not None
            prepare = landing.memory.prepare

            def blocked(table: object) -> None:
                begun.set()
                go_on.wait()
                prepare(table)  # type: ignore[arg-type]

            monkeypatch.setattr(landing.memory, "prepare", blocked)
            with await Raw.connect(reception.address) as lane:
                await lane.ask(join(1))
                await lane.send(memory([(0, PAGE)]))
                await asyncio.to_thread(begun.wait)
                await main.send(retire(1))
                try:
                    await turns()
                    assert not main.unread()
                finally:
                    go_on.set()
                assert await main.receive(16) == OK
            await main.ask(memory([(0, PAGE)], b"\x22" * PAGE))
            await end(main)
            await reception.result()
        assert page(landing, 0) == b"\x22" * PAGE


async def test_a_lane_that_breaks_off_while_it_is_retired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content ends in the first page while a job prepares the second one."""
    prepared: list[object] = []
    begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr("aiomigrate.applying._PIECE_BYTES", PAGE)
    with Landing() as landing:
        async with migrating(landing) as (reception, main):
            assert landing.memory is not None
            prepare = landing.memory.prepare

            def blocked_at_the_second(table: object) -> None:
                prepared.append(table)
                if len(prepared) == 2:
                    begun.set()
                    go_on.wait()
                prepare(table)  # type: ignore[arg-type]

            monkeypatch.setattr(landing.memory, "prepare", blocked_at_the_second)
            with await Raw.connect(reception.address) as raw:
                await raw.ask(join(1))
                await raw.send(memory([(0, 2 * PAGE)])[: -PAGE - 1])
                await asyncio.to_thread(begun.wait)
            try:
                (lane,) = reception._attempt._arrivals.lanes  # type: ignore[attr-defined]
                await until(lambda: not lane.connection._reading._busy)
                await main.send(retire(1))
                await until(lane.task.cancelling)
            finally:
                go_on.set()
            assert await main.receive(16) == OK
            await main.ask(memory([(0, 2 * PAGE)], b"\x22" * 2 * PAGE))
            await end(main)
            await reception.result()
        assert page(landing, 0) + page(landing, 1) == b"\x22" * 2 * PAGE


async def test_lanes_that_are_gone_make_room_for_others() -> None:
    """128 at a time: numbers are never used again, places are."""
    limits = Limits(max_connections=2)
    with Landing() as landing:
        async with migrating(landing, ReceiveOptions(limits=limits)) as (reception, main):
            async with raw_sources(reception.address, 4) as lanes:
                await lanes[0].ask(join(1))
                await lanes[1].ask(join(2))
                await lanes[2].send(join(3))
                assert await lanes[2].rest() == (ERROR, "eof")
                lanes[0].close()
                await main.ask(retire(1))
                await lanes[3].ask(join(4))
                await lanes[3].ask(memory([(0, PAGE)]))
            await end(main)
            await reception.result()


async def test_numbers_of_lanes_are_limited() -> None:
    """Each is kept, so a source cannot have any number of them kept."""
    limits = Limits(max_lane_numbers=2)
    with Landing() as landing:
        async with migrating(landing, ReceiveOptions(limits=limits)) as (reception, main):
            await main.ask(retire(1))
            await main.ask(retire(2))
            await main.ask(retire(2))
            with await Raw.connect(reception.address) as lane:
                await lane.send(join(3))
                assert await lane.rest() == (ERROR, "eof")
            await main.send(retire(4))
            assert await main.rest() == (ERROR, "eof")
            error = await failure_of(reception)
        assert "there were 3 lanes" in str(error)


async def test_a_lane_that_is_refused_a_memory_ends_the_migration() -> None:
    """It is lost by nobody's fault but the source's."""
    with Landing() as landing:
        async with migrating(landing) as (reception, main):
            with await Raw.connect(reception.address) as lane:
                await lane.ask(join(1))
                await lane.send(memory([(2 << 30, PAGE)]))
                assert (await lane.rest())[0] == ERROR
                lane.close()
                assert await main.rest() == (b"", "eof")
            error = await failure_of(reception)
        assert isinstance(error, MigrationFailed)
        assert "lane 1" in str(error)
