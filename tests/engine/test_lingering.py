"""A destination whose VM the source may not know the owner of stays to be asked, and not longer."""

from typing import Any

import pytest

import aiomigrate
from aiomigrate import MigrationCancelled, MigrationFailed, Phase, ReceiveOptions
from tests.engine.engine_hostile import LOCAL
from tests.engine.engine_ownership import ABORTED, JOIN, TOKEN, begin, query
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import SMALL_CONFIG, Raw, memory, request
from tests.support.image import PAGE
from tests.support.peer import CONFIG, STATE
from tests.support.turns import turns, until
from tests.support.vms import STATE_JSON, Landing

pytestmark = pytest.mark.usefixtures("no_leaks")
virtual = pytest.mark.asyncio(loop_factories=["virtual"])


@virtual
async def test_it_does_not_stay_for_ever(clock: VirtualClockLoop) -> None:
    with Landing() as landing:
        options = ReceiveOptions(linger_s=7)
        async with aiomigrate.receive(landing, LOCAL, options) as reception:
            with await Raw.connect(reception.address) as raw:
                await begin(raw)
                raw.close(reset=True)
            began = clock.time()
            with pytest.raises(MigrationFailed):
                await reception.result()
            assert clock.time() - began == pytest.approx(7, abs=0.5)


# State may have been sent, with Complete behind it, and not have come


async def _with_memory(raw: Raw) -> None:
    await begin(raw, up_to_state=False)
    await raw.ask(request(CONFIG, SMALL_CONFIG))
    await raw.ask(memory([(0, PAGE)]))


@pytest.mark.parametrize("came", [b"", request(STATE, STATE_JSON)[:9], request(STATE, b"x")[:16]])
async def test_it_stays_where_state_may_be_lost(came: bytes) -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await _with_memory(raw)
                await raw.send(came)
                raw.end()
                assert (await raw.rest())[0] == b""
            assert await query(reception.address) == ABORTED
            with pytest.raises(MigrationFailed):
                await reception.result()
        assert landing.calls == ["configure", "discard"]


@pytest.mark.parametrize("where", ["no memory", "main", "lane"])
async def test_it_does_not_stay_where_state_cannot_have_been_sent(where: str) -> None:
    """Not before memory, nor while some is unanswered: this test would not end in time else."""
    cut = memory([(0, PAGE)])[:-1]
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                if where == "no memory":
                    await begin(raw, up_to_state=False)
                    await raw.ask(request(CONFIG, SMALL_CONFIG))
                else:
                    await _with_memory(raw)
                if where == "main":
                    await raw.send(cut)
                with await Raw.connect(reception.address) as lane:
                    if where == "lane":
                        await lane.ask(request(JOIN, TOKEN + bytes([1, 0, 0, 0])))
                        await lane.send(cut)
                        await until(lambda: _begun(reception))
                    raw.end()
                    with pytest.raises(MigrationFailed):
                        await reception.result()
        assert landing.calls == ["configure", "discard"]


def _begun(reception: aiomigrate.Reception) -> bool:
    """Whether a lane is in the middle of a request."""
    attempt: Any = reception._attempt
    return any(lane.begun for lane in attempt._arrivals.lanes)


async def test_staying_after_a_failure_can_be_cancelled() -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await begin(raw)
                raw.close(reset=True)
            await until(lambda: reception.progress.phase is Phase.FAILED)
            await turns()
            assert reception.cancel()
            with pytest.raises(MigrationFailed) as caught:
                await reception.result()
        assert not isinstance(caught.value, MigrationCancelled)
        assert landing.calls == ["configure", "restore", "discard"]
