"""What `Migration` promises about being cancelled, by name.

On the virtual clock: a hook that sleeps lets the seconds pass that a deadline gives.
"""

import asyncio

import pytest

import aiomigrate
from aiomigrate import (
    MigrationCancelled,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    Report,
    SendOptions,
)
from aiomigrate.protocol import Extension
from tests.engine.engine_cancelling import DEADLINES, By, running_guest, suspending_landing
from tests.engine.engine_hostile import LOCAL
from tests.support.turns import until
from tests.support.vms import Landing

pytestmark = pytest.mark.asyncio(loop_factories=["virtual"])


@pytest.mark.parametrize("by", ["migration", "embedder"])
async def test_a_reception_that_is_cancelled_before_its_first_step(by: By, no_leaks: None) -> None:
    """Its listener is closed though nothing of the engine's task ever ran."""
    with Landing() as landing:
        reception = aiomigrate.receive(landing, LOCAL)
        if by == "migration":
            with pytest.raises(MigrationCancelled):
                async with reception:
                    assert reception.cancel()
        else:
            with pytest.raises(ZeroDivisionError):
                async with reception:
                    raise ZeroDivisionError
        with pytest.raises(MigrationCancelled):
            await reception.result()


async def test_a_second_cancellation_does_not_hide_who_has_the_vm(no_leaks: None) -> None:
    with running_guest() as guest, suspending_landing() as landing:

        async def twice() -> None:
            sending.cancel()
            asyncio.get_running_loop().call_soon(sending._task.cancel)

        guest.script["capture"] = twice
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with pytest.raises(MigrationCancelled):
                async with aiomigrate.send(guest, str(reception.address)) as sending:
                    pass
            with pytest.raises(aiomigrate.MigrationFailed):
                await reception.result()
        assert guest.running
        assert "resume" in guest.calls


async def test_cancel_says_when_it_is_too_late(no_leaks: None) -> None:
    said: list[tuple[bool, bool]] = []
    with running_guest() as guest, suspending_landing() as landing:

        async def resume() -> None:
            said.append((sending.cancel(), reception.cancel()))

        landing.script["resume"] = resume
        async with (
            aiomigrate.receive(landing, LOCAL) as reception,
            aiomigrate.send(guest, str(reception.address)) as sending,
        ):
            await sending.result()
            await reception.result()
        assert said == [(False, False)]
        assert guest.ended
        assert landing.runs is True


async def test_the_answer_to_complete_is_waited_for_when_cancelled(no_leaks: None) -> None:
    with running_guest() as guest, suspending_landing() as landing:

        async def resume() -> None:
            sending._task.cancel()
            await asyncio.sleep(DEADLINES.commit_grace_s / 2)

        landing.script["resume"] = resume
        async with (
            aiomigrate.receive(landing, LOCAL) as reception,
            aiomigrate.send(
                guest, str(reception.address), SendOptions(deadlines=DEADLINES)
            ) as sending,
        ):
            assert isinstance(await sending.result(), Report)
            assert (await reception.result()).confirmed
        assert guest.ended


async def test_but_not_for_long(no_leaks: None) -> None:
    options = SendOptions(deadlines=DEADLINES, extensions=Extension.NONE)
    with running_guest() as guest, suspending_landing() as landing:

        async def resume() -> None:
            sending._task.cancel()
            await asyncio.sleep(2 * DEADLINES.commit_grace_s)

        landing.script["resume"] = resume
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with pytest.raises(OutcomeUnknown, match="cancelled while Complete was unanswered"):
                async with aiomigrate.send(guest, str(reception.address), options) as sending:
                    pass
            # The source hung up meanwhile: that does not take the VM from where it runs.
            assert not (await reception.result()).confirmed
        assert "lost" in guest.calls
        assert not guest.running
        assert landing.runs is True


@pytest.mark.parametrize("hook", ["restore", "resume"])
async def test_then_a_destination_that_can_be_asked_is(hook: str, no_leaks: None) -> None:
    """State and Complete are in flight: what is not taken over yet stays at the source."""
    options = SendOptions(deadlines=DEADLINES)
    with running_guest() as guest, suspending_landing() as landing:

        async def cancelled() -> None:
            await until(lambda: sending._attempt.committed)
            sending._task.cancel()
            # The first one is waited out; more of them change nothing.
            await asyncio.sleep(2 * DEADLINES.commit_grace_s)
            sending._task.cancel()
            await asyncio.sleep(DEADLINES.commit_grace_s)

        landing.script[hook] = cancelled
        async with (
            aiomigrate.receive(landing, LOCAL) as reception,
            aiomigrate.send(guest, str(reception.address), options) as sending,
        ):
            outcome, received = await asyncio.gather(
                sending.result(), reception.result(), return_exceptions=True
            )
        if hook == "resume":
            assert isinstance(outcome, Report)
            assert isinstance(received, Report)
            assert received.confirmed
            assert guest.ended
            return
        assert isinstance(outcome, MigrationCancelled)
        assert "Complete was unanswered; the destination says that it discarded" in outcome.what
        assert isinstance(received, MigrationFailed)
        assert guest.running
        assert "discard" in landing.calls


async def test_waiting_for_the_result_can_be_cancelled_without_harm(no_leaks: None) -> None:
    with running_guest() as guest, suspending_landing() as landing:
        async with (
            aiomigrate.receive(landing, LOCAL) as reception,
            aiomigrate.send(guest, str(reception.address)) as sending,
        ):
            waiting = asyncio.create_task(sending.result())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            assert (await sending.result()).owner is Owner.DESTINATION
            await reception.result()
