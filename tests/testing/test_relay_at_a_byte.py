"""Faults at a byte: exactly the bytes before it get through, then what the fault says."""

import asyncio
import random
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomigrate.testing import Cut, Direction, HalfClose, Reset, Stall, Struck
from aiomigrate.testing.faults import AtByte
from tests.testing.relay_rig import (
    DOWN,
    MIB,
    UP,
    both_loops,
    read_rest,
    receive,
    relayed,
    send,
    virtual,
)


def nothing_there(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    return False


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
