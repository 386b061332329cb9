"""A source that gives up while an answer is due: it hears that before it abandons."""

import asyncio

import pytest

import aiomigrate
from aiomigrate import Deadlines, MigrationCancelled, SendOptions
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import ERROR, OK, SMALL, Server
from tests.support.peer import ABANDON, CONFIG, STATE
from tests.support.turns import turns
from tests.support.vms import Guest

pytestmark = pytest.mark.usefixtures("no_leaks")
virtual = pytest.mark.asyncio(loop_factories=["virtual"])


def _undone(guest: Guest) -> asyncio.Event:
    """Set once the guest is as it was."""
    undone = asyncio.Event()
    guest.script["stop"] = undone.set
    return undone


@pytest.mark.parametrize("command", [CONFIG, STATE])
@pytest.mark.parametrize("how", ["cancel", "error"])
async def test_the_answer_is_waited_for_before_abandon(how: str, command: int) -> None:
    """A Cloud Hypervisor that is left while it restores keeps the VM, paused."""
    with Guest(SMALL) as guest, Server() as server:
        undone = _undone(guest)

        async def destination() -> None:
            with await server.up_to(command) as raw:
                if how == "cancel":
                    assert sending.cancel()
                reached.set()
                if command == STATE:
                    await undone.wait()  # the guest does not wait for the destination
                    assert guest.running
                await turns()
                assert not raw.unread()
                await raw.send(OK)
                assert await server.request(raw) == (ABANDON, b"")
                await raw.send(OK)
                assert await raw.rest() == (b"", "eof")

        async def body() -> None:
            await reached.wait()
            if how == "error":
                raise ZeroDivisionError

        reached = asyncio.Event()
        serving = asyncio.create_task(destination())
        expected = MigrationCancelled if how == "cancel" else ZeroDivisionError
        sending = aiomigrate.send(guest, server.address)
        with pytest.raises(expected):
            async with sending:
                await body()
        await serving


@pytest.mark.parametrize("answer", [ERROR, b""])
async def test_there_is_no_abandon_where_the_answer_ends_everything(answer: bytes) -> None:
    with Guest(SMALL) as guest, Server() as server:

        async def destination() -> None:
            with await server.up_to(STATE) as raw:
                assert sending.cancel()
                await turns()
                await raw.send(answer)
                if not answer:
                    raw.end()
                assert (await raw.rest())[0] == b""

        serving = asyncio.create_task(destination())
        sending = aiomigrate.send(guest, server.address)
        with pytest.raises(MigrationCancelled):
            async with sending:
                pass
        await serving
        assert guest.running


@virtual
async def test_an_answer_is_not_waited_for_for_ever(clock: VirtualClockLoop) -> None:
    with Guest(SMALL) as guest, Server() as server:

        async def destination() -> None:
            with await server.up_to(STATE) as raw:
                assert sending.cancel()
                assert await raw.rest() == (b"", "reset")

        began = clock.time()
        serving = asyncio.create_task(destination())
        sending = aiomigrate.send(
            guest, server.address, SendOptions(deadlines=Deadlines(abandon_s=7))
        )
        with pytest.raises(MigrationCancelled):
            async with sending:
                pass
        await serving
        assert clock.time() - began == pytest.approx(7, abs=0.1)
        assert guest.running
