"""What cannot be meant, is not taken, or speaks another dialect: by whom, and why."""

import asyncio
import logging
from typing import Literal

import pytest

import aiomigrate
from aiomigrate import (
    Dialect,
    MigrationFailed,
    Owner,
    ReceiveOptions,
    Report,
    SendOptions,
    UsageError,
)
from tests.engine.engine_wire import CONFIG, ERROR, OK, START, STATE, Hand
from tests.support.clock import VirtualClockLoop
from tests.support.peer import CONFIG as CONFIG_READ
from tests.support.peer import MEMORY, Peer, Script
from tests.support.vms import ONE, Guest, Landing, config_of

pytestmark = pytest.mark.usefixtures("no_leaks")

virtual = pytest.mark.asyncio(loop_factories=["virtual"])
_PATIENCE = 0.2
"""Real seconds: the peer's threads get that long between two of their system calls."""
_FOUR = SendOptions(connections=4, chunk_bytes=64 << 10)


async def _send(guest: Guest, peer: Peer, options: SendOptions) -> Report:
    async with aiomigrate.send(guest, peer.address, options) as migration:
        return await migration.result()


def _watch(clock: VirtualClockLoop, peer: Peer) -> None:
    clock.patience = _PATIENCE
    clock.watch(peer.busy)


# Usage


@pytest.mark.parametrize("connections", [0, 129, -1])
def test_a_number_of_connections_that_cannot_be(connections: int) -> None:
    with pytest.raises(UsageError, match=rf"connections must be 1 to 128, not {connections}"):
        SendOptions(connections=connections)


@pytest.mark.parametrize("connections", [1, 128])
def test_a_number_of_connections_that_can_be(connections: int) -> None:
    assert SendOptions(connections=connections).connections == connections


@pytest.mark.parametrize("address", ["", "127.0.0.1:1", "tcp:127.0.0.1", "udp:127.0.0.1:1"])
def test_an_address_that_cannot_be(address: str) -> None:
    with Guest() as guest, Landing() as landing:
        with pytest.raises(UsageError):
            aiomigrate.send(guest, address)
        with pytest.raises(UsageError):
            aiomigrate.receive(landing, address)


async def test_nobody_listens(unused_tcp_port: int) -> None:
    with Guest() as guest:
        async with aiomigrate.send(guest, f"tcp:127.0.0.1:{unused_tcp_port}") as migration:
            with pytest.raises(MigrationFailed, match=r"refused.*the VM is with the source"):
                await migration.result()
        assert guest.calls == []


# Lanes that are not taken


@virtual
@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("lanes", ["refuse", "close"])
async def test_one_connection_is_used_where_no_lane_is_taken(
    clock: VirtualClockLoop,
    lanes: Literal["refuse", "close"],
    dialect: Dialect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = SendOptions(connections=4, dialect=dialect)
    with Guest() as guest, Peer(dialect=dialect.value, script=Script(lanes=lanes)) as peer:
        _watch(clock, peer)
        report = await _send(guest, peer, options)
        assert await asyncio.to_thread(peer.finished) == "completed"
        assert peer.memory is not None
        image = peer.memory.slots[0]
        assert image.read(0, image.size) == guest._memfds.views[0][:]
    assert report.warnings == (f"{peer.address} takes no additional connections: one is used",)
    assert report.connections == 1
    assert peer.connections[0].content == report.bytes > 0
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        *report.warnings
    ]


@virtual
@pytest.mark.parametrize("lanes", ["refuse", "close"])
async def test_it_fails_where_some_lanes_are_taken(
    clock: VirtualClockLoop, lanes: Literal["refuse", "close"]
) -> None:
    script = Script(lanes=lanes, lanes_served=3)
    with Guest() as guest, Peer(script=script) as peer:
        _watch(clock, peer)
        with pytest.raises(MigrationFailed) as caught:
            await _send(guest, peer, _FOUR)
        assert await asyncio.to_thread(peer.finished) == "aborted"
    assert caught.value.what.startswith(f"1 of 4 lanes to {peer.address} were refused: ")
    assert caught.value.owner is Owner.SOURCE
    assert len(caught.value.what.split("refused: ")[1]) > len(peer.address)
    assert guest.calls == ["config"]
    assert peer.count(MEMORY) == 0


@virtual
@pytest.mark.parametrize("served", [0, 2])
async def test_it_fails_where_lanes_are_taken_and_stay_silent(
    clock: VirtualClockLoop, served: int
) -> None:
    script = Script(lanes="ignore", lanes_served=served)
    began = clock.time()
    with Guest() as guest, Peer(script=script) as peer:
        _watch(clock, peer)
        with pytest.raises(MigrationFailed) as caught:
            await _send(guest, peer, _FOUR)
        assert await asyncio.to_thread(peer.finished) == "aborted"
        assert guest.calls == ["config", "start", "stop"]
        assert guest.running
    assert "no answer to Memory in 30 s" in caught.value.what
    assert caught.value.what.startswith("lane ")
    assert peer.address in caught.value.what
    assert f"{4 - served} of 4 lanes were never answered" in caught.value.hint
    # Where some lanes speak, it is not the dialect.
    assert ("--dialect" in caught.value.hint) is (served == 0)
    assert 30 <= clock.time() - began < 90


@pytest.mark.parametrize("dialect", list(Dialect))
async def test_a_peer_of_the_other_dialect_is_named(dialect: Dialect) -> None:
    other = Dialect.V52 if dialect is Dialect.V53 else Dialect.V53
    options = SendOptions(connections=2, dialect=dialect, chunk_bytes=64 << 10)
    script = Script(role_within=0.2)
    with Guest() as guest, Peer(dialect=other.value, script=script) as peer:
        with pytest.raises(MigrationFailed) as caught:
            await _send(guest, peer, options)
        assert await asyncio.to_thread(peer.finished) in {"aborted", "failed"}
        assert guest.calls == ["config", "start", "stop"]
    assert f"try --dialect {other}" in str(caught.value)
    assert peer.state is None


# A destination that refuses a source


async def _refused(landing: Landing, *, after: list[tuple[int, bytes]], wrong: int) -> str:
    async with aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception:
        async with Hand(str(reception.address)) as hand:
            for command, payload in after:
                assert await hand.ask(command, payload) == OK
            assert await hand.ask(wrong) == ERROR
            assert await hand.ended()
        with pytest.raises(MigrationFailed) as caught:
            await reception.result()
    return str(caught.value)


@pytest.mark.parametrize(
    ("after", "wrong"),
    [
        ([(START, b"")], STATE),
        ([(START, b"")], START),
        ([(START, b"")], MEMORY),
        ([(START, b""), (CONFIG, config_of(ONE))], CONFIG),
        ([(START, b""), (CONFIG, config_of(ONE))], 5),
    ],
    ids=["State first", "Start twice", "Memory first", "Config twice", "Complete first"],
)
async def test_a_wrong_order_is_answered_with_an_error(
    after: list[tuple[int, bytes]], wrong: int
) -> None:
    with Landing() as landing:
        text = await _refused(landing, after=after, wrong=wrong)
        assert (len(landing.discarded) == 1) is (CONFIG_READ in dict(after))
        assert "restore" not in landing.calls
    assert "expected" in text
    assert "the VM is with the source" in text


async def test_a_state_without_any_memory_is_refused() -> None:
    after = [(START, b""), (CONFIG, config_of(ONE))]
    with Landing() as landing:
        async with aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception:
            async with Hand(str(reception.address)) as hand:
                for command, payload in after:
                    assert await hand.ask(command, payload) == OK
                assert await hand.ask(STATE, b"{}") == ERROR
            with pytest.raises(MigrationFailed, match="the state came before any memory"):
                await reception.result()
        assert landing.calls == ["configure", "discard"]


async def test_the_first_whole_start_is_the_source(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aiomigrate")
    with Landing() as landing:
        async with (
            aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception,
            Hand(str(reception.address)) as late,
            Hand(str(reception.address)) as source,
        ):
            late.write(b"\1\0")
            await source.begin(ONE[0])
            late.write(bytes(14))
            assert await late.answer() == ERROR
            assert await late.ended()
            assert await source.memory(0) == OK
            await source.end()
            source._writer.close()
            report = await reception.result()
        assert report.running
        assert landing.view(0)[:4096] == b"\1" * 4096
    assert "another migration has begun" in caplog.text


async def test_a_start_on_a_running_migration_is_a_stranger() -> None:
    """Its first two bytes are a lane's role: it is never answered as a source."""
    with Landing() as landing:
        async with (
            aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception,
            Hand(str(reception.address)) as source,
        ):
            await source.begin(ONE[0])
            async with Hand(str(reception.address)) as second:
                second.write(b"\1\0" + bytes(14) + b"\1\0")
                # Sixteen bytes behind the role: a command 0.
                assert await second.answer() in {ERROR, None}
            assert await source.memory(0) == OK
            await source.end()
            source._writer.close()
            assert (await reception.result()).running


# Lanes from elsewhere


async def _with_a_lane_from_elsewhere(
    landing: Landing, options: ReceiveOptions
) -> tuple[int | None, Report]:
    async with (
        aiomigrate.receive(landing, "tcp:127.0.0.1:0", options) as reception,
        Hand(str(reception.address)) as source,
    ):
        await source.begin(ONE[0])
        async with Hand(str(reception.address), local="127.0.0.2") as lane:
            lane.write(b"\1\0")
            answer = await lane.memory(4096, b"\2" * 4096)
        assert await source.memory(0) == OK
        await source.end()
        source._writer.close()
        return answer, await reception.result()


@pytest.mark.parametrize("networks", [(), ("127.0.0.3/32", "10.0.0.0/8")])
async def test_a_lane_from_another_address_is_a_stranger(networks: tuple[str, ...]) -> None:
    with Landing() as landing:
        options = ReceiveOptions(allow_lanes_from=networks)
        answer, report = await _with_a_lane_from_elsewhere(landing, options)
        assert answer is None
        assert report.bytes == 4096
        assert landing.view(0)[:8192] == b"\1" * 4096 + bytes(4096)


@pytest.mark.parametrize("network", ["127.0.0.2", "127.0.0.0/30", "0.0.0.0/0"])
async def test_a_lane_from_an_allowed_address_is_taken(network: str) -> None:
    with Landing() as landing:
        options = ReceiveOptions(allow_lanes_from=(network,))
        answer, report = await _with_a_lane_from_elsewhere(landing, options)
        assert answer == OK
        assert report.bytes == 8192
        assert landing.view(0)[:8192] == b"\1" * 4096 + b"\2" * 4096
