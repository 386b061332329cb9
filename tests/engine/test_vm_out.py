"""Stored VMs out of a directory: to a strict thread peer and to `receive`."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import Dialect, Owner, Report, SendOptions, StoredDestination, StoredSource
from tests.support.captures import unpack_offload
from tests.support.image import GuestImage, Mapping
from tests.support.peer import MEMORY, Peer
from tests.support.vms import MIB, ONE, Landing, file_bytes, migrate, store_vm

pytestmark = pytest.mark.usefixtures("no_leaks")

# 96 MiB, in two mappings of one zone and one of a zone that is backed by a file.
_BIG = (
    Mapping(0, 0, 64 * MIB, "a", virtio_mem=False, file_offset=0),
    Mapping(3, 1 << 32, 16 * MIB, "a", virtio_mem=False, file_offset=64 * MIB),
    Mapping(1, 64 * MIB, 16 * MIB, "b", virtio_mem=False, file_offset=0),
)


@pytest.fixture(scope="module")
def offload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_offload(tmp_path_factory.mktemp("offload"))


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_vm(tmp_path_factory.mktemp("big") / "vm", _BIG, file_zones=["b"])


@pytest.fixture(autouse=True)
def history_is_forgotten(offload: Path, big: Path) -> Iterator[None]:
    """A VM that was given away is not sent again; these are, test after test."""
    yield
    for directory in (offload, big):
        (directory / "aiomigrate.json").unlink(missing_ok=True)


async def _send_to_peer(directory: Path, peer: Peer, options: SendOptions, **how: bool) -> Report:
    async with (
        StoredSource(directory, **how) as source,
        aiomigrate.send(source, peer.address, options) as migration,
    ):
        report = await migration.result()
    outcome = await asyncio.to_thread(peer.finished)
    assert outcome == ("completed" if how.get("resume") else "paused"), peer
    return report


def _assert_peer_has(directory: Path, peer: Peer) -> None:
    assert peer.failure is None
    assert peer.config == (directory / "migration_config.json").read_bytes()
    assert peer.state == (directory / "state.json").read_bytes()
    assert peer.memory is not None
    assert peer.memory.differences_in(directory) == []
    assert peer.lost_at_state == []


def _assert_directories_equal(directory: Path, into: Path) -> None:
    for name in ("migration_config.json", "state.json"):
        assert (into / name).read_bytes() == (directory / name).read_bytes()
    assert GuestImage.of_directory(directory).differences_in(into) == []


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("connections", [1, 2, 8])
async def test_the_offloaded_vm_to_the_strict_peer(
    offload: Path, connections: int, dialect: Dialect, resume: bool
) -> None:
    options = SendOptions(connections=connections, dialect=dialect, chunk_bytes=65536)
    with Peer(dialect=dialect.value) as peer:
        report = await _send_to_peer(offload, peer, options, resume=resume)
    _assert_peer_has(offload, peer)
    assert report.owner is Owner.DESTINATION
    assert report.running is resume
    assert report.warnings == ()
    lanes = peer.connections[1:]
    assert len(lanes) == (0 if connections == 1 else connections)
    assert all(lane.role == 1 and lane.error is None for lane in lanes)
    # What is no hole was sent once, and by the lanes where there are any.
    assert sum(c.content for c in peer.connections) == report.bytes == file_bytes(offload)
    assert (peer.connections[0].content == 0) is (connections > 1)
    assert {command for connection, command in peer.order if connection} <= {MEMORY}


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("connections", [1, 2, 8])
async def test_the_offloaded_vm_to_receive(
    offload: Path, connections: int, dialect: Dialect, tmp_path: Path
) -> None:
    into = tmp_path / "vm"
    options = SendOptions(connections=connections, dialect=dialect, chunk_bytes=65536)
    async with StoredSource(offload, resume=True) as source, StoredDestination(into) as destination:
        sent, received = await migrate(source, destination, sending=options)
    assert isinstance(sent, Report), sent
    assert isinstance(received, Report), received
    assert (sent.running, received.running, received.confirmed) == (True, True, True)
    assert sent.bytes == received.bytes == file_bytes(offload)
    _assert_directories_equal(offload, into)
    async with StoredSource(into) as again:
        assert again.vm.refusal() is None


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("connections", [1, 2, 8])
async def test_a_bigger_vm_to_the_strict_peer(
    big: Path, connections: int, dialect: Dialect
) -> None:
    options = SendOptions(connections=connections, dialect=dialect, chunk_bytes=MIB)
    with Peer(dialect=dialect.value) as peer:
        report = await _send_to_peer(big, peer, options)
    _assert_peer_has(big, peer)
    carried = [connection.content for connection in peer.connections]
    assert sum(carried) == report.bytes == file_bytes(big, whole=[1])
    assert peer.count(MEMORY) >= report.bytes // MIB
    if connections > 1:
        assert all(carried[1:]), f"a lane has carried nothing: {carried}"
        assert report.connections == connections


@pytest.mark.parametrize("connections", [1, 8])
async def test_a_bigger_vm_in_many_small_chunks_to_receive(
    big: Path, connections: int, tmp_path: Path
) -> None:
    into = tmp_path / "vm"
    options = SendOptions(connections=connections, chunk_bytes=65536)
    async with StoredSource(big) as source, StoredDestination(into) as destination:
        sent, received = await migrate(source, destination, sending=options)
    assert isinstance(sent, Report), sent
    assert isinstance(received, Report), received
    assert (sent.running, received.running) == (False, False)
    assert sent.connections == received.connections == connections
    _assert_directories_equal(big, into)


async def test_holes_of_a_zone_that_is_backed_by_a_file_are_sent_as_zeros(big: Path) -> None:
    expected = GuestImage.of_directory(big)
    with Landing(garbage=b"\xa5") as landing:
        async with StoredSource(big) as source:
            sent, received = await migrate(
                source, landing, sending=SendOptions(connections=2, chunk_bytes=MIB)
            )
        assert isinstance(sent, Report), sent
        assert isinstance(received, Report), received
        for slot, image in expected.slots.items():
            assert landing.view(slot)[:] == image.read(0, image.size), f"slot {slot} differs"


async def test_everything_is_sent_to_a_destination_that_is_not_fresh(offload: Path) -> None:
    options = SendOptions(destination_is_fresh=False, chunk_bytes=MIB)
    with Peer() as peer:
        report = await _send_to_peer(offload, peer, options)
    _assert_peer_has(offload, peer)
    assert report.bytes == sum(
        mapping.size for mapping in GuestImage.of_directory(offload).mappings
    )


@pytest.mark.parametrize("connections", [1, 3])
async def test_a_vm_that_is_all_holes(connections: int, tmp_path: Path) -> None:
    """A page of zeros is sent: a State before any memory means that some of it is missing."""
    vm, into = store_vm(tmp_path / "vm", ONE), tmp_path / "into"
    for size in (0, 4 * MIB):
        os.truncate(vm / "memory-0", size)
    options = SendOptions(connections=connections)
    async with StoredSource(vm) as source, StoredDestination(into) as destination:
        sent, received = await migrate(source, destination, sending=options)
    assert isinstance(sent, Report), sent
    assert isinstance(received, Report), received
    assert sent.bytes == received.bytes == 4096
    _assert_directories_equal(vm, into)
    assert (into / "memory-0").read_bytes() == bytes(4 * MIB)


async def test_over_a_unix_socket(offload: Path, tmp_path: Path) -> None:
    into, address = tmp_path / "vm", f"unix:{tmp_path / 'socket'}"
    async with (
        StoredSource(offload) as source,
        StoredDestination(into) as destination,
        aiomigrate.receive(destination, address) as reception,
    ):
        with pytest.raises(aiomigrate.UsageError, match="more than one connection needs a tcp"):
            aiomigrate.send(source, address, SendOptions(connections=2))
        assert reception.progress.phase == aiomigrate.Phase.WAITING
        async with aiomigrate.send(source, address) as migration:
            await migration.result()
        report = await reception.result()
    assert report.confirmed
    _assert_directories_equal(offload, into)


async def test_what_was_given_away_is_not_sent_again_without_force(offload: Path) -> None:
    with Peer() as peer:
        await _send_to_peer(offload, peer, SendOptions(), resume=True)
    with pytest.raises(aiomigrate.UsageError, match="it was given to"):
        async with StoredSource(offload):
            pass
    with Peer() as peer:
        await _send_to_peer(offload, peer, SendOptions(), resume=True, force=True)
    _assert_peer_has(offload, peer)
