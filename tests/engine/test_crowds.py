"""How many connections are held that have not shown what they are, where each handshake waits for
a thread: those that were told to go are still there then.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from aiomigrate import Limits, MigrationCancelled, ReceiveOptions, receive
from aiomigrate.construction import Construction
from aiomigrate.inquiries import Inquiries
from aiomigrate.transport import Address, Identity, TcpAddress, destination_context, listen
from tests.support.certificates import Authority
from tests.support.handshakes import HeldHandshakes
from tests.support.hostile import Raw
from tests.support.vms import Landing

pytestmark = pytest.mark.usefixtures("no_leaks")

MOST = 2
CROWD = 8
_OPTIONS = ReceiveOptions(limits=Limits(max_strangers=MOST))


@pytest.fixture(scope="module")
def tls_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Authority().directory(tmp_path_factory.mktemp("certificates") / "tls")


@asynccontextmanager
async def _destination(tls_dir: Path) -> AsyncIterator[Address]:
    """One that waits for its source."""
    options = ReceiveOptions(limits=_OPTIONS.limits, tls_dir=tls_dir)
    with Landing() as landing:
        async with receive(landing, "tcp:127.0.0.1:0", options) as reception:
            yield reception.address
            assert reception.cancel()
            with pytest.raises(MigrationCancelled):
                await reception.result()


@asynccontextmanager
async def _inquiries(tls_dir: Path) -> AsyncIterator[Address]:
    """One that waits to be asked."""
    identity = Identity(await asyncio.to_thread(destination_context, tls_dir))
    listener = await listen(TcpAddress("127.0.0.1", 0), identity=identity)
    async with Inquiries(listener, _OPTIONS, cast("Construction", None)) as inquiries:
        inquiries.accept(bytes(16))
        yield listener.address
    listener.close()
    identity.close()


@pytest.mark.parametrize("waiting", [_destination, _inquiries])
async def test_no_more_are_held_while_they_wait_for_a_thread(
    waiting: Callable[[Path], AbstractAsyncContextManager[Address]],
    tls_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with waiting(tls_dir) as address:
        handshakes = HeldHandshakes(monkeypatch)
        crowd = [await Raw.connect(address) for _ in range(CROWD)]
        await handshakes.begun.wait()
        for _ in range(100):  # turns of the loop: each could take one
            await asyncio.sleep(0)
        held_at_once = handshakes.connections
        handshakes.go_on()
        for raw in crowd[: CROWD - MOST]:
            assert await raw.rest() == (b"", "eof"), "newer ones came"
        for raw in crowd:
            raw.close()
    assert held_at_once == MOST + 1
