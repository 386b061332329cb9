"""Ten thousand strangers while a migration runs."""

import asyncio
import os
import random
import resource
import socket
import struct
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import Report, SendOptions
from aiomigrate.protocol import Limits
from tests.support.vms import Guest, Landing

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.no_cover,  # one thing ten thousand times, which tests/engine/test_strangers covers
]

STRANGERS = 10_000
HELD = 300
"""Connections that the flood keeps open: more than a destination holds of strangers."""
# What a stranger says: nothing, garbage, a role that is none, another migration's Join, a lane's
# role, half a Start, a whole Start, a query with a wrong token.
SAYINGS = (
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    struct.pack("<H", 9),
    struct.pack("<H6xQ", 0x8001, 20) + bytes(20),
    struct.pack("<H", 1),
    struct.pack("<H", 1) + bytes(6),
    struct.pack("<H6xQ", 1, 0),
    struct.pack("<H6xQ", 0x8003, 16) + bytes(16),
)


def flood(host: str, port: int) -> None:
    """Connect as fast as it goes; at the end all but what was closed by the other side is."""
    chance = random.Random(1)
    held: deque[socket.socket] = deque()
    for _ in range(STRANGERS):
        stranger = socket.create_connection((host, port))
        stranger.send(chance.choice(SAYINGS), socket.MSG_NOSIGNAL)
        held.append(stranger)
        if len(held) > HELD:
            held.popleft().close()


def _highest_descriptor() -> int:
    """The lowest number that is free: about how many there are."""
    number = os.dup(0)
    os.close(number)
    return number


def _resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 10


async def test_ten_thousand_strangers_neither_end_nor_bloat_a_migration() -> None:
    most = 0
    with Guest() as guest, Landing() as landing:
        options = SendOptions(connections=4, chunk_bytes=64 << 10, downtime_ms=1)
        async with aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception:
            _, host, port = str(reception.address).split(":")
            flooding: list[asyncio.subprocess.Process] = []

            async def begin() -> None:
                code = f"from tests.faults.test_flood import flood; flood({host!r}, {port})"
                flooding.append(
                    await asyncio.create_subprocess_exec(
                        sys.executable, "-c", code, stderr=subprocess.PIPE
                    )
                )

            async def go_on() -> None:
                """The guest writes as long as the strangers come."""
                nonlocal most
                most = max(most, _highest_descriptor())
                if guest.running and flooding[0].returncode is None:
                    guest.write(0, bytes([guest.collects % 251]) * (3 << 20))
                    guest.script[f"collect {guest.collects + 1}"] = go_on

            guest.script["start"] = begin
            guest.script["collect 1"] = go_on
            before, descriptors = _resident_kib(), _highest_descriptor()
            async with aiomigrate.send(guest, str(reception.address), options) as migration:
                sent, received = await asyncio.gather(migration.result(), reception.result())
            _, errors = await flooding[0].communicate()
        assert landing.digest() == guest.at_pause
    assert isinstance(sent, Report)
    assert isinstance(received, Report)
    assert sent.iterations > 10
    assert flooding[0].returncode in (0, 1), errors  # the listener may be gone at the last
    assert most - descriptors < Limits().max_strangers + 64
    assert _resident_kib() - before < 32 << 10
