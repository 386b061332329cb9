"""Asking a destination who owns the VM, over a connection that is lost without a sign."""

import asyncio
import struct

import pytest

from aiomigrate.inquiry import NoVerdict, ask_owner
from aiomigrate.protocol import Verdict
from aiomigrate.transport import parse_address
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import Raw, Server

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.asyncio(loop_factories=["virtual"]),
]

TOKEN = bytes(16)
COMMITTED = struct.pack("<HB5xQ", 1, 1, 0)


async def _take(server: Server, silent: list[Raw], answers: int) -> None:
    """Answer the question number `answers`, and none before it."""
    while len(silent) < answers:
        silent.append(await server.accept())
    await server.request(silent[-1])
    await silent[-1].send(COMMITTED)


async def test_a_try_that_stalls_does_not_use_up_the_time(clock: VirtualClockLoop) -> None:
    silent: list[Raw] = []
    with Server() as server:
        answering = asyncio.create_task(_take(server, silent, answers=3))
        verdict, connection = await ask_owner(parse_address(server.address), TOKEN, within=30.0)
        connection.close()
        await answering
        for raw in silent:
            raw.close()
    assert verdict is Verdict.COMMITTED


async def test_what_is_never_answered_is_told(clock: VirtualClockLoop) -> None:
    silent: list[Raw] = []
    with Server() as server:
        answering = asyncio.create_task(_take(server, silent, answers=100))
        with pytest.raises(NoVerdict, match=r"nobody answered in 30 s \(no answer in 7.5 s\)"):
            await ask_owner(parse_address(server.address), TOKEN, within=30.0)
        answering.cancel()
        await asyncio.wait([answering])
        for raw in silent:
            raw.close()
    assert len(silent) == 4
