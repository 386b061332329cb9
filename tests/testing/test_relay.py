import asyncio
import random
import socket
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomigrate.testing import (
    Behind,
    Cut,
    Delay,
    Direction,
    FaultRelay,
    HalfClose,
    Hold,
    Rate,
    Refuse,
    Reset,
    Stall,
    Struck,
)
from aiomigrate.testing.faults import AtByte
from aiomigrate.transport import AddressError, ListenFailed
from tests.support.awaits import Awaits
from tests.support.clock import VirtualClockLoop
from tests.support.leaks import Resources
from tests.support.turns import until
from tests.testing.relay_rig import Rig, read_rest, receive, relayed, send

both_loops = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])
virtual = pytest.mark.asyncio(loop_factories=["virtual"])

MIB = 1 << 20
UP, DOWN = Direction.UP, Direction.DOWN


def nothing_there(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    return False


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# Without a fault


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


# Faults at a byte

Program = Callable[[], Coroutine[Any, Any, None]]
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


def run(loop: str, program: Program) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(asyncio.wait_for(program(), 30))


async def write_pieces(sock: socket.socket, pieces: list[int], data: bytes) -> None:
    """Write `data` in pieces of these sizes, the rest at once, and end."""
    at = 0
    try:
        for size in [*pieces, len(data)]:
            await send(sock, data[at : at + size])
            at += size
            await asyncio.sleep(0)
        sock.shutdown(socket.SHUT_WR)
    except OSError:  # the relay has reset it
        pass


STREAMS = given(
    after=st.integers(0, 300),
    more=st.integers(0, 300),
    pieces=st.lists(st.integers(1, 100), max_size=6),
    direction=st.sampled_from(Direction),
)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("kind", "ending"), [(Cut, "end"), (Reset, "reset"), (HalfClose, "end"), (Stall, "held")]
)
@settings(max_examples=25)
@STREAMS
def test_exactly_the_bytes_before_a_fault_get_through(
    loop: str,
    kind: type[AtByte],
    ending: str,
    after: int,
    more: int,
    pieces: list[int],
    direction: Direction,
) -> None:
    data = random.Random(after).randbytes(after + more)
    fault = kind(connection=0, direction=direction, after=after)

    async def program() -> None:
        async with relayed(fault, leaves_nothing=False) as rig:
            ends = await rig.pair()
            source, sink = ends if direction is UP else ends[::-1]
            writing = asyncio.create_task(write_pieces(source, pieces, data))
            got, how = b"", "held"
            if kind is Stall:
                got = await receive(sink, after)
                await rig.relay.struck(0, fault)
                assert nothing_there(sink)
                assert rig.relay.connections[0].passed[direction] == after
                rig.relay.release(0)
                assert await read_rest(sink) == (data[after:], "end")
            else:
                got, how = await read_rest(sink)
            assert (got, how) == (data[:after], ending)
            await rig.relay.struck(0)
            assert rig.relay.strikes == (Struck(fault, 0, direction),)
            await writing

    run(loop, program)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", [Cut, Reset, HalfClose, Stall])
@settings(max_examples=10)
@given(size=st.integers(0, 300), missing=st.integers(1, 300))
def test_a_stream_that_ends_before_the_byte_meets_no_fault(
    loop: str, kind: type[AtByte], size: int, missing: int
) -> None:
    data = random.Random(size).randbytes(size)
    fault = kind(direction=UP, after=size + missing)

    async def program() -> None:
        async with relayed(fault, leaves_nothing=False) as rig:
            near, far = await rig.pair()
            await write_pieces(near, [], data)
            assert await read_rest(far) == (data, "end")
            assert rig.relay.strikes == ()

    run(loop, program)


@both_loops
async def test_a_cut_ends_both_directions_and_takes_what_is_still_written() -> None:
    async with relayed(Cut(direction=UP, after=3)) as rig:
        near, far = await rig.pair()
        await send(near, b"abc")
        assert await read_rest(near) == (b"", "end")
        assert await read_rest(far) == (b"abc", "end")
        for end in (near, far):
            await send(end, bytes(MIB))
            end.close()
        await rig.relay.connections[0].ended.wait()
        assert rig.relay.connections[0].passed == {UP: 3, DOWN: 0}


@virtual
async def test_a_reset_waits_until_its_bytes_are_acknowledged() -> None:
    size = MIB  # fits into the relay's socket, not into the reader's
    async with relayed(Reset(direction=UP, after=size)) as rig:
        near, far = await rig.pair()
        data = random.Random(1).randbytes(size)
        await send(near, data)
        await asyncio.sleep(0.02)  # the clock moves once nothing else can
        assert rig.relay.connections[0].passed[UP] == size
        assert rig.relay.strikes == ()
        assert await read_rest(far) == (data, "reset")
        assert await read_rest(near) == (b"", "reset")


@both_loops
async def test_behind_a_half_close_the_other_direction_goes_on() -> None:
    async with relayed(HalfClose(direction=UP, after=3)) as rig:
        near, far = await rig.pair()
        await send(near, b"abcdef")
        assert await read_rest(far) == (b"abc", "end")
        await send(near, bytes(MIB))
        await send(far, b"answer")
        far.close()
        assert await read_rest(near) == (b"answer", "end")


@both_loops
async def test_a_stall_holds_one_direction_and_what_follows_strikes_later() -> None:
    stall, cut = Stall(direction=UP, after=3), Cut(direction=UP, after=5)
    async with relayed(cut, stall) as rig:
        near, far = await rig.pair()
        waiting = asyncio.create_task(rig.relay.struck(0))
        await send(near, b"abcdef")
        assert await waiting == Struck(stall, 0, UP)
        await send(far, b"answer")
        assert await receive(near, 6) == b"answer"
        assert await receive(far, 3) == b"abc"
        assert nothing_there(far)
        unread = rig.relay.connections[0]._ends[0].recv(10, socket.MSG_PEEK)
        assert unread == b"def"
        rig.relay.release(1)  # another connection's
        assert nothing_there(far)
        rig.relay.release()
        assert await read_rest(far) == (b"de", "end")
        assert rig.relay.strikes == (Struck(stall, 0, UP), Struck(cut, 0, UP))


@both_loops
async def test_faults_hit_the_connection_and_direction_that_they_aim_at() -> None:
    async with relayed(Cut(connection=1, direction=DOWN, after=2)) as rig:
        pairs = [await rig.pair() for _ in range(3)]
        for near, far in pairs:
            await send(near, b"abcd")
            assert await receive(far, 4) == b"abcd"
            await send(far, b"efgh")
        assert [await receive(near, 4) for near, _ in pairs] == [b"efgh", b"ef", b"efgh"]
        assert [strike.connection for strike in rig.relay.strikes] == [1]


# Faults of the set-up


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


# Time


@virtual
async def test_each_byte_is_late_by_the_delay(clock: VirtualClockLoop) -> None:
    async with relayed(Delay(seconds=0.5), Delay(direction=DOWN, seconds=1)) as rig:
        near, far = await rig.pair()
        began = clock.time()
        await send(near, b"a")
        assert await receive(far, 1) == b"a"
        assert clock.time() - began == pytest.approx(0.5)
        await send(far, b"b")
        assert await receive(near, 1) == b"b"
        assert clock.time() - began == pytest.approx(2.0)


@virtual
async def test_bytes_come_no_faster_than_the_rate(clock: VirtualClockLoop) -> None:
    async with relayed(Rate(direction=UP, bytes_per_s=2000)) as rig:
        near, far = await rig.pair()
        began = clock.time()
        await send(near, bytes(2000))
        times = []
        for _ in range(5):
            await receive(far, 400)
            times.append(clock.time() - began)
        assert times == pytest.approx(
            [0.2, 0.4, 0.6, 0.8, 1.0], abs=0.03
        )  # 0.02: it was idle before


async def arrivals(clock: VirtualClockLoop, seed: int) -> list[float]:
    """The times that ten messages took, each sent when the last had come."""
    times = []
    async with relayed(Delay(direction=UP, seconds=1, jitter_s=0.5), seed=seed) as rig:
        near, far = await rig.pair()
        for number in range(10):
            sent = clock.time()
            await send(near, bytes([number]))
            assert await receive(far, 1) == bytes([number])
            times.append(clock.time() - sent)
    return times


@virtual
async def test_jitter_is_what_the_seed_says(clock: VirtualClockLoop) -> None:
    first = await arrivals(clock, seed=1)
    assert first == pytest.approx(await arrivals(clock, seed=1))
    assert first != pytest.approx(await arrivals(clock, seed=2))
    assert all(1 <= seconds <= 1.501 for seconds in first)
    assert max(first) - min(first) > 0.1


@virtual
async def test_jitter_does_not_reorder(clock: VirtualClockLoop) -> None:
    data = random.Random(1).randbytes(40)
    async with relayed(Delay(seconds=1, jitter_s=5)) as rig:
        near, far = await rig.pair()
        for byte in data:
            await send(near, bytes([byte]))
            await asyncio.sleep(0.1)  # virtual: between two bytes
        assert await receive(far, len(data)) == data


# The relay itself


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
