"""The relay itself: what it passes on without a fault, and what is left when it ends."""

import asyncio
import random
import socket
import struct
from pathlib import Path

import pytest

from aiomigrate.testing import Behind, Cut, Delay, Direction, FaultRelay, Hold, Stall
from aiomigrate.transport import AddressError, ListenFailed
from tests.support.awaits import Awaits
from tests.support.clock import VirtualClockLoop
from tests.support.leaks import Resources
from tests.support.turns import until
from tests.testing.relay_rig import (
    DOWN,
    MIB,
    UP,
    Rig,
    both_loops,
    read_rest,
    receive,
    relayed,
    send,
    virtual,
)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@both_loops
@pytest.mark.parametrize("family", ["tcp", "unix"])
async def test_bytes_and_ends_of_stream_go_through_each_way(family: str, tmp_path: Path) -> None:
    ends = {
        "tcp": {"target": "tcp:127.0.0.1:0", "listen": "tcp:127.0.0.1:0"},
        "unix": {"target": f"unix:{tmp_path}/target", "listen": f"unix:{tmp_path}/relay"},
    }[family]
    there, back = random.Random(1).randbytes(3 * MIB), random.Random(2).randbytes(2 * MIB)
    async with relayed(target=ends["target"], listen=ends["listen"]) as rig:
        near, far = await rig.pair()

        async def ask() -> None:
            await send(near, there)
            near.shutdown(socket.SHUT_WR)

        asking = asyncio.create_task(ask())
        assert await read_rest(far) == (there, "end")
        await asking
        # The other direction is still open.
        answering = asyncio.create_task(send(far, back))
        assert await receive(near, len(back)) == back
        await answering
        far.close()
        assert await read_rest(near) == (b"", "end")
        (connection,) = rig.relay.connections
        await connection.ended.wait()
        assert connection.passed == {UP: len(there), DOWN: len(back)}
        assert rig.relay.strikes == ()
    assert not (tmp_path / "relay").exists()


@both_loops
@pytest.mark.parametrize("direction", Direction)
async def test_a_reset_goes_through_as_a_reset(direction: Direction) -> None:
    async with relayed() as rig:
        ends = await rig.pair()
        victim, survivor = ends if direction is UP else ends[::-1]
        await send(victim, b"last")
        assert await receive(survivor, 4) == b"last"
        reset(victim)
        assert await read_rest(survivor) == (b"", "reset")


@both_loops
async def test_a_target_that_is_not_there_is_a_reset() -> None:
    async with relayed() as rig:
        rig.target.close()
        assert await read_rest(await rig.connect()) == (b"", "reset")
        assert rig.relay.connections[0].reached.is_set()


@virtual
@pytest.mark.parametrize("delays", [(), (Delay(seconds=0.01),)])
async def test_a_reader_that_does_not_read_stops_the_writer(delays: tuple[Delay, ...]) -> None:
    data = random.Random(1).randbytes(64 * MIB)
    async with relayed(*delays) as rig:
        near, far = await rig.pair()
        sending = asyncio.create_task(send(near, data))
        # The clock moves once nothing else can.
        await asyncio.sleep(60)
        stuck_at = rig.relay.connections[0].passed[UP]
        await asyncio.sleep(60)
        assert not sending.done()
        assert rig.relay.connections[0].passed[UP] == stuck_at < len(data)
        assert await receive(far, len(data)) == data
        await sending


@both_loops
async def test_cut_all_ends_what_is_there_and_takes_what_comes() -> None:
    async with relayed(Behind(connection=2, other=9), Stall(connection=1, after=0)) as rig:
        pairs = [await rig.pair() for _ in range(2)]
        waiting = await rig.connect()
        await until(lambda: len(rig.relay.connections) == 3)
        await rig.relay.struck(1)
        rig.relay.cut_all()
        for end in (*pairs[0], *pairs[1], waiting):
            assert await read_rest(end) == (b"", "end")
        near, far = await rig.pair()
        await send(near, b"new")
        assert await receive(far, 3) == b"new"


async def busy_relay(rig: Rig) -> None:
    """Connections in every state, and a held one."""
    pairs = [await rig.pair() for _ in range(3)]
    await rig.connect()
    await send(pairs[0][0], b"abcdef")
    await rig.relay.struck(0)
    await send(pairs[1][0], b"abcdef")
    await rig.relay.struck(1)
    await send(pairs[2][0], bytes(1000))
    assert await receive(pairs[2][1], 1000) == bytes(1000)
    await rig.relay.struck(4)


BUSY = (
    Stall(connection=0, direction=UP, after=3),
    Cut(connection=1, direction=UP, after=3),
    Delay(connection=2, seconds=0.001),
    Behind(connection=3, other=9),
    Hold(connection=4),
)


@both_loops
async def test_leaving_at_once_leaves_nothing(tmp_path: Path) -> None:
    async with relayed(listen=f"unix:{tmp_path}/relay"):
        pass
    assert not (tmp_path / "relay").exists()


@both_loops
async def test_leaving_ends_everything() -> None:
    async with relayed(*BUSY) as rig:
        await busy_relay(rig)
    assert all(connection.ended.is_set() for connection in rig.relay.connections)


@virtual
async def test_cancelled_at_any_await_nothing_is_left(clock: VirtualClockLoop) -> None:
    async def program() -> None:
        async with relayed(*BUSY, leaves_nothing=False) as rig:
            await busy_relay(rig)

    async def cancelled_at(suspension: int) -> bool:
        with Awaits(suspension, lambda: running.cancel()) as awaits:  # noqa: PLW0108 - made below
            running = asyncio.create_task(program())
            await asyncio.wait([running])
        assert running.cancelled() or running.exception() is None
        assert Resources.left_since(before) == []
        return awaits.reached

    before, suspension = Resources.now(), 0
    while await cancelled_at(suspension):
        suspension += 3
    assert suspension > 50


@pytest.mark.usefixtures("no_leaks")
async def test_addresses_that_cannot_be() -> None:
    with pytest.raises(AddressError):
        FaultRelay("nowhere")
    with pytest.raises(AddressError):
        FaultRelay("tcp:127.0.0.1:1", listen="nowhere")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        relay = FaultRelay("tcp:127.0.0.1:1", listen=f"tcp:127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ListenFailed):
            await relay.__aenter__()


async def test_its_names_tell_what_it_does() -> None:
    async with relayed() as rig:
        near, far = await rig.pair()
        await send(near, b"abc")
        await receive(far, 3)
        assert repr(rig.relay.connections[0]) == "<Relayed 0 open, 3 bytes up, 0 down>"
        assert repr(rig.relay).startswith(f"<FaultRelay {rig.relay.address} to tcp:127.0.0.1:")
