"""A service for a directory of stored VMs; snapshots of any VM, and restoring them."""

import asyncio
import fcntl
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiomigrate import StoredSource, convert, receive, send
from aiomigrate.api import Service, serve
from aiomigrate.api.stored import StoredPlace
from aiomigrate.api.vms import VmState
from tests.api.conftest import Client, Machine
from tests.api.test_migrating import LOCAL, destination, send_to
from tests.engine.engine_snapshots import file_snapshot
from tests.support.shared_guest import Taker
from tests.support.vms import ONE, Guest, Landing, store_vm


def digest(directory: Path) -> dict[str, str]:
    return {
        file.name: hashlib.blake2b(file.read_bytes()).hexdigest()
        for file in directory.iterdir()
        if file.name != "aiomigrate.json"
    }


@pytest.fixture
def vms(tmp_path: Path) -> Path:
    """Where stored VMs are: one, `web-1`."""
    place = tmp_path / "vms"
    place.mkdir()
    store_vm(place / "web-1", ONE)
    return place


@pytest.fixture
async def store(vms: Path, listener: socket.socket) -> AsyncIterator[Client]:
    """A service for them."""
    service = Service(stored=str(vms))
    async with serve(service, listener):
        yield Client(Path(listener.getsockname()), service)


async def test_they_are_listed(store: Client, vms: Path) -> None:
    (vms / ".hidden").mkdir()
    (vms / "file").touch()
    assert (await store.get("vmm.vms")).json == ["vm", "web-1"]


async def test_one_is_meant_by_its_name(store: Client) -> None:
    assert (await store.get("vm.info")).status == 404
    info = (await store.get("vm.info?vm=web-1")).json
    assert info == {"config": {"memory": {"size": 0, "zones": [{"id": "mem0", "size": 0}]}},
                    "state": "Paused", "memory_actual_size": 4 << 20}  # fmt: skip
    for name in ("nothing", "..", "a/b", ".web-1"):
        assert (await store.get(f"vm.info?vm={name}")).status == 404


async def test_it_is_sent_as_it_was_told(store: Client, vms: Path) -> None:
    before = digest(vms / "web-1")
    assert (await store.put("vm.resume?vm=web-1")).status == 204
    assert (await store.get("vm.info?vm=web-1")).json["state"] == "Running"
    landing = Landing()
    async with destination(landing) as reception:
        await store.put("vm.send-migration?vm=web-1", send_to(reception))
        one = await store.until(lambda one: one["state"] != "running", "vm.migration?vm=web-1")
    assert (one["state"], one["vm"], one["runs"]) == ("done", "web-1", False)
    assert landing.runs is True
    assert digest(vms / "web-1") == before
    assert (await store.get("vm.info?vm=web-1")).status == 404, "it was given away"
    again = await store.put("vm.send-migration?vm=web-1", {"destination_url": "tcp:127.0.0.1:1"})
    assert again.status == 500
    assert "it was given to" in again.json[-1]


async def test_it_is_given_by_descriptor(store: Client, vms: Path, tmp_path: Path) -> None:
    """To a VMM, which writes to that memory: it is not what is stored."""
    before = digest(vms / "web-1")
    with Taker() as landing:
        async with receive(landing, f"unix:{tmp_path}/vm.sock") as reception:
            body = send_to(reception, local=True)
            assert (await store.put("vm.send-migration?vm=web-1", body)).status == 204
            await reception.result()
            one = await store.until(lambda one: one["state"] != "running", "vm.migration?vm=web-1")
        stored = hashlib.blake2b((vms / "web-1" / "memory-0").read_bytes()).hexdigest()
        assert landing.digest() == {0: stored}
    assert (one["state"], one["report"]["bytes"]) == ("done", 0), "no content went by the socket"
    assert digest(vms / "web-1") == before


async def test_what_comes_is_the_vm_that_is_meant(store: Client, vms: Path) -> None:
    """As with Cloud Hypervisor: received, looked at, sent on; and then another can come."""
    for _ in range(2):
        asked = asyncio.create_task(store.put("vm.receive-migration", {"receiver_url": LOCAL}))
        here = await store.until(lambda one: one["progress"]["phase"] == "waiting")
        with Guest() as guest:
            async with send(guest, here["url"]) as migration:
                await migration.result()
        assert (await asked).status == 204
        assert (await store.get("vm.info")).json["state"] == "Running"
        landing = Landing()
        async with destination(landing) as reception:
            await store.put("vm.send-migration", send_to(reception))
            await store.until(lambda one: one["state"] == "done" and one["direction"] == "send")
        assert landing.runs is True
        assert (await store.get("vm.info")).status == 404
    assert len((await store.get("vmm.vms")).json) == 4


async def test_a_name_for_what_comes(store: Client, vms: Path) -> None:
    asked = asyncio.create_task(store.put("vm.receive-migration?vm=web-2", {"receiver_url": LOCAL}))
    where = "vm.migration?vm=web-2"
    here = await store.until(lambda one: one["progress"]["phase"] == "waiting", where)
    assert (await store.put("vm.cancel-migration?vm=web-2")).status == 200
    assert (await asked).status == 500
    assert not (vms / "web-2").exists()
    assert here["vm"] == "web-2"
    taken = await store.put("vm.receive-migration?vm=web-1", {"receiver_url": LOCAL})
    assert taken.json[-1] == "There is a VM already"


async def test_names_are_not_remembered_for_ever(
    vms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is what somebody has said of a VM forgotten."""
    monkeypatch.setattr("aiomigrate.api.places._REMEMBERED", 8)
    service = Service(stored=str(vms))
    await service.resume(service.places.find("web-1"))
    for number in range(100):
        service.places.find(f"nothing-{number}")
    assert len(await service.places.names()) <= 8 + 1
    assert (await service.info(service.places.find("web-1"))).state == "Running"


async def test_what_a_service_that_was_killed_left_is_removed(
    vms: Path, listener: socket.socket
) -> None:
    """Nothing else is: not what another process is making, nor what has another name."""
    names = (
        ".vm-1.partial-0123abcd",
        ".web-1.partial-89abcdef",
        ".partial",
        "web-2.partial-00000000",
    )
    for name in names:
        (vms / name).mkdir()
        (vms / name / "memory-0").touch()
    held = os.open(vms / names[1], os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        async with serve(Service(stored=str(vms)), listener):
            pass
    finally:
        os.close(held)
    assert set(os.listdir(vms)) == {*names[1:], "web-1"}


async def test_restoring_chooses_the_vm(store: Client, vms: Path) -> None:
    body = {"source_url": f"file://{vms}/web-1", "resume": True}
    assert (await store.put("vm.restore", body)).status == 204
    assert (await store.get("vm.info")).json["state"] == "Running"
    assert (await store.put("vm.restore", body)).json[-1] == "There is a VM already"
    assert (await store.put("vm.restore?vm=web-1", body)).status == 500


async def test_a_snapshot_of_cloud_hypervisors_becomes_a_stored_vm(
    store: Client, vms: Path, tmp_path: Path
) -> None:
    """It stays, and can be restored again, as with Cloud Hypervisor: each time it is another VM."""
    snapshot = file_snapshot(tmp_path / "snapshot")
    before = digest(snapshot)
    assert (await store.put("vm.restore", {"source_url": f"file://{snapshot}"})).status == 204
    assert (await store.get("vm.info")).json["state"] == "Paused"
    (made,) = (name for name in (await store.get("vmm.vms")).json if name.startswith("vm-"))
    assert digest(snapshot) == before
    await convert(vms / made, tmp_path / "back")
    assert digest(tmp_path / "back") == before
    landing = Landing()
    async with destination(landing) as reception:
        await store.put("vm.send-migration", send_to(reception))
        await store.until(lambda one: one["state"] == "done")
    assert landing.runs is False
    landing.__exit__(None, None, None)
    assert (await store.put("vm.restore", {"source_url": f"file://{snapshot}"})).status == 204


async def test_one_that_was_made_is_here_though_its_restoring_is_cancelled(
    vms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing would refer to its directory."""

    async def cancelled(snapshot: str, path: str) -> None:
        await convert(snapshot, path)
        raise asyncio.CancelledError

    monkeypatch.setattr("aiomigrate.api.stored.convert", cancelled)
    place = StoredPlace(str(vms))
    with pytest.raises(asyncio.CancelledError):
        await place.adopt(str(file_snapshot(tmp_path / "snapshot")), VmState.RUNNING)
    info = await place.info()
    assert info is not None
    assert info.state is VmState.RUNNING
    names = await asyncio.to_thread(os.listdir, vms)
    assert [name for name in names if name.startswith("vm-")] == [
        os.path.basename(place.path or "")
    ]


async def test_one_that_was_not_made_is_no_vm(
    vms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelled(_: str, __: str) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr("aiomigrate.api.stored.convert", cancelled)
    place = StoredPlace(str(vms))
    with pytest.raises(asyncio.CancelledError):
        await place.adopt(str(file_snapshot(tmp_path / "snapshot")), VmState.RUNNING)
    assert await place.info() is None


async def test_an_embedders_vm_is_not_restored_from_one(
    client: Client, machine: Machine, tmp_path: Path
) -> None:
    snapshot = file_snapshot(tmp_path / "snapshot")
    answer = await client.put("vm.restore", {"source_url": f"file://{snapshot}"})
    assert answer.status == 500
    assert f"make a stored VM of it first (aiomigrate convert {snapshot} DIR)" in answer.json[-1]
    assert machine.landing.calls == []


async def test_what_cannot_be_restored(store: Client, vms: Path) -> None:
    for url in (f"file://{vms}", "file://web-1", f"{vms}/web-1", "file:///\0"):
        answer = await store.put("vm.restore", {"source_url": url})
        assert answer.json[:2] == ["Error from API", "The VM could not be restored"]
    assert (await store.get("vm.info")).status == 404


async def test_a_snapshot_of_a_stored_vm(store: Client, vms: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    body = {"destination_url": f"file://{tmp_path}/kept"}
    assert (await store.put("vm.snapshot?vm=web-1", body)).status == 204
    assert digest(tmp_path / "kept") == digest(vms / "web-1")
    assert (await store.get("vm.info?vm=web-1")).status == 200, "it is still here"


async def test_a_snapshot_goes_into_an_empty_directory(store: Client, vms: Path) -> None:
    before = digest(vms / "web-1")
    for place in (vms / "web-1", vms / "nowhere", vms / "web-1" / "state.json"):
        answer = await store.put("vm.snapshot?vm=web-1", {"destination_url": f"file://{place}"})
        assert answer.status == 500
        assert "a snapshot goes into an empty directory" in answer.json[-1]
    assert digest(vms / "web-1") == before


async def test_an_embedders_vm_is_kept_and_restored(
    client: Client, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    with Guest() as guest:
        machine.guest = guest
        body = {"destination_url": f"file://{tmp_path}/kept"}
        running = await client.put("vm.snapshot", body)
        assert running.json[-1] == "The VM is Running, not Paused"
        await client.put("vm.pause")
        assert (await client.put("vm.snapshot", body)).status == 204
        assert not guest.running
        assert not guest.ended
        expected = guest.digest()
        machine.guest = None
    for _ in range(2):  # a snapshot can be restored more than once
        restore = {"source_url": f"file://{tmp_path}/kept"}
        assert (await client.put("vm.restore", restore)).status == 204
        assert machine.landing.runs is False
        assert machine.landing.digest() == expected
        machine.landing.__exit__(None, None, None)
        machine.landing = Landing()


async def test_a_snapshot_that_fails_leaves_nothing(
    client: Client, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()

    def fail() -> None:
        raise RuntimeError("no state")

    with Guest() as guest:
        guest.running = False
        guest.script["capture"] = fail
        machine.guest = guest
        answer = await client.put("vm.snapshot", {"destination_url": f"file://{tmp_path}/kept"})
        assert answer.status == 500
        assert "no state" in answer.json[-1]
        assert not guest.running
    assert [path for path in os.listdir(tmp_path) if path[:5] != "api.s"] == ["kept"]
    assert digest(tmp_path / "kept") == {}


async def test_a_vm_that_another_process_has(store: Client, vms: Path) -> None:
    async with StoredSource(vms / "web-1"):
        answer = await store.get("vm.info?vm=web-1")
        assert answer.status == 500
        assert "web-1" in answer.json[-1]


async def test_nothing_is_received_where_somebody_listens(store: Client) -> None:
    async with receive(Landing(), LOCAL) as reception:
        answer = await store.put("vm.receive-migration", {"receiver_url": str(reception.address)})
        assert answer.status == 500
        assert "cannot listen" in answer.json[-1]
        reception.cancel()
        with pytest.raises(Exception, match="cancelled"):
            await reception.result()
    assert (await store.get("vm.migrations")).json == []
