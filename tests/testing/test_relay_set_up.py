"""Faults of the set-up: connections that are refused, held, or go behind another."""

import pytest

from aiomigrate.testing import Behind, Hold, Refuse, Struck
from tests.testing.relay_rig import both_loops, read_rest, receive, relayed, send


@both_loops
@pytest.mark.parametrize(("hard", "ending"), [(False, "end"), (True, "reset")])
async def test_a_refused_connection_never_reaches_the_target(hard: bool, ending: str) -> None:
    refusal = Refuse(connection=0, reset=hard)
    async with relayed(refusal) as rig:
        refused = await rig.connect()
        assert await read_rest(refused) == (b"", ending)
        near, far = await rig.pair()
        await send(near, b"second")
        assert await receive(far, 6) == b"second"
        assert rig.relay.strikes == (Struck(refusal, 0),)


@both_loops
async def test_a_held_connection_waits_in_the_accept_queue_with_those_after_it() -> None:
    async with relayed(Hold(connection=1)) as rig:
        await rig.pair()
        nears = [await rig.connect() for _ in range(2)]
        for name, near in zip((b"1", b"2"), nears, strict=True):
            await send(near, name)
        await rig.relay.struck(1)
        assert len(rig.relay.connections) == 1
        rig.relay.release(1)
        names = [await receive(await rig.accept(), 1) for _ in nears]
        assert sorted(names) == [b"1", b"2"]


@both_loops
async def test_a_connection_goes_behind_a_later_one() -> None:
    async with relayed(Behind(connection=0, other=1)) as rig:
        first, second = await rig.connect(), await rig.connect()
        await send(first, b"first")
        await send(second, b"second")
        assert await receive(await rig.accept(), 6) == b"second"
        assert await receive(await rig.accept(), 5) == b"first"


@both_loops
async def test_a_connection_goes_behind_one_that_is_refused() -> None:
    async with relayed(Behind(connection=0, other=1), Refuse(connection=1)) as rig:
        first, _ = await rig.connect(), await rig.connect()
        await send(first, b"first")
        assert await receive(await rig.accept(), 5) == b"first"
