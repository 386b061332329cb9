"""Lanes that break a rule, of `receive`."""

import pytest

from aiomigrate.protocol import Limits
from tests.engine.engine_hostile import GOOD, failure_of, main_and_lane, reach, receiving
from tests.support.hostile import (
    ERROR,
    PAGE_FAULT,
    ROLE_MEMORY,
    SMALL_CONFIG,
    Raw,
    memory,
    raw_sources,
    request,
    table,
)
from tests.support.image import PAGE
from tests.support.peer import ABANDON, COMPLETE, CONFIG, MEMORY, MEMORY_FD, START, STATE
from tests.support.vms import STATE_JSON, Landing

pytestmark = pytest.mark.usefixtures("no_leaks")

_MOST = 2**64 - 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (request(CONFIG, SMALL_CONFIG), "got Config"),
        (request(STATE, STATE_JSON), "got State"),
        (request(COMPLETE), "got Complete"),
        (request(START), "got Start"),
        (request(ABANDON), "got Abandon"),
        (request(PAGE_FAULT, table([(0, PAGE)])), "got PageFault"),
        (request(MEMORY_FD, bytes(4)), "got MemoryFd"),
        (request(77), "77"),
        (request(MEMORY, bytes(17)), "multiple of 16 bytes, got 17 bytes"),
        (request(MEMORY, length=_MOST), f"got {_MOST} bytes"),
        (request(MEMORY, length=_MOST - 15), f"a range table of {_MOST - 15} bytes"),
        (memory([(0, PAGE), (2 << 30, PAGE)]), "range 1"),
        (memory([(0, 0)]), "is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_lane_that_breaks_a_rule_is_answered_and_ends_the_migration(
    data: bytes, says: str
) -> None:
    with Landing() as landing:
        async with receiving(landing) as reception:
            async with main_and_lane(reception) as (main, lane):
                await lane.send_in_vain(data)
                assert await lane.rest() == (ERROR, "eof")
                name = lane.name
                lane.close()
                assert await main.rest() == (b"", "eof")
            error = await failure_of(reception)
        assert f"lane {name}" in str(error)
        assert says in str(error)
        assert len(landing.discarded) == 1


async def test_one_lane_more_than_there_may_be() -> None:
    limit = Limits().max_connections
    with Landing() as landing:
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as main:
                await main.ask(GOOD["Start"])
                await main.ask(GOOD["Config"])
                async with raw_sources(reception.address, limit + 1) as lanes:
                    for lane in lanes[:-1]:
                        await lane.ask(ROLE_MEMORY + memory([(0, PAGE)]))
                    await lanes[-1].send(ROLE_MEMORY + memory([(PAGE, PAGE)]))
                    assert await lanes[-1].rest() == (ERROR, "eof")
                    last = lanes[-1].name
                    for lane in lanes[:-1]:
                        await lane.ask(memory([(0, PAGE)], b"\3" * PAGE))
                # The rest of the migration is not disturbed; should it fail, that is named.
                await main.send(request(COMPLETE))
                assert await main.rest() == (ERROR, "eof")
            error = await failure_of(reception)
        assert f"{last}: there are {limit} lanes already" in error.hint
        assert landing.view(0)[: 2 * PAGE] == b"\3" * PAGE + bytes(PAGE)


_PARTS = {
    "a byte of a header": memory([(PAGE, PAGE)])[:1],
    "a whole header": memory([(PAGE, PAGE)])[:16],
    "half a table": memory([(PAGE, PAGE)])[:24],
    "a table": memory([(PAGE, PAGE)])[:32],
    "half its content": memory([(PAGE, PAGE)])[: 32 + PAGE // 2],
}


@pytest.mark.parametrize("part", _PARTS)
async def test_a_lane_that_still_writes_at_state(part: str) -> None:
    with Landing() as landing:
        async with receiving(landing) as reception:
            async with main_and_lane(reception) as (main, lane):
                await lane.send(_PARTS[part])
                await main.ask(memory([(0, PAGE)]))  # the lane's bytes have been read meanwhile
                await main.send(GOOD["State"])
                assert await main.rest() == (ERROR, "eof")
                name = lane.name
            # That the lane ends in the middle now, too, is not what ended the migration.
            error = await failure_of(reception)
        assert f"lane {name} is" in str(error)
        assert "in the middle of a request at State" in str(error)
        assert landing.calls == ["configure", "discard"]


async def test_memory_on_a_new_lane_after_state() -> None:
    with Landing() as landing:
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as main:
                await reach(main, "State")
                with await Raw.connect(reception.address) as lane:
                    await lane.send_in_vain(ROLE_MEMORY + memory([(0, PAGE)], b"\7" * PAGE))
                    assert (await lane.rest())[0] == b""
                await main.ask(request(COMPLETE))
            await reception.result()
        assert landing.view(0)[:PAGE] == b"\1" * PAGE


async def test_memory_on_an_old_lane_after_state() -> None:
    with Landing() as landing:
        async with receiving(landing) as reception:
            async with main_and_lane(reception) as (main, lane):
                await main.ask(GOOD["State"])
                await lane.send_in_vain(memory([(0, PAGE)], b"\7" * PAGE))
                assert (await lane.rest())[0] == b""
                await main.ask(request(COMPLETE))
            await reception.result()
        assert landing.view(0)[:PAGE] == b"\1" * PAGE
