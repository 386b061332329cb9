"""The real `ch-remote`, unchanged, against our service; and a real Cloud Hypervisor behind both."""

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aiomigrate import StoredSource
from aiomigrate.api import Service, open_unix, serve
from aiomigrate.api.migrations import Entry
from tests.support.certificates import Authority
from tests.support.cloud_hypervisor import COUNTERS, Guest, Installation, Vmm, find_installation
from tests.support.sockets import free_port
from tests.support.vms import ONE, store_vm

REMOTE = os.environ.get("CH_REMOTE_BIN")
FOUND = find_installation()
pytestmark = [pytest.mark.skipif(not REMOTE, reason="CH_REMOTE_BIN does not name a ch-remote")]
needs_vmm = pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))


class Served:
    """A service for stored VMs, and ch-remote for it."""

    def __init__(self, place: Path, listener: socket.socket) -> None:
        self.vms = place / "vms"
        self.vms.mkdir()
        self.listener = listener
        self.service = Service(stored=str(self.vms))

    async def remote(self, *arguments: str) -> tuple[int, str, str]:
        """Its status, stdout and stderr."""
        done = await asyncio.to_thread(
            subprocess.run,
            [str(REMOTE), "--api-socket", self.listener.getsockname(), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    async def receive(
        self, address: str, tls_dir: Path | None = None
    ) -> "asyncio.Task[tuple[int, str, str]]":
        """Begin to receive, as this version of ch-remote is told to."""
        old = isinstance(FOUND, Installation) and FOUND.dialect == "v52"
        url = address if old else f"receiver_url={address}{_tls(tls_dir)}"
        asked = asyncio.create_task(self.remote("receive-migration", url))
        while self.service.migrations.latest_of("vm") is None:
            assert not asked.done(), asked.result()
            await asyncio.sleep(0.01)
        return asked

    async def end(self) -> Entry:
        """Of its newest migration."""
        entry = self.service.migrations.latest_of("vm")
        assert entry is not None
        await entry.over.wait()
        return entry


def _tls(tls_dir: Path | None) -> str:
    return "" if tls_dir is None else f",tls_dir={tls_dir}"


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[list[Served]]:
    """Two services, not entered yet."""
    with ExitStack() as stack:
        found = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            listener = stack.enter_context(open_unix(str(tmp_path / name / "api.sock")))
            found.append(Served(tmp_path / name, listener))
        yield found


@pytest.fixture
async def services(listeners: list[Served]) -> AsyncIterator[list[Served]]:
    """Both."""
    first, second = listeners
    async with serve(first.service, first.listener), serve(second.service, second.listener):
        yield listeners


async def state(served: Served) -> Any:
    status, out, err = await served.remote("info")
    assert status == 0, err
    return json.loads(out)["state"]


async def test_every_command(services: list[Served], tmp_path: Path) -> None:
    ours, _ = services
    store_vm(ours.vms / "web-1", ONE)
    status, out, _ = await ours.remote("ping")
    assert status == 0
    assert json.loads(out)["pid"] == os.getpid()

    status, out, err = await ours.remote("info")
    assert (status, out) == (1, "")
    assert "The VM is not created" in err
    assert "NotFound" in err

    status, _, err = await ours.remote("pause")
    assert status == 1
    assert "The VM could not be paused" in err
    assert "InternalServerError" in err

    assert (await ours.remote("restore", f"source_url=file://{ours.vms}/web-1"))[0] == 0
    assert await state(ours) == "Paused"
    assert (await ours.remote("resume"))[0] == 0
    assert await state(ours) == "Running"
    assert (await ours.remote("resume"))[0] == 1
    assert (await ours.remote("pause"))[0] == 0

    (tmp_path / "kept").mkdir()
    assert (await ours.remote("snapshot", f"file://{tmp_path}/kept"))[0] == 0
    async with StoredSource(tmp_path / "kept") as kept:
        assert kept.vm.manifest.running is False


@pytest.mark.parametrize("resume", ["true", "false"])
async def test_from_one_service_to_another(
    services: list[Served], tmp_path: Path, resume: str
) -> None:
    one, other = services
    store_vm(one.vms / "web-1", ONE)
    restore = f"source_url=file://{one.vms}/web-1,resume={resume}"
    assert (await one.remote("restore", restore))[0] == 0
    receiving = await other.receive(f"tcp:127.0.0.1:{free_port()}")
    entry = other.service.migrations.latest_of("vm")
    assert entry is not None
    url = f"destination_url={entry.url},connections=4"
    assert (await one.remote("send-migration", url))[0] == 0
    assert (await one.end()).state == "done"
    status, _, err = await receiving
    assert status == 0, err
    assert await state(other) == ("Running" if resume == "true" else "Paused")
    assert (await one.remote("info"))[0] == 1


async def test_what_is_refused_is_told(services: list[Served]) -> None:
    ours, _ = services
    status, _, err = await ours.remote("send-migration", "destination_url=tcp:127.0.0.1:1")
    assert status == 1
    assert "Error starting migration sender" in err
    assert "There is no VM" in err
    receiving = await ours.receive(f"tcp:127.0.0.1:{free_port()}")
    assert (await ours.remote("ping"))[0] == 0, "a reception holds nobody up"
    entry = ours.service.migrations.latest_of("vm")
    assert entry is not None
    await ours.service.cancel(entry)
    status, _, err = await receiving
    assert status == 1
    assert "the migration was cancelled" in err


@needs_vmm
@pytest.mark.parametrize("how", ["tcp", "tls", "local"])
async def test_a_guest_goes_through_a_service(
    services: list[Served], tmp_path: Path, how: str
) -> None:
    """Cloud Hypervisor, our service, Cloud Hypervisor: everything by ch-remote."""
    assert isinstance(FOUND, Installation)
    tls_dir = None
    if how == "tls":
        if FOUND.dialect == "v52":
            pytest.skip(f"Cloud Hypervisor {FOUND.version} has no TLS")
        tls_dir = await asyncio.to_thread(Authority().directory, tmp_path / "tls")
    ours, _ = services

    def address(name: str) -> str:
        return f"unix:{tmp_path}/{name}.sock" if how == "local" else f"tcp:127.0.0.1:{free_port()}"

    for name in ("guest", "first", "second"):
        (tmp_path / name).mkdir()
    guest = await asyncio.to_thread(Guest.build, tmp_path / "guest")
    receiving = await ours.receive(address("ours"), tls_dir)
    entry = ours.service.migrations.latest_of("vm")
    assert entry is not None

    def give() -> None:
        with Vmm(FOUND, guest, tmp_path / "first", boots=True) as vmm:
            vmm.wait_work(more_than=COUNTERS)
            if how == "local":
                vmm.send_memory(entry.url)
            else:
                vmm.send(entry.url, 4, tls_dir)
            vmm.wait_ended()

    await asyncio.to_thread(give)
    status, _, err = await receiving
    assert status == 0, err
    assert await state(ours) == "Running"

    with ExitStack() as stack:
        vmm = Vmm(FOUND, guest, tmp_path / "second", boots=False)
        await asyncio.to_thread(stack.enter_context, vmm)
        there = address("theirs")
        await asyncio.to_thread(vmm.receive, there, tls_dir)
        # Of v52 only one connection can be meant: its client cannot say so, and our default is v53.
        asked = f"destination_url={there}{_tls(tls_dir)}" + (",local=on" * (how == "local"))
        assert (await ours.remote("send-migration", asked))[0] == 0
        ended = await ours.end()
        assert ended.state == "done", ended.failure
        assert ended.report is not None
        assert (ended.report.bytes == 0) is (how == "local"), "its content went by the socket"
        await asyncio.to_thread(vmm.wait_received)
        work = vmm.work
        await asyncio.to_thread(vmm.wait_work, work)
