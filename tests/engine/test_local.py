"""Memory by descriptor between two of us, and from us to a receiver that behaves as Cloud
Hypervisor's.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import (
    GuestMemory,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    Report,
    SendOptions,
    UsageError,
    VmConfig,
)
from tests.support.image import PAGE, Mapping
from tests.support.peer import COMPLETE, CONFIG, MEMORY, MEMORY_FD, STATE, Peer, Script
from tests.support.shared_guest import ZONES, SharedGuest, Taker, digest_of
from tests.support.vms import MIB, STATE_JSON, Landing, config_of

pytestmark = pytest.mark.usefixtures("no_leaks")

_LOCAL = SendOptions(local=True)


async def _migrate(
    guest: SharedGuest, landing: Landing, socket: Path, options: SendOptions = _LOCAL
) -> tuple[Report | BaseException, Report | BaseException]:
    async with (
        aiomigrate.receive(landing, f"unix:{socket}") as reception,
        aiomigrate.send(guest, str(reception.address), options) as migration,
    ):
        sent, received = await asyncio.gather(
            migration.result(), reception.result(), return_exceptions=True
        )
    return sent, received


def _both(outcomes: tuple[Report | BaseException, Report | BaseException]) -> list[Report]:
    reports = [outcome for outcome in outcomes if isinstance(outcome, Report)]
    assert len(reports) == 2, outcomes
    return reports


def _failure(outcome: Report | BaseException) -> MigrationFailed:
    assert isinstance(outcome, MigrationFailed), outcome
    return outcome


@pytest.mark.parametrize("resumes", [True, False])
async def test_the_destination_has_the_very_same_memory(tmp_path: Path, resumes: bool) -> None:
    with SharedGuest(resumes=resumes) as guest, Taker() as taker:
        # Until it is paused the guest writes memory that both have.
        guest.script["pause"] = lambda: guest.write(5, 7 * PAGE, b"on the way to the pause")
        guest.script["capture"] = lambda: guest.write(0, 0, b"by a device")
        sent, received = _both(await _migrate(guest, taker, tmp_path / "socket"))
        assert taker.digest() == guest.digest()
        guest.write(2, MIB, b"seen by both")
        assert taker.digest() == guest.digest()
        assert (taker.config, taker.state) == (guest.config_bytes, STATE_JSON)
        assert guest.calls == ["config", "pause", "capture", "hand_over", "release"]
        last = "resume" if resumes else "keep_paused"
        assert taker.calls == ["adopt", "restore", last, "confirmed"]
    assert (sent.bytes, received.bytes) == (0, 0)
    assert (sent.running, received.running) == (resumes, resumes)
    assert sent.owner is received.owner is Owner.DESTINATION


async def test_to_a_receiver_as_cloud_hypervisors(tmp_path: Path) -> None:
    with SharedGuest() as guest, Peer(address=f"unix:{tmp_path}/socket") as peer:
        async with aiomigrate.send(guest, peer.address, _LOCAL) as migration:
            report = await migration.result()
        assert await asyncio.to_thread(peer.finished) == "completed"
        assert [command for _, command in peer.order[:6]] == [1, *3 * [MEMORY_FD], CONFIG, STATE]
        assert not peer.count(MEMORY)
        assert (peer.config, peer.state) == (guest.config_bytes, STATE_JSON)
        assert digest_of(guest.mappings, peer.memory_fds) == guest.digest()
        assert {slot: os.fstat(fd).st_ino for slot, fd in peer.memory_fds.items()} == {
            slot: os.fstat(fd).st_ino for slot, fd in guest.fds.items()
        }
    assert report.running


@pytest.mark.parametrize("at", [MEMORY_FD, CONFIG, STATE])
async def test_a_refusal_leaves_the_guest_running(tmp_path: Path, at: int) -> None:
    script = Script(error_at=at)
    with SharedGuest() as guest, Peer(address=f"unix:{tmp_path}/socket", script=script) as peer:
        async with aiomigrate.send(guest, peer.address, _LOCAL) as migration:
            with pytest.raises(MigrationFailed, match="refused") as caught:
                await migration.result()
        assert guest.running
    assert caught.value.owner is Owner.SOURCE
    if at == MEMORY_FD:
        assert "MemoryFd of slot 0" in str(caught.value)


async def test_without_an_answer_to_complete_the_guest_stays_paused(tmp_path: Path) -> None:
    """The destination may run it, on this memory."""
    script = Script(close_at=COMPLETE)
    with SharedGuest() as guest, Peer(address=f"unix:{tmp_path}/socket", script=script) as peer:
        async with aiomigrate.send(guest, peer.address, _LOCAL) as migration:
            with pytest.raises(OutcomeUnknown):
                await migration.result()
        assert not guest.running
        assert guest.calls[-1] == "lost"


async def test_a_destination_that_takes_no_descriptors_says_so(tmp_path: Path) -> None:
    with SharedGuest() as guest, Landing() as landing:
        sent, received = await _migrate(guest, landing, tmp_path / "socket")
        assert "by descriptor is not taken" in str(_failure(received))
        assert "refused MemoryFd of slot" in str(_failure(sent))
        assert guest.running
        assert landing.calls == []


async def test_a_taker_takes_content_as_well(tmp_path: Path) -> None:
    with SharedGuest() as guest, Taker() as taker:
        sent, _ = _both(await _migrate(guest, taker, tmp_path / "socket", SendOptions()))
        assert taker.calls[0] == "configure"
        assert taker._memfds.digest().keys() == guest.digest().keys()
    assert sent.bytes > 0


@pytest.mark.parametrize("hook", ["adopt", "restore", "resume"])
async def test_a_failing_destination_gives_all_back(tmp_path: Path, hook: str) -> None:
    def fail() -> None:
        raise aiomigrate.GuestNotStarted("no room")

    with SharedGuest() as guest, Taker() as taker:
        taker.script[hook] = fail
        sent, received = await _migrate(guest, taker, tmp_path / "socket")
        assert "no room" in str(_failure(received))
        assert _failure(sent).owner is Owner.SOURCE
        assert guest.running
        assert len(taker.discarded) == 1


async def test_the_descriptors_are_closed_once_they_are_adopted(tmp_path: Path) -> None:
    with SharedGuest() as guest, Taker() as taker:
        held: list[bool] = []

        def look() -> None:
            mine = {os.fstat(fd).st_ino for fd in guest.fds.values()}
            held.extend(_inode(fd) in mine for fd in taker.fds.values())

        taker.script["adopt"] = look
        taker.script["restore"] = look
        _both(await _migrate(guest, taker, tmp_path / "socket"))
    assert held == [True] * 3 + [False] * 3


def _inode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return None


async def test_a_cancelled_adoption_leaves_nothing(tmp_path: Path) -> None:
    with SharedGuest() as guest, Taker() as taker:
        began = asyncio.Event()

        async def wait() -> None:
            began.set()
            await asyncio.Event().wait()

        taker.script["adopt"] = wait
        async with (
            aiomigrate.receive(taker, f"unix:{tmp_path}/socket") as reception,
            aiomigrate.send(guest, str(reception.address), _LOCAL) as migration,
        ):
            await began.wait()
            assert reception.cancel()
            outcomes = await asyncio.gather(
                migration.result(), reception.result(), return_exceptions=True
            )
        assert [_failure(outcome).owner for outcome in outcomes] == [Owner.SOURCE] * 2
        assert guest.running


# What a source cannot pass


@asynccontextmanager
async def _sending(guest: SharedGuest, socket: Path) -> AsyncIterator[aiomigrate.Migration]:
    with Taker() as taker:
        async with aiomigrate.receive(taker, f"unix:{socket}") as reception:
            async with aiomigrate.send(guest, str(reception.address), _LOCAL) as migration:
                yield migration
            with pytest.raises(MigrationFailed):
                await reception.result()
        assert taker.calls == []


def _in_a_buffer(guest: SharedGuest) -> None:
    guest.memory.close()
    buffers = {m.slot: bytearray(m.size) for m in guest.mappings}
    guest.memory = GuestMemory.over_buffers(VmConfig.parse(guest.config_bytes).memory_map, buffers)


def _elsewhere(guest: SharedGuest) -> None:
    guest.memory.close()
    memory_map = VmConfig.parse(guest.config_bytes).memory_map
    offsets = {**memory_map.file_offsets, 5: MIB}
    guest.memory = GuestMemory.over_files(memory_map, guest.fds, writable=True, offsets=offsets)


def _of_another_map(guest: SharedGuest) -> None:
    guest.config_bytes = config_of([*guest.mappings[:2], replace(guest.mappings[2], slot=3)])


def _at_another_offset(guest: SharedGuest) -> None:
    moved = replace(guest.mappings[2], file_offset=MIB)
    guest.config_bytes = config_of([*guest.mappings[:2], moved])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_in_a_buffer, "slot 0 is held in a buffer"),
        (_elsewhere, r"slot 5 begins at 1048576 in its file, not at its file_offset of 3145728"),
        (_of_another_map, "config maps slot 3 of .* where its memory has slot 2"),
        (_at_another_offset, "config has slot 2 at 1048576 of its file, its memory at 0"),
        (lambda guest: setattr(guest, "config_bytes", b"{"), "config is none that can be sent"),
    ],
)
async def test_memory_that_cannot_be_passed_is_named(
    tmp_path: Path, spoil: Callable[[SharedGuest], None], says: str
) -> None:
    with SharedGuest() as guest:
        spoil(guest)
        async with _sending(guest, tmp_path / "socket") as migration:
            with pytest.raises(MigrationFailed, match=says):
                await migration.result()
        assert guest.running


def test_local_needs_a_unix_socket() -> None:
    with SharedGuest() as guest, pytest.raises(UsageError, match="unix socket"):
        aiomigrate.send(guest, "tcp:127.0.0.1:6000", _LOCAL)


def test_the_zones_share_a_file() -> None:
    """What the tests above rest on."""
    offsets = [(m.zone_id, m.file_offset) for m in ZONES]
    assert sorted(offsets) == [("a", 0), ("a", 3 * MIB), ("b", 0)]
    assert isinstance(ZONES[0], Mapping)
