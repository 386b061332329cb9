"""A real Cloud Hypervisor gives its guest to us, and takes it back."""

import asyncio
from pathlib import Path

import pytest

from aiomigrate import (
    Dialect,
    ReceiveOptions,
    Report,
    SendOptions,
    StoredDestination,
    StoredSource,
    receive,
    send,
)
from tests.support.certificates import Authority
from tests.support.cloud_hypervisor import (
    COUNTERS,
    Guest,
    Installation,
    Vmm,
    find_installation,
    work_of,
)
from tests.support.sockets import free_port

FOUND = find_installation()
pytestmark = [pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))]


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    return Guest.build(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def installation() -> Installation:
    assert isinstance(FOUND, Installation)
    return FOUND


async def take(vmm: Vmm, into: Path, connections: int, tls_dir: Path | None = None) -> Report:
    """The VMM's guest comes into a directory."""
    options = ReceiveOptions(tls_dir=tls_dir)
    async with (
        StoredDestination(into) as destination,
        receive(destination, "tcp:127.0.0.1:0", options) as migration,
    ):
        await asyncio.to_thread(vmm.send, str(migration.address), connections, tls_dir)
        report = await migration.result()
    await asyncio.to_thread(vmm.wait_ended)
    return report


async def give(
    stored: Path,
    vmm: Vmm,
    connections: int,
    dialect: str,
    *,
    resume: bool,
    fast: bool = False,
    tls_dir: Path | None = None,
) -> Report:
    """A stored guest goes to the VMM; `fast`: State and Complete in one flight."""
    address = f"tcp:127.0.0.1:{free_port()}"
    await asyncio.to_thread(vmm.receive, address, tls_dir)
    options = SendOptions(
        connections=connections,
        dialect=Dialect(dialect),
        chunk_bytes=16 << 10,
        fast_switchover=fast,
        tls_dir=tls_dir,
    )
    async with (
        StoredSource(stored, resume=resume) as source,
        send(source, address, options) as migration,
    ):
        report = await migration.result()
    await asyncio.to_thread(vmm.wait_received)
    return report


@pytest.mark.parametrize("connections", [1, 4, 8])
@pytest.mark.parametrize("running", [True, False], ids=["running", "paused"])
async def test_a_guest_comes_and_goes_back_and_runs_on(
    installation: Installation, guest: Guest, tmp_path: Path, connections: int, running: bool
) -> None:
    first, second, taken = (tmp_path / name for name in ("first", "second", "taken"))
    first.mkdir()
    second.mkdir()

    with Vmm(installation, guest, first, boots=True) as source:
        source.wait_work(more_than=COUNTERS)  # so that there is memory for every lane
        if not running:
            source.pause()
        report = await take(source, taken, connections)
    assert report.running is running
    assert report.confirmed
    work = work_of(next(taken.glob("memory-*")))
    assert work > COUNTERS

    with Vmm(installation, guest, second, boots=False) as destination:
        report = await give(taken, destination, connections, installation.dialect, resume=running)
        # A lane that is quick may take the chunks of one that is not.
        assert min(connections, 2) <= report.connections <= connections
        if not running:
            assert destination.state == "Paused"
            assert destination.work == work
            destination.resume()
        destination.wait_work(more_than=work)
        assert destination.state == "Running"


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("running", [True, False], ids=["running", "paused"])
async def test_it_takes_state_and_complete_in_one_flight(
    installation: Installation, guest: Guest, tmp_path: Path, connections: int, running: bool
) -> None:
    first, second, taken = (tmp_path / name for name in ("first", "second", "taken"))
    first.mkdir()
    second.mkdir()

    with Vmm(installation, guest, first, boots=True) as source:
        source.wait_work(more_than=COUNTERS)
        if not running:
            source.pause()
        await take(source, taken, 1)
    work = work_of(next(taken.glob("memory-*")))

    with Vmm(installation, guest, second, boots=False) as destination:
        report = await give(
            taken, destination, connections, installation.dialect, resume=running, fast=True
        )
        assert report.running is running
        if not running:
            assert destination.state == "Paused"
            assert destination.work == work
            destination.resume()
        destination.wait_work(more_than=work)
        assert destination.state == "Running"


@pytest.mark.parametrize("connections", [1, 4])
async def test_a_guest_comes_and_goes_back_through_tls(
    installation: Installation, guest: Guest, tmp_path: Path, connections: int
) -> None:
    if installation.dialect == "v52":
        pytest.skip(f"Cloud Hypervisor {installation.version} has no TLS")
    tls_dir = Authority().directory(tmp_path / "tls")
    first, second, taken = (tmp_path / name for name in ("first", "second", "taken"))
    first.mkdir()
    second.mkdir()

    with Vmm(installation, guest, first, boots=True) as source:
        source.wait_work(more_than=COUNTERS)
        report = await take(source, taken, connections, tls_dir)
    assert report.confirmed
    work = work_of(next(taken.glob("memory-*")))
    assert work > COUNTERS

    with Vmm(installation, guest, second, boots=False) as destination:
        dialect = installation.dialect
        await give(taken, destination, connections, dialect, resume=True, tls_dir=tls_dir)
        destination.wait_work(more_than=work)
        assert destination.state == "Running"
