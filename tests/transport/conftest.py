"""The ends of a connection, over every kind of address, and through TLS: with OpenSSL's own calls,
and where those cannot be found.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aiomigrate.transport import (
    Address,
    Connection,
    Identity,
    Listener,
    connect,
    destination_context,
    listen,
    parse_address,
    source_context,
)
from aiomigrate.transport.openssl import OpenSsl
from tests.support.certificates import Authority

_ADDRESSES = {
    "tcp4": "tcp:127.0.0.1:0",
    "tcp6": "tcp:[::1]:0",
    "unix": "unix:{}/socket",
    "tls": "tcp:127.0.0.1:0",
    "tls-by-python": "tcp:127.0.0.1:0",
}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Authority().directory(tmp_path_factory.mktemp("tls") / "one")


@pytest.fixture(params=_ADDRESSES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def address(kind: str, tmp_path: Path) -> Address:
    return parse_address(_ADDRESSES[kind].format(tmp_path), listening=True)


@pytest.fixture
def identities(
    kind: str, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Identity | None, Identity | None]]:
    """The connecting side's and the listening one's."""
    if not kind.startswith("tls"):
        yield None, None
        return
    if kind == "tls-by-python":
        monkeypatch.setattr(OpenSsl, "of", lambda _: None)
    source = Identity(source_context(certificates), "127.0.0.1")
    destination = Identity(destination_context(certificates))
    yield source, destination
    source.close()
    destination.close()


@pytest.fixture
async def listener(
    address: Address, identities: tuple[Identity | None, Identity | None]
) -> AsyncIterator[Listener]:
    made = await listen(address, quick_ack=True, identity=identities[1])
    yield made
    made.close()


@pytest.fixture
async def pair(
    listener: Listener, identities: tuple[Identity | None, Identity | None]
) -> AsyncIterator[tuple[Connection, Connection]]:
    """A connecting and an accepted end."""
    connecting = asyncio.ensure_future(connect(listener.address, identity=identities[0]))
    far = await listener.accept()
    await far.secure(10.0)
    near = await connecting
    yield near, far
    near.close()
    far.close()
