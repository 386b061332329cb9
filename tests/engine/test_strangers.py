"""Connections that are none of the migration's: before it has begun, and while it runs."""

import logging
from collections.abc import Awaitable, Callable

import pytest

from aiomigrate import (
    Phase,
    ReceiveOptions,
)
from aiomigrate.protocol import Limits
from tests.engine.engine_hostile import GOOD, failure_of, reach, receiving
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import (
    ERROR,
    OK,
    PAGE_FAULT,
    ROLE_FAULT,
    ROLE_MEMORY,
    SMALL_CONFIG,
    Raw,
    memory,
    migrate_whole,
    raw_sources,
    request,
    table,
)
from tests.support.image import PAGE
from tests.support.peer import (
    ABANDON,
    COMPLETE,
    CONFIG,
    MEMORY,
    MEMORY_FD,
    START,
    STATE,
)
from tests.support.turns import turns
from tests.support.vms import Landing

pytestmark = pytest.mark.usefixtures("no_leaks")

_MOST = 2**64 - 1


async def _silence(raw: Raw) -> None:
    """Says nothing, and stays."""


async def _scan(raw: Raw) -> None:
    raw.close()


async def _scan_reset(raw: Raw) -> None:
    raw.close(reset=True)


def _says(data: bytes, answer: bytes) -> Callable[[Raw], Awaitable[None]]:
    async def speak(raw: Raw) -> None:
        await raw.send_in_vain(data)
        assert await raw.rest() == (answer, "eof")

    return speak


def _says_and_ends(data: bytes) -> Callable[[Raw], Awaitable[None]]:
    async def speak(raw: Raw) -> None:
        await raw.send(data)
        raw.end()
        assert await raw.rest() == (b"", "eof")

    return speak


async def _half_a_start(raw: Raw) -> None:
    await raw.send(request(START)[:9])


_STRANGERS: dict[str, Callable[[Raw], Awaitable[None]]] = {
    "silence": _silence,
    "a port scan": _scan,
    "a port scan with reset": _scan_reset,
    "half a Start": _half_a_start,
    "half a Start and the end": _says_and_ends(request(START)[:9]),
    "one byte and the end": _says_and_ends(b"\1"),
    "HTTP": _says(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ERROR),
    "TLS": _says(bytes.fromhex("16030100c8010000c40303") + bytes(100), ERROR),
    "zeros": _says(bytes(64), ERROR),
    "Start of version 1": _says(request(START, headers=b"\1" + bytes(5)), ERROR),
    "Start with a payload": _says(request(START, b"x" * 100), ERROR),
    "Start with a drained payload": _says(request(START, b"x" * 65536), ERROR),
    "Start with a long payload": _says(request(START, b"x" * 200_000), ERROR),
    "Start with a huge payload": _says(request(START, length=_MOST), ERROR),
    "Config first": _says(request(CONFIG, SMALL_CONFIG), ERROR),
    "Memory first": _says(memory([(0, PAGE)]), ERROR),
    "State first": _says(request(STATE, b"{}"), ERROR),
    "Complete first": _says(request(COMPLETE), ERROR),
    "Abandon first": _says(request(ABANDON), OK),
    "PageFault first": _says(request(PAGE_FAULT, table([(0, PAGE)])), ERROR),
    "an unknown command": _says(request(77), ERROR),
}


@pytest.mark.parametrize("name", _STRANGERS)
async def test_a_stranger_does_not_harm_the_listener(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiomigrate")
    with Landing() as landing:
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as raw:
                who = raw.name
                await _STRANGERS[name](raw)
                assert reception.progress.phase is Phase.WAITING
                page = await migrate_whole(reception.address)
            report = await reception.result()
        assert report.confirmed
        assert landing.runs is True
        assert landing.view(0)[:PAGE] == page
    if "first" in name or "Start with" in name:
        assert any("refused: " in message and who in message for message in caplog.messages)


async def test_hundreds_of_strangers_do_not_keep_the_source_out() -> None:
    strangers = Limits().max_strangers + 60
    with Landing() as landing:
        async with receiving(landing) as reception:
            async with raw_sources(reception.address, strangers) as raws:
                # Those who have been silent longest make room.
                for raw in raws[:10]:
                    assert await raw.rest() == (b"", "eof")
                await migrate_whole(reception.address)
            assert (await reception.result()).confirmed
        assert landing.runs is True


async def test_strangers_between_real_connections() -> None:
    """Every kind of stranger comes while a migration over two lanes is going on."""
    with Landing() as landing:
        async with receiving(landing) as reception:
            address = reception.address
            with await Raw.connect(address) as main:
                await main.ask(GOOD["Start"])
                async with raw_sources(address, len(_LANE_STRANGERS)) as strangers:
                    await main.ask(GOOD["Config"])
                    with await Raw.connect(address) as one, await Raw.connect(address) as two:
                        await one.ask(ROLE_MEMORY + memory([(0, PAGE)]))
                        for raw, (data, answer) in zip(
                            strangers, _LANE_STRANGERS.values(), strict=True
                        ):
                            await raw.send_in_vain(data)
                            said, end = await raw.rest()
                            assert said == answer, data
                            assert end == "eof" or not answer, data
                        await two.ask(memory([(PAGE, PAGE)], b"\7" * PAGE))
                    await main.ask(GOOD["State"])
                    await main.ask(request(COMPLETE))
            await reception.result()
        assert landing.view(0)[: 2 * PAGE] == b"\1" * PAGE + b"\7" * PAGE


# What comes as a lane and never belonged: the bytes, and what they are answered.
_LANE_STRANGERS = {
    "role 0": (bytes(2), b""),
    "role 3": (b"\3\0", b""),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", b""),
    "a role, then Config": (ROLE_MEMORY + request(CONFIG, SMALL_CONFIG), ERROR),
    "a role, then State": (ROLE_MEMORY + request(STATE, b"{}"), ERROR),
    "a role, then Complete": (ROLE_MEMORY + request(COMPLETE), ERROR),
    "a role, then Start": (ROLE_MEMORY + request(START), ERROR),
    "a role, then Abandon": (ROLE_MEMORY + request(ABANDON), ERROR),
    "a role, then PageFault": (ROLE_MEMORY + request(PAGE_FAULT, table([(0, PAGE)])), ERROR),
    "a role, then MemoryFd": (ROLE_MEMORY + request(MEMORY_FD, bytes(4)), ERROR),
    "a role, then an unknown command": (ROLE_MEMORY + request(77), ERROR),
    "a table of 17": (ROLE_MEMORY + request(MEMORY, bytes(17)), ERROR),
    "a table of 2^64-16": (ROLE_MEMORY + request(MEMORY, length=_MOST - 15), ERROR),
    "a table of 2^64-1, v52": (request(MEMORY, length=_MOST), ERROR),
    "a range outside": (ROLE_MEMORY + memory([(2 << 30, PAGE)]), ERROR),
    "a range outside, v52": (memory([(2 << 30, PAGE)]), ERROR),
}


@pytest.mark.asyncio(loop_factories=["virtual"])
async def test_a_stranger_that_was_refused_and_stays_does_not_disturb_state(
    clock: VirtualClockLoop,
) -> None:
    """It got its Error and does not close: the migration neither fails nor waits for it."""
    began = clock.time()
    with Landing() as landing:
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as main:
                await reach(main, "Memory")
                async with raw_sources(reception.address, 2) as (command, outside):
                    await command.send(ROLE_MEMORY + request(STATE, b"{}"))
                    await outside.send(ROLE_MEMORY + memory([(2 << 30, PAGE)]))
                    assert await command.receive(16) == ERROR
                    assert await outside.receive(16) == ERROR
                    await main.ask(GOOD["State"])
                    await main.ask(request(COMPLETE))
            await reception.result()
        assert landing.runs is True
    assert clock.time() == began


async def test_fault_connections_are_limited_too() -> None:
    limits = Limits(max_strangers=4)
    with Landing() as landing:
        async with receiving(landing, ReceiveOptions(limits=limits)) as reception:
            with await Raw.connect(reception.address) as main:
                await reach(main, "Memory")
                async with raw_sources(reception.address, 0) as raws:
                    for _ in range(4):
                        raws.append(await Raw.connect(reception.address))
                        await raws[-1].send(ROLE_FAULT)
                        await main.ask(GOOD["Memory"])  # the role has been read meanwhile
                    with await Raw.connect(reception.address) as one_more:
                        assert await one_more.rest() == (b"", "eof")
                    await main.send(GOOD["State"])
                    assert await main.rest() == (ERROR, "eof")
                    main.close()
                    for raw in raws:
                        assert await raw.rest() == (b"", "eof")
            assert "post-copy" in str(await failure_of(reception))


# Those from another address than the source's: nothing of them is the migration's.

_ELSEWHERE = "127.0.0.9"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", ROLE_MEMORY + memory([(0, PAGE)], b"\7" * PAGE)),
        (ROLE_MEMORY[:1], ROLE_MEMORY[1:] + memory([(0, PAGE)], b"\7" * PAGE)),
        (b"", memory([(0, PAGE)], b"\7" * PAGE)),
        (b"", ROLE_FAULT),
        (ROLE_FAULT[:1], ROLE_FAULT[1:]),
    ],
    ids=["Memory", "half a role, then Memory", "Memory, v52", "Fault", "half a role, then Fault"],
)
async def test_a_foreign_stranger_that_came_first_gets_no_say(before: bytes, after: bytes) -> None:
    with Landing() as landing:
        async with receiving(landing) as reception:
            with (
                await Raw.connect(reception.address, _ELSEWHERE) as stranger,
                await Raw.connect(reception.address) as main,
            ):
                await stranger.send(before)
                await reach(main, "Memory")
                await stranger.send_in_vain(after)
                assert (await stranger.rest())[0] == b""
                await main.ask(GOOD["State"])
                await main.ask(request(COMPLETE))
            report = await reception.result()
        assert report.bytes == PAGE
        assert landing.view(0)[:PAGE] == b"\1" * PAGE
        assert landing.runs is True


async def test_foreign_strangers_do_not_take_the_place_of_lanes() -> None:
    with Landing() as landing:
        async with receiving(landing) as reception:
            async with raw_sources(reception.address, 300, _ELSEWHERE) as strangers:
                with await Raw.connect(reception.address) as main:
                    await reach(main, "Config")
                    async with raw_sources(reception.address, 2) as lanes:
                        for number, lane in enumerate(lanes):
                            await lane.ask(ROLE_MEMORY + memory([(number * PAGE, PAGE)]))
                        for stranger in strangers:
                            assert await stranger.rest() == (b"", "eof")
                        await main.ask(GOOD["State"])
                        await main.ask(request(COMPLETE))
            report = await reception.result()
        assert report.connections == 2
        assert landing.view(0)[: 2 * PAGE] == b"\1" * 2 * PAGE


async def test_an_allowed_lane_may_come_before_the_source() -> None:
    options = ReceiveOptions(allow_lanes_from=(_ELSEWHERE,))
    with Landing() as landing:
        async with receiving(landing, options) as reception:
            with (
                await Raw.connect(reception.address, _ELSEWHERE) as lane,
                await Raw.connect(reception.address) as main,
            ):
                await reach(main, "Config")
                await lane.ask(ROLE_MEMORY + memory([(0, PAGE)]))
                await main.ask(GOOD["State"])
                await main.ask(request(COMPLETE))
            await reception.result()
        assert landing.view(0)[:PAGE] == b"\1" * PAGE


async def test_the_first_table_of_a_lane_is_limited() -> None:
    """Until its table is found good nothing says that it belongs: it may not cost much."""
    limits = Limits(max_first_table_bytes=32)
    two, three = [(PAGE, PAGE), (2 * PAGE, PAGE)], [(n * PAGE, PAGE) for n in range(3)]
    with Landing() as landing:
        async with receiving(landing, ReceiveOptions(limits=limits)) as reception:
            with await Raw.connect(reception.address) as main:
                await reach(main, "Memory")
                with await Raw.connect(reception.address) as stranger:
                    await stranger.send_in_vain(ROLE_MEMORY + memory(three))
                    assert await stranger.rest() == (ERROR, "eof")
                assert landing.view(0)[: 3 * PAGE] == b"\1" * PAGE + bytes(2 * PAGE)
                with await Raw.connect(reception.address) as lane:
                    await lane.ask(ROLE_MEMORY + memory(two))
                    await lane.ask(memory(three))  # it belongs now
                    await main.ask(GOOD["State"])
                    await main.ask(request(COMPLETE))
            await reception.result()
        assert landing.runs is True
        assert landing.view(0)[: 3 * PAGE] == b"\1" * PAGE + b"\2" * PAGE + b"\3" * PAGE


async def test_who_has_not_said_what_it_is_is_held_until_the_source_has_its_error() -> None:
    """It may be a fault connection, whose end a stock source takes for success."""
    with Landing() as landing:
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as main:
                await main.ask(GOOD["Start"])
                await main.ask(GOOD["Config"])
                with await Raw.connect(reception.address) as silent:
                    await main.send(GOOD["State"])
                    assert await main.receive(16) == ERROR
                    with await Raw.connect(reception.address) as late:
                        await late.send(ROLE_FAULT)
                        await turns()
                        assert not silent.unread()
                        assert not late.unread()
                        main.close()
                        assert await silent.rest() == (b"", "eof")
                        assert (await late.rest())[0] == b""
            await failure_of(reception)
