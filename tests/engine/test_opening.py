"""Where a source's lanes go."""

import asyncio
import socket
from typing import Any

import pytest

import aiomigrate
from aiomigrate import Report, SendOptions
from tests.support.hostile import SMALL
from tests.support.image import PAGE
from tests.support.vms import Guest, Landing

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_lanes_go_to_the_host_that_main_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of several hosts may stand for another one each time it is asked."""
    asked: list[object] = []

    async def getaddrinfo(host: object, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.9"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    options = SendOptions(connections=3, chunk_bytes=4 * PAGE)
    with Guest(SMALL) as guest, Landing() as landing:
        async with aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception:
            port = str(reception.address).rpartition(":")[2]
            address = f"tcp:cluster.invalid:{port}"
            async with aiomigrate.send(guest, address, options) as migration:
                report = await migration.result()
            await reception.result()
        assert landing.digest() == guest.digest()
        assert guest.destination == address
    assert isinstance(report, Report)
    assert report.warnings == ()
    carriers = {connection.name for connection in migration.progress.connections}
    assert carriers <= {"lane 1", "lane 2", "lane 3"}  # the first of them may have taken it all
    assert asked == ["cluster.invalid"]
