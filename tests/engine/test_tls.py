"""Migrations through TLS: with what certificates they work, and what is said where they don't.

After each attempt that fails the receiver still waits, and a source with the right certificate
gives its VM away.
"""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

import aiomigrate
from aiomigrate import MigrationError, MigrationFailed, Owner, Phase, ReceiveOptions, SendOptions
from aiomigrate.checking import check
from tests.support.certificates import Authority
from tests.support.hostile import SMALL, Raw, request
from tests.support.image import PAGE
from tests.support.peer import START
from tests.support.turns import until
from tests.support.vms import Guest, Landing

pytestmark = pytest.mark.usefixtures("no_leaks")

LISTEN = "tcp:127.0.0.1:0"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def right(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority.directory(tmp_path_factory.mktemp("tls") / "right")


@pytest.fixture(scope="module")
def by_openssl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made as the manual of Cloud Hypervisor would have it, with RSA keys."""
    path = tmp_path_factory.mktemp("openssl")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=path, check=True, capture_output=True)

    ca = ("-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-subj", "/CN=authority")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *ca)
    (path / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for side in ("client", "server"):
        leaf = ("-keyout", f"{side}-key.pem", "-out", f"{side}.csr", "-subj", f"/CN={side}")
        openssl("req", "-newkey", "rsa:2048", "-nodes", *leaf)
        issued = ("-in", f"{side}.csr", "-out", f"{side}-cert.pem", "-extfile", "names")
        openssl("x509", "-req", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-days", "1", *issued)
    return path


@asynccontextmanager
async def waiting(
    tls_dir: Path | None, options: ReceiveOptions | None = None
) -> AsyncIterator[tuple[aiomigrate.Reception, Landing]]:
    options = options or ReceiveOptions(tls_dir=tls_dir)
    with Landing() as landing:
        async with aiomigrate.receive(landing, LISTEN, options) as reception:
            yield reception, landing


async def migrate(
    reception: aiomigrate.Reception, landing: Landing, options: SendOptions, host: str = ""
) -> None:
    address = str(reception.address)
    if host:
        address = f"tcp:{host}:{address.rpartition(':')[2]}"
    with Guest(SMALL) as guest:
        async with aiomigrate.send(guest, address, options) as migration:
            await migration.result()
        report = await reception.result()
        assert report.confirmed
        assert landing.digest() == guest.digest()


async def failure(address: object, options: SendOptions) -> str:
    """What a source says that fails, and has its VM."""
    with Guest(SMALL) as guest:
        with pytest.raises(MigrationFailed) as caught:
            async with aiomigrate.send(guest, str(address), options) as migration:
                await migration.result()
        assert caught.value.owner is Owner.SOURCE
        assert guest.running
    return str(caught.value)


def refused(caplog: pytest.LogCaptureFixture) -> str:
    return " | ".join(one.getMessage() for one in caplog.records if "refused" in one.getMessage())


async def until_refused(caplog: pytest.LogCaptureFixture) -> str:
    """What the receiver says of a stranger; it may say it after that has gone."""
    await until(lambda: refused(caplog))
    return refused(caplog)


@pytest.mark.parametrize("connections", [1, 8])
@pytest.mark.parametrize("made_by", ["trustme", "openssl"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_the_right_certificates(
    request: pytest.FixtureRequest,
    authority: Authority,
    tmp_path: Path,
    connections: int,
    made_by: str,
    host: str,
) -> None:
    if made_by == "openssl":
        tls_dir = request.getfixturevalue("by_openssl")
    else:
        tls_dir = authority.directory(tmp_path / host, host=host)
    async with waiting(tls_dir) as (reception, landing):
        options = SendOptions(connections=connections, tls_dir=tls_dir, chunk_bytes=4 * PAGE)
        await migrate(reception, landing, options, host)


@pytest.mark.parametrize("made_by", [trustme.KeyType.RSA, trustme.KeyType.ECDSA])
async def test_only_asking_goes_through_tls_too(made_by: trustme.KeyType, tmp_path: Path) -> None:
    tls_dir = Authority(made_by).directory(tmp_path / "tls")
    async with waiting(tls_dir) as (reception, _), asyncio.timeout(30):
        with Guest(SMALL) as guest:
            await check(guest, str(reception.address), SendOptions(tls_dir=tls_dir))
        with pytest.raises(MigrationFailed, match="the source abandoned the migration"):
            await reception.result()


WRONG: dict[str, tuple[str, str]] = {
    "a source of another authority": (
        "the peer does not know the authority of this side's certificate",
        "the peer's certificate is not accepted: unable to get local issuer certificate",
    ),
    "a source that has expired": (
        "the peer says that this side's certificate has expired",
        "the peer's certificate is not accepted: certificate has expired",
    ),
    "a destination of another authority": (
        "the peer's certificate is not accepted: unable to get local issuer certificate",
        "the peer does not know the authority of this side's certificate",
    ),
    "a destination that has expired": (
        "the peer's certificate is not accepted: certificate has expired",
        "the peer says that this side's certificate has expired",
    ),
    "a destination of another host": (
        "the peer's certificate is not accepted: IP address mismatch",
        "the peer does not accept this side's certificate (it may have been made for another host)",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_certificate_is_named_on_both_sides(
    wrong: str, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aiomigrate.destination")
    other = Authority() if "another authority" in wrong else None
    host = "192.0.2.7" if "another host" in wrong else "127.0.0.1"
    bad = authority.directory(tmp_path / "bad", host=host, issuer=other, expired="expired" in wrong)
    good = authority.directory(tmp_path / "good")
    receives, sends = (bad, good) if wrong.startswith("a destination") else (good, bad)
    async with waiting(receives) as (reception, landing):
        said = await failure(reception.address, SendOptions(tls_dir=sends))
        assert WRONG[wrong][0] in said
        assert WRONG[wrong][1] in await until_refused(caplog)
        assert reception.progress.phase is Phase.WAITING
        if receives is good:
            await migrate(reception, landing, SendOptions(tls_dir=good))
        else:
            reception.cancel()
            with pytest.raises(MigrationError):
                await reception.result()


def client_context(right: Path, *, shows: bool = True) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(right / "ca-cert.pem")
    if shows:
        context.load_cert_chain(right / "client-cert.pem", right / "client-key.pem")
    return context


async def speak(port: int, context: ssl.SSLContext) -> None:
    """Another program's client: Start through TLS, and what comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(request(START))
        await reader.read(16)
    finally:
        writer.transport.abort()


async def _no_certificate(port: int, right: Path) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        await speak(port, client_context(right, shows=False))


async def _old_tls(port: int, right: Path) -> None:
    context = client_context(right)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        await speak(port, context)


async def _plain(port: int, right: Path) -> None:
    said = await failure(f"tcp:127.0.0.1:{port}", SendOptions())
    assert "a TLS alert: it speaks TLS only" in said


async def _leaves(port: int, right: Path) -> None:
    with await Raw.connect(f"tcp:127.0.0.1:{port}") as raw:
        await raw.send(bytes.fromhex("1603010200"))


STRANGERS: dict[str, tuple[Callable[[int, Path], Awaitable[None]], str]] = {
    "no certificate": (_no_certificate, "the peer shows no certificate, and has to"),
    "TLS 1.2": (_old_tls, "the peer does not speak TLS 1.3"),
    "no TLS": (_plain, "the peer does not speak TLS: its first bytes are no TLS record"),
    "half a hello": (_leaves, "the peer ended the connection in the handshake"),
}


@pytest.mark.parametrize("kind", STRANGERS)
async def test_whoever_comes_without_the_right_tls_is_told_and_ends_nothing(
    kind: str, right: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aiomigrate.destination")
    comes, says = STRANGERS[kind]
    async with waiting(right) as (reception, landing):
        await comes(int(str(reception.address).rpartition(":")[2]), right)
        assert says in await until_refused(caplog)
        assert reception.progress.phase is Phase.WAITING
        await migrate(reception, landing, SendOptions(tls_dir=right))


async def test_silent_strangers_hold_nothing_up(right: Path) -> None:
    async with waiting(right) as (reception, landing):
        silent = [await Raw.connect(reception.address) for _ in range(5)]
        options = SendOptions(connections=3, tls_dir=right, chunk_bytes=4 * PAGE)
        await migrate(reception, landing, options)
        for raw in silent:
            raw.close()


async def test_a_source_with_tls_meets_a_plain_destination(
    right: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aiomigrate.destination")
    async with waiting(None) as (reception, landing):
        said = await failure(reception.address, SendOptions(tls_dir=right))
        assert "the peer does not speak TLS: its first bytes are no TLS record" in said
        assert "got the beginning of a TLS handshake" in await until_refused(caplog)
        await migrate(reception, landing, SendOptions())


async def test_a_source_with_tls_meets_a_destination_without_tls_1_3(right: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(right / "server-cert.pem", right / "server-key.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
            context.wrap_socket(sock, server_side=True)
        sock.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.ensure_future(asyncio.to_thread(serve, listener))
        port = listener.getsockname()[1]
        said = await failure(f"tcp:127.0.0.1:{port}", SendOptions(tls_dir=right))
        await serving
    assert "the peer does not speak TLS 1.3" in said


async def test_a_destination_that_goes_away_in_the_handshake(right: Path) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        said = await failure(f"tcp:127.0.0.1:{port}", SendOptions(tls_dir=right))
    assert "the peer ended the connection in the handshake: does it expect TLS?" in said or (
        "Connection reset by peer" in said
    )


async def test_a_lane_with_another_certificate_is_refused_by_name(
    authority: Authority, right: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the same authority, so it was believed, and is not the one that began."""
    caplog.set_level("INFO", "aiomigrate.destination")
    another = authority.directory(tmp_path / "another", name="two")
    async with waiting(right) as (reception, _):
        port = int(str(reception.address).rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context(right))
        writer.write(request(START))
        assert await reader.readexactly(16)
        _, lane = await asyncio.open_connection("127.0.0.1", port, ssl=client_context(another))
        lane.write((1).to_bytes(2, "little"))
        said = await until_refused(caplog)
        assert "its client certificate" in said
        assert "commonName=client two) is not that of the main connection" in said
        assert "commonName=client one" in said
        lane.transport.abort()
        writer.transport.abort()
        with pytest.raises(MigrationFailed):
            await reception.result()


async def test_a_port_in_use_leaves_nothing_of_tls(right: Path) -> None:
    async with waiting(right) as (reception, _):
        another = aiomigrate.receive(
            Landing(), str(reception.address), ReceiveOptions(tls_dir=right)
        )
        with pytest.raises(Exception, match="Address already in use"):
            await another.__aenter__()
        reception.cancel()
        with pytest.raises(MigrationError):
            await reception.result()
