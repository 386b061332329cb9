"""What goes through TLS differs from what goes without it in two places: the record of Complete,
which is the commit point as a whole, and the lanes of a plain peer.
"""

import asyncio
import ssl
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from aiomigrate import ReceiveOptions, SendOptions, receive, send
from aiomigrate.transport.tls import TlsChannel
from tests.support.certificates import Authority
from tests.support.hostile import OK, ROLE_MEMORY, SMALL
from tests.support.image import PAGE
from tests.support.peer import COMPLETE, MEMORY
from tests.support.vms import Guest, Landing

pytestmark = [
    pytest.mark.asyncio(loop_factories=["virtual"]),
    pytest.mark.usefixtures("no_leaks"),
]


@pytest.fixture(scope="module")
def tls_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Authority().directory(tmp_path_factory.mktemp("tls") / "one")


async def test_the_rest_of_completes_record_follows(
    tls_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of Complete is taken when it is encrypted: no byte of it is left to be written, but the
    record may be, and the destination sees nothing of Complete until that is whole.
    """
    refused: list[bytes] = []
    send_now = TlsChannel.send_now

    def send_now_to_a_full_socket(channel: TlsChannel, view: memoryview) -> int:
        send = channel._send

        def refuse(content: memoryview | bytes) -> int:
            refused.append(bytes(content))
            raise ssl.SSLWantWriteError

        channel._send = refuse
        try:
            return send_now(channel, view)
        finally:
            channel._send = send

    monkeypatch.setattr(TlsChannel, "send_now", send_now_to_a_full_socket)
    with Guest(SMALL) as guest, Landing() as landing:
        options = SendOptions(tls_dir=tls_dir)
        to = ReceiveOptions(tls_dir=tls_dir)
        async with receive(landing, "tcp:127.0.0.1:0", to) as reception:
            async with send(guest, str(reception.address), options) as migration:
                await migration.result()
            await reception.result()
        assert [struct.unpack_from("<H", content) for content in refused] == [(COMPLETE,)]
        assert guest.ended
        assert landing.runs
        assert landing.digest() == guest.digest()


class _Late:
    """A plain destination that answers Memory a second after it came. It keeps nothing; of each
    lane it counts the requests, and those that had begun before the last one was answered.
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._tasks = asyncio.TaskGroup()
        self._accepted = 0
        self.requests: list[int] = []
        self.early = 0

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", ssl=self._context)
        self.address = f"tcp:127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        await self._tasks.__aexit__(kind, error, trace)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serve = self._serve_lane if self._accepted else self._serve_main
        self._accepted += 1
        self._tasks.create_task(serve(reader, writer))

    async def _serve_main(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = 0
        while command != COMPLETE:
            command, length = struct.unpack("<H6xQ", await reader.readexactly(16))
            assert command != MEMORY, "memory belongs on the lanes"
            await reader.readexactly(length)
            writer.write(OK)
        await _leave(writer)

    async def _serve_lane(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.requests)
        self.requests.append(0)
        assert await reader.readexactly(2) == ROLE_MEMORY
        while begun := await reader.read(1):
            while begun:
                header = begun + await reader.readexactly(15)
                command, length = struct.unpack("<H6xQ", header)
                assert command == MEMORY
                ranges = struct.iter_unpack("<QQ", await reader.readexactly(length))
                await reader.readexactly(sum(size for _, size in ranges))
                self.requests[number] += 1
                begun = b""
                try:
                    # It is over only when neither side has anything left to do.
                    async with asyncio.timeout(1.0):
                        begun = await reader.read(1)
                except TimeoutError:
                    pass
                self.early += len(begun)
                writer.write(OK)
        await _leave(writer)


async def _leave(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("tls", [True, False])
async def test_a_plain_peers_lanes_have_one_request_in_flight_through_tls(
    tls_dir: Path, tls: bool
) -> None:
    """Its lanes look at the descriptor for the next request, which TLS may hold already."""
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls_dir / "server-cert.pem", tls_dir / "server-key.pem")
        context.load_verify_locations(tls_dir / "ca-cert.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    options = SendOptions(connections=2, chunk_bytes=4 * PAGE, tls_dir=tls_dir if tls else None)
    with Guest(SMALL) as guest:
        async with _Late(context) as peer, send(guest, peer.address, options) as migration:
            await migration.result()
    assert len(peer.requests) == 2
    if tls:
        assert min(peer.requests) > 1
        assert peer.early == 0
    else:  # all but the first one of each lane come at once, so they can be seen
        carried = [count for count in peer.requests if count]
        assert peer.early == sum(carried) - len(carried) > 0
