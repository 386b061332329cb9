"""A service in this process, on a unix socket, with a VM of the test's; and a plain client."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aiomigrate import ReceiveOptions
from aiomigrate.api import Service, VmInfo, VmState, open_unix, serve
from tests.support.vms import Guest, Landing

API = "/api/v1"


@dataclass
class Answer:
    """One answer, as it came."""

    status_line: bytes
    headers: list[bytes]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.status_line.split()[1])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str:
        found = [line for line in self.headers if line.startswith(name.encode() + b": ")]
        return found[0].decode().partition(": ")[2] if found else ""


class Client:
    """Speaks HTTP as plainly as Cloud Hypervisor's client, over one connection a request."""

    def __init__(self, path: Path, service: Service) -> None:
        self.path = path
        self._service = service

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path))

    async def raw(self, *pieces: bytes) -> Answer:
        reader, writer = await self.connect()
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await read_answer(reader)
        finally:
            writer.close()
            await writer.wait_closed()

    async def ask(self, method: str, path: str, body: Any = None) -> Answer:
        where = path if path.startswith("/") else f"{API}/{path}"
        return await self.raw(*request_bytes(method, where, body))

    async def put(self, path: str, body: Any = None) -> Answer:
        return await self.ask("PUT", path, body)

    async def get(self, path: str) -> Answer:
        return await self.ask("GET", path)

    async def until(self, holds: Any, path: str = "vm.migration") -> Any:
        """Ask at each event of the service until the answer is as wanted; the test's timeout
        bounds it.
        """
        with self._service.bus.listen() as news:
            while True:
                answer = await self.get(path)
                if answer.status == 200 and holds(answer.json):
                    return answer.json
                await news.take()


def request_bytes(method: str, where: str, body: Any = None) -> list[bytes]:
    """The pieces that ch-remote writes, each with a system call of its own."""
    head = f"{method} {where} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n".encode()
    if body is None:
        return [head, b"\r\n"]
    content = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    return [head, f"Content-Length: {len(content)}\r\n".encode(), b"\r\n", content]


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = await reader.readuntil(b"\r\n\r\n")
    status_line, *headers = head[:-4].split(b"\r\n")
    length = next((int(line[16:]) for line in headers if line.startswith(b"Content-Length: ")), 0)
    return Answer(status_line, headers, await reader.readexactly(length))


@dataclass
class Machine:
    """A VMM of the test's: a running guest, a place for one that comes, or nothing."""

    guest: Guest | None = None
    landing: Landing = field(default_factory=Landing)

    async def info(self) -> VmInfo | None:
        if self.guest is not None and not self.guest.ended:
            return self._info(running=self.guest.running, size=4 << 20)
        if self.landing.runs is None:
            return None
        return self._info(running=self.landing.runs, size=4 << 20)

    def _info(self, *, running: bool, size: int) -> VmInfo:
        state = VmState.RUNNING if running else VmState.PAUSED
        return VmInfo(config={"cpus": {"boot_vcpus": 1}}, state=state, memory_actual_size=size)

    async def pause(self) -> None:
        assert self.guest is not None
        self.guest.running = False

    async def resume(self) -> None:
        if self.guest is None:
            self.landing.runs = True
        else:
            self.guest.running = True

    @asynccontextmanager
    async def source(self) -> AsyncIterator[Guest]:
        assert self.guest is not None
        yield self.guest

    @asynccontextmanager
    async def destination(self) -> AsyncIterator[Landing]:
        yield self.landing


@pytest.fixture
def machine() -> Machine:
    """A place without a VM."""
    return Machine()


@pytest.fixture
async def service(machine: Machine) -> AsyncIterator[Service]:
    """With `machine` as its VM; entered by `client`."""
    yield Service({"web-1": machine}, receiving=ReceiveOptions(linger_s=0.5))
    with machine.landing:
        if machine.guest is not None:
            machine.guest.__exit__(None, None, None)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """Opened as programs do: before there is a loop that it could hold up."""
    with open_unix(str(tmp_path / "api.sock")) as listener:
        yield listener


@pytest.fixture
async def client(service: Service, listener: socket.socket) -> AsyncIterator[Client]:
    """Of a service that listens as long as the test lasts."""
    async with serve(service, listener):
        yield Client(Path(listener.getsockname()), service)
