"""Asking a destination whether it would take a VM, without giving it one."""

import asyncio

import pytest

import aiomigrate
from aiomigrate import GuestNotStarted, MigrationFailed, Owner, UsageError
from aiomigrate.checking import check
from tests.support.hostile import SMALL, Server
from tests.support.peer import ABANDON, CONFIG, START, Peer, Script
from tests.support.turns import turns
from tests.support.vms import Guest, Landing

pytestmark = pytest.mark.usefixtures("no_leaks")

_LOCAL = "tcp:127.0.0.1:0"


async def test_receive_accepts_and_is_told_that_it_is_abandoned() -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            await check(guest, str(reception.address))
            with pytest.raises(MigrationFailed, match="the source abandoned") as caught:
                await reception.result()
        assert caught.value.owner is Owner.SOURCE
        assert guest.calls == ["config"]
        assert landing.calls == ["configure", "discard"]
        assert landing.config == guest.config_bytes


async def test_receive_refuses_a_config_that_it_cannot_have() -> None:
    def fail() -> None:
        raise GuestNotStarted("no room")

    with Guest(SMALL) as guest, Landing() as landing:
        landing.script["configure"] = fail
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with pytest.raises(MigrationFailed, match="the destination refused Config") as caught:
                await check(guest, str(reception.address))
            with pytest.raises(MigrationFailed, match="no room"):
                await reception.result()
        assert caught.value.owner is Owner.SOURCE
        assert guest.calls == ["config"]


async def test_a_question_that_is_cancelled_is_abandoned_all_the_same() -> None:
    """Once, and again while that is on its way."""
    with Guest(SMALL) as guest, Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            asking: asyncio.Task[None]

            async def configure() -> None:
                asking.cancel()
                await turns()
                asking.cancel()
                await turns()

            landing.script["configure"] = configure
            asking = asyncio.create_task(check(guest, str(reception.address)))
            with pytest.raises(asyncio.CancelledError):
                await asking
            with pytest.raises(MigrationFailed, match="the source abandoned"):
                await reception.result()
        assert landing.calls == ["configure", "discard"]


async def test_a_peer_that_talks_nonsense() -> None:
    async def nonsense(server: Server) -> None:
        with await server.accept() as raw:
            await server.request(raw)
            await raw.send(b"HTTP/1.1 400 Bad")
            await raw.rest()

    with Guest(SMALL) as guest, Server() as server:
        serving = asyncio.create_task(nonsense(server))
        with pytest.raises(MigrationFailed, match="expected status Ok or Error"):
            await check(guest, server.address)
        await serving


async def test_a_destination_that_would_take_it_is_left_alone() -> None:
    with Guest() as guest, Peer() as peer:
        await check(guest, peer.address)
        assert await asyncio.to_thread(peer.finished) == "aborted"
        assert guest.calls == ["config"]
    assert peer.failure == "the sender abandoned the migration"
    assert [command for _, command in peer.order] == [START, CONFIG, ABANDON]


@pytest.mark.parametrize("command", [START, CONFIG])
async def test_a_destination_that_would_not_take_it_says_so(command: int) -> None:
    what = {START: "Start", CONFIG: "Config"}[command]
    with (
        Guest() as guest,
        Peer(script=Script(error_at=command)) as peer,
        pytest.raises(MigrationFailed, match=f"the destination refused {what}"),
    ):
        await check(guest, peer.address)


async def test_a_destination_that_hangs_up_on_a_question() -> None:
    with (
        Guest() as guest,
        Peer(script=Script(close_at=CONFIG)) as peer,
        pytest.raises(MigrationFailed, match="the VM is with the source"),
    ):
        await check(guest, peer.address)


async def test_a_question_that_cannot_be_asked(unused_tcp_port: int) -> None:
    def fail() -> None:
        raise RuntimeError("no config")

    with Guest() as guest, Peer() as peer:
        with pytest.raises(UsageError):
            await check(guest, "nowhere")
        with pytest.raises(MigrationFailed, match="refused"):
            await check(guest, f"tcp:127.0.0.1:{unused_tcp_port}")
        guest.script["config"] = fail
        with pytest.raises(MigrationFailed, match="no config"):
            await check(guest, peer.address)
