"""Migrations through the API: what they do, cancelling at each phase, clients that misbehave."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from aiomigrate import (
    Deadlines,
    MigrationError,
    ReceiveOptions,
    Reception,
    SendOptions,
    receive,
    send,
)
from aiomigrate.api import Refusal, Service, serve
from aiomigrate.api.models import SendMigration
from tests.api.conftest import API, Client, Machine, read_answer, request_bytes
from tests.support.certificates import Authority
from tests.support.vms import Guest, Landing

LOCAL = "tcp:127.0.0.1:0"


@asynccontextmanager
async def destination(
    landing: Landing, options: ReceiveOptions | None = None
) -> AsyncIterator[Reception]:
    """Somebody who receives; how that ends is the test's to look at."""
    with landing:
        async with receive(landing, LOCAL, options) as reception:
            yield reception
            with suppress(MigrationError):
                await reception.result()


def send_to(reception: Reception, **options: Any) -> dict[str, Any]:
    return {"destination_url": str(reception.address)} | options


async def receive_here(client: Client, **options: Any) -> tuple[asyncio.Task[Any], str]:
    """Have the service receive: the request, and where it listens."""
    body = {"receiver_url": LOCAL} | options
    asked = asyncio.create_task(client.put("vm.receive-migration", body))
    one = await client.until(lambda one: one["progress"]["phase"] == "waiting")
    return asked, one["url"]


async def test_a_vm_is_sent(client: Client, machine: Machine, no_leaks: None) -> None:
    with Guest() as guest:
        machine.guest = guest
        landing = Landing()
        async with destination(landing) as reception:
            assert (await client.put("vm.send-migration", send_to(reception))).status == 204
            one = await client.until(lambda one: one["state"] != "running")
            assert landing.digest() == guest.digest()
        assert one["state"] == "done"
        assert one["owner"] == "destination"
        assert one["runs"] is True
        assert one["report"]["running"] is True
        assert one["report"]["history"]["samples"][-1]["phase"] == "done"
        assert one["account"] is None
        (listed,) = (await client.get("vm.migrations")).json
        assert listed["report"]["history"]["samples"] == [], "a list would be too long"
        assert one["progress"]["phase"] == "done"
        assert one["progress"]["bytes_done"] == one["report"]["bytes"] > 0
        assert guest.ended
        assert (await client.get("vm.info")).status == 404


async def test_a_vm_that_is_paused_is_sent_so(client: Client, machine: Machine) -> None:
    with Guest(resumes=False) as guest:
        machine.guest = guest
        async with destination(Landing()) as reception:
            await client.put("vm.send-migration", send_to(reception))
            one = await client.until(lambda one: one["state"] != "running")
    assert (one["runs"], one["report"]["running"]) == (False, False)


async def test_a_vm_is_received(client: Client, machine: Machine) -> None:
    asked, url = await receive_here(client)
    assert (await client.get("vm.migration")).json["runs"] is None, "the source has not said so"
    with Guest(resumes=False) as guest:
        async with send(guest, url) as migration:
            await migration.result()
        assert (await asked).status_line == b"HTTP/1.1 204 "
        assert machine.landing.digest() == guest.digest()
    assert (await client.get("vm.info")).json["state"] == "Paused"
    again = await client.put("vm.receive-migration", {"receiver_url": LOCAL})
    assert again.json == [
        "Error from API", "Error starting migration receiver", "There is a VM already",
    ]  # fmt: skip


async def test_through_tls(client: Client, machine: Machine, tmp_path: Path) -> None:
    """There and back; a source without certificates is none."""
    tls_dir = str(Authority().directory(tmp_path / "tls"))
    landing = Landing()
    with Guest() as guest:
        machine.guest = guest
        async with destination(landing, ReceiveOptions(tls_dir=tls_dir)) as reception:
            await client.put("vm.send-migration", send_to(reception))
            one = await client.until(lambda one: one["state"] != "running")
            assert (one["state"], one["owner"]) == ("failed", "source")
            await client.put("vm.send-migration", send_to(reception, tls_dir=tls_dir))
            one = await client.until(lambda one: one["state"] != "running")
            assert (one["state"], one["owner"]) == ("done", "destination")
            assert landing.digest() == guest.digest()
    asked, url = await receive_here(client, tls_dir=tls_dir)
    with Guest() as guest:
        with pytest.raises(MigrationError):
            async with send(guest, url) as migration:
                await migration.result()
        async with send(guest, url, SendOptions(tls_dir=tls_dir)) as migration:
            await migration.result()
        assert (await asked).status == 204
        assert machine.landing.digest() == guest.digest()


async def test_a_failed_reception_is_told_to_who_asked(client: Client) -> None:
    asked, url = await receive_here(client)
    _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(bytes.fromhex("0100" + "00" * 14))  # Start, and the end of the stream
    await writer.drain()
    writer.close()
    answer = await asked
    assert answer.status == 500
    assert "the VM is with the source" in answer.json[-1]


async def test_other_requests_are_answered_during_a_reception(
    client: Client, machine: Machine
) -> None:
    asked, _ = await receive_here(client)
    assert (await client.get("vmm.ping")).status == 200
    assert (await client.get("vm.info")).status == 404
    busy = await client.put("vm.receive-migration", {"receiver_url": LOCAL})
    assert (busy.status, busy.json[-1]) == (500, "The VM is migrating")
    assert not asked.done()
    cancelled = await client.put("vm.cancel-migration")
    assert cancelled.json["state"] == "cancelled"
    assert (await asked).status == 500


async def test_requests_during_a_migration_away(client: Client, machine: Machine) -> None:
    """`vm.info` is as it was before, and the VM is not to be had for anything else."""
    with Guest() as guest:
        machine.guest = guest
        held = asyncio.Event()
        guest.script["capture"] = held.wait
        async with destination(Landing()) as reception:
            await client.put("vm.send-migration", send_to(reception))
            await client.until(lambda one: one["progress"]["phase"] == "switchover")
            assert not guest.running
            assert (await client.get("vm.info")).json["state"] == "Running"
            for path in ("vm.pause", "vm.resume"):
                assert (await client.put(path)).json[-1] == "The VM is migrating"
            again = await client.put("vm.send-migration", send_to(reception))
            assert again.json[-1] == "The VM is migrating"
            held.set()


# Cancelling. The VM has one owner whatever happens (invariant 5).


@pytest.mark.parametrize(
    ("hook", "phase"),
    [("config", "connecting"), ("start", "connecting"), ("collect 1", "precopy"),
     ("pause", "switchover"), ("capture", "switchover"), ("hand_over", "switchover")],
)  # fmt: skip
async def test_cancelling_at_the_source(
    client: Client, machine: Machine, hook: str, phase: str, no_leaks: None
) -> None:
    with Guest() as guest:
        machine.guest = guest
        guest.script[hook] = asyncio.Event().wait
        landing = Landing()
        async with destination(landing) as reception:
            await client.put("vm.send-migration", send_to(reception))
            await guest.called(hook)
            await client.until(lambda one: one["progress"] is not None)
            assert (await client.get("vm.migration")).json["progress"]["phase"] in {
                phase,
                "precopy",
            }
            answer = await client.put("vm.cancel-migration")
        assert answer.status == 200
        assert (answer.json["state"], answer.json["owner"]) == ("cancelled", "source")
        assert answer.json["report"] is None
        assert answer.json["account"]["history"]["phases"][-1]["phase"] == "failed"
        assert guest.running
        assert not guest.ended
        assert landing.runs is None
        assert (await client.get("vm.info")).json["state"] == "Running"


@pytest.mark.parametrize("hook", ["configure", "restore"])
async def test_cancelling_at_the_destination(client: Client, machine: Machine, hook: str) -> None:
    machine.landing.script[hook] = asyncio.Event().wait
    asked, url = await receive_here(client)
    with Guest() as guest:
        async with send(guest, url) as migration:
            await machine.landing.called(hook)
            answer = await client.put("vm.cancel-migration")
            with pytest.raises(Exception, match="the VM is with the source"):
                await migration.result()
        assert (answer.json["state"], answer.json["owner"]) == ("cancelled", "source")
        assert guest.running
    assert machine.landing.runs is None
    assert machine.landing.discarded
    assert (await asked).status == 500


async def test_too_late_to_cancel(client: Client, machine: Machine) -> None:
    """Complete was sent: the migration ends as it would, and the request says so."""
    with Guest() as guest:
        machine.guest = guest
        held = asyncio.Event()
        landing = Landing()
        landing.script["resume"] = held.wait
        async with destination(landing) as reception:
            await client.put("vm.send-migration", send_to(reception))
            await landing.called("resume")
            answer = await client.put("vm.cancel-migration")
            assert answer.status == 409
            assert "too late to cancel" in answer.json[0]
            held.set()
            one = await client.until(lambda one: one["state"] != "running")
        assert (one["state"], one["owner"]) == ("done", "destination")
        assert landing.runs
        assert guest.ended
        again = await client.put("vm.cancel-migration")
        assert (again.status, again.json) == (409, [f"{one['id']}: the migration is over: done"])


async def test_there_is_nothing_to_cancel(client: Client) -> None:
    for path in ("vm.cancel-migration", "vm.cancel-migration?migration=none"):
        assert (await client.put(path)).status == 404


# Tuning


async def test_tuning(client: Client, machine: Machine) -> None:
    with Guest() as guest:
        machine.guest = guest
        held = asyncio.Event()
        guest.script["collect 1"] = held.wait
        async with destination(Landing()) as reception:
            await client.put("vm.send-migration", send_to(reception))
            await guest.called("collect 1")
            one = (await client.get("vm.migration")).json
            where = f"vm.tune-migration?migration={one['id']}"
            assert (await client.put(where, {"downtime_ms": 7})).status == 204
            for body in ({}, {"downtime_ms": 0}, {"rate_limit": 1}, {"downtime": 7}):
                assert (await client.put(where, body)).status == 400
            assert (await client.put(where, {"switch_over_now": True})).status == 204
            held.set()
            one = await client.until(lambda one: one["state"] != "running")
        assert one["state"] == "done"
        late = await client.put(where, {"downtime_ms": 7})
        assert late.status == 409
        assert "the migration is over" in late.json[0]


async def test_a_reception_is_not_tuned(client: Client) -> None:
    asked, _ = await receive_here(client)
    answer = await client.put("vm.tune-migration", {"downtime_ms": 7})
    assert answer.status == 409
    await client.put("vm.cancel-migration")
    await asked


async def test_a_preference_says_what_it_chose(client: Client, machine: Machine) -> None:
    with Guest() as guest:
        machine.guest = guest
        async with destination(Landing()) as reception:
            body = send_to(reception, prefer="downtime", throttle_cap_percent=20)
            await client.put("vm.send-migration", body)
            one = await client.until(lambda one: one["state"] != "running")
    (note,) = one["notes"]
    assert note.startswith("preferring downtime: chunks of 4 MiB and windows of at least two, ")
    assert note.endswith("the guest throttled by 20 % at the most, a downtime of 100 ms")


# Clients


async def test_a_client_that_goes_away_changes_nothing(client: Client, machine: Machine) -> None:
    body = {"receiver_url": LOCAL}
    _, writer = await client.connect()
    writer.write(b"".join(request_bytes("PUT", f"{API}/vm.receive-migration", body)))
    await writer.drain()
    one = await client.until(lambda one: one["progress"]["phase"] == "waiting")
    writer.transport.abort()
    with Guest() as guest:
        async with send(guest, one["url"]) as migration:
            report = await migration.result()
    assert report.running
    assert machine.landing.runs
    await client.until(lambda one: one["state"] == "done")


@asynccontextmanager
async def moving(client: Client, machine: Machine) -> AsyncIterator[None]:
    """A guest is in its first iteration meanwhile, and then gets where it is to be, unharmed."""
    with Guest() as guest:
        machine.guest = guest
        held = asyncio.Event()
        guest.script["collect 1"] = held.wait
        landing = Landing()
        async with destination(landing) as reception:
            await client.put("vm.send-migration", send_to(reception))
            await guest.called("collect 1")
            yield
            held.set()
            one = await client.until(lambda one: one["state"] != "running")
            assert landing.digest() == guest.digest()
        assert one["state"] == "done"
        assert len((await client.get("vm.migrations")).json) == 1


async def test_a_client_that_stops_in_the_middle_of_a_request(
    client: Client, machine: Machine
) -> None:
    """Half of it is nothing, though it could be read as a whole one."""
    request = request_bytes("PUT", f"{API}/vm.tune-migration", b'{"downtime_ms":7}   ')
    async with moving(client, machine):
        _, writer = await client.connect()
        writer.write(b"".join(request)[:-1])
        await writer.drain()
        assert (await client.get("vmm.ping")).status == 200
        writer.transport.abort()
        assert (await client.get("vm.migration")).json["settings"]["downtime_ms"] != 7


async def test_two_clients(client: Client, machine: Machine) -> None:
    """One of two that ask at once gets the VM; both get an answer."""
    with Guest() as guest:
        machine.guest = guest
        landing = Landing()
        async with destination(landing) as reception:
            both = await asyncio.gather(
                *(client.put("vm.send-migration", send_to(reception)) for _ in range(2))
            )
            one = await client.until(lambda one: one["state"] != "running")
            assert landing.digest() == guest.digest()
        assert sorted(answer.status for answer in both) == [204, 500]
        assert one["state"] == "done"
        assert len((await client.get("vm.migrations")).json) == 1


async def test_another_client_during_a_migration(client: Client, machine: Machine) -> None:
    """It may look and tune; the VM is nobody's to pause, to send or to replace."""
    async with moving(client, machine):
        for path, body in {
            "vm.pause": None,
            "vm.resume": None,
            "vm.send-migration": {"destination_url": "tcp:127.0.0.1:1"},
            "vm.receive-migration": {"receiver_url": LOCAL},
            "vm.snapshot": {"destination_url": "file:///nowhere"},
            "vm.restore": {"source_url": "file:///nowhere"},
        }.items():
            answer = await client.put(path, body)
            assert (answer.status, answer.json[-1]) == (500, "The VM is migrating"), path
        assert (await client.get("vm.info")).json["state"] == "Running"
        assert (await client.put("vm.tune-migration", {"downtime_ms": 7})).status == 204


async def test_many_requests_over_one_connection(client: Client) -> None:
    reader, writer = await client.connect()
    for _ in range(3):
        writer.write(b"".join(request_bytes("GET", f"{API}/vmm.ping")))
        assert (await read_answer(reader)).status == 200
    writer.close()
    await writer.wait_closed()


async def test_the_service_ends_with_a_migration_running(
    service: Service, listener: socket.socket, machine: Machine, no_leaks: None
) -> None:
    """What can be cancelled is; the VM stays."""
    with Guest() as guest:
        machine.guest = guest
        guest.script["collect 1"] = asyncio.Event().wait
        async with destination(Landing()) as reception, serve(service, listener):
            client = Client(Path(listener.getsockname()), service)
            await client.put("vm.send-migration", send_to(reception))
            await guest.called("collect 1")
        assert guest.running
        assert not guest.ended
    assert [entry.state for entry in service.migrations] == ["cancelled"]


async def test_the_service_ends_while_a_vm_changes_hands(
    service: Service, listener: socket.socket, machine: Machine
) -> None:
    """That is waited for."""
    with Guest() as guest:
        machine.guest = guest
        landing = Landing()
        held = asyncio.Event()
        landing.script["resume"] = held.wait
        async with destination(landing) as reception:
            async with serve(service, listener):
                client = Client(Path(listener.getsockname()), service)
                await client.put("vm.send-migration", send_to(reception))
                await landing.called("resume")
                asyncio.get_running_loop().call_later(0.1, held.set)
            assert guest.ended
    assert [entry.state for entry in service.migrations] == ["done"]


async def test_nothing_begins_while_the_service_ends(
    service: Service, listener: socket.socket, machine: Machine
) -> None:
    with Guest() as guest:
        machine.guest = guest
        async with serve(service, listener):
            pass
        with pytest.raises(Refusal, match="The service is ending"):
            await service.send(
                service.places.find(None), SendMigration(destination_url="tcp:127.0.0.1:1")
            )
        assert guest.running


@pytest.mark.asyncio(loop_factories=["virtual"])
async def test_a_vm_that_does_not_answer(machine: Machine) -> None:
    """Its service does, in time."""
    deadlines = Deadlines(embedder_s=7)
    service = Service({"web-1": machine}, sending=SendOptions(deadlines=deadlines))

    async def hang() -> None:
        await asyncio.Event().wait()

    with Guest() as guest, machine.landing:
        machine.guest = guest
        machine.pause = hang  # type: ignore[method-assign]
        with pytest.raises(Refusal, match="The VM's pause did not return in 7 s"):
            await service.pause(service.places.find(None))
        assert (await service.info(service.places.find(None))).state == "Running"
