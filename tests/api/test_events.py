"""Events: their names and form, listeners that do not keep up, and a thousand that do."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest

from aiomigrate.api import Service, http
from aiomigrate.api.events import (
    MAX_LISTENERS,
    QUEUE_EVENTS,
    Event,
    EventBus,
    Listener,
    TooManyListeners,
)
from tests.api.conftest import Client, Machine
from tests.api.test_migrating import destination, receive_here, send_to
from tests.support.vms import Guest, Landing

THOUSAND = 1000


class Listening:
    """One that listens."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        return await self._reader.readuntil(b"\r\n\r\n")

    async def event(self) -> dict[str, Any]:
        """The next event; heartbeats are passed over."""
        while (event := await self.any_event())["event"] == "heartbeat":
            pass
        return event

    async def any_event(self) -> dict[str, Any]:
        """The next event."""
        while True:
            line = await self._reader.readuntil(b"\n")
            if line.startswith(b"data: "):
                event: dict[str, Any] = json.loads(line[6:])
                return event

    async def until(self, name: str) -> list[dict[str, Any]]:
        """All events up to the one of that name."""
        found = [await self.event()]
        while found[-1]["event"] != name:
            found.append(await self.event())
        return found


@asynccontextmanager
async def listening(client: Client) -> AsyncIterator[Listening]:
    reader, writer = await client.connect()
    try:
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        one = Listening(reader, writer)
        head = await one.head()
        assert head.startswith(b"HTTP/1.1 200 \r\n")
        assert b"Content-Type: text/event-stream\r\n" in head
        yield one
    finally:
        writer.transport.abort()


def departure(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when one that has begun to listen since then does so no more."""
    gone = asyncio.Event()
    listen = bus.listen

    @contextmanager
    def noted() -> Iterator[Listener]:
        try:
            with listen() as listener:
                yield listener
        finally:
            gone.set()

    monkeypatch.setattr(bus, "listen", noted)
    return gone


async def test_a_migration_away(client: Client, machine: Machine) -> None:
    with Guest() as guest:
        machine.guest = guest
        async with listening(client) as listener, destination(Landing()) as reception:
            await client.put("vm.send-migration", send_to(reception))
            events = await listener.until("migration-finished")
    names = [event["event"] for event in events]
    assert names[0] == "migration-started"
    for event in events:
        assert set(event) == {"timestamp", "source", "event", "properties"}
        assert set(event["timestamp"]) == {"secs", "nanos"}
        assert event["source"] == "vm"
        assert event["properties"]["vm"] == "web-1"
    assert len({event["properties"]["migration"] for event in events}) == 1
    phases = [one["properties"]["phase"] for one in events if one["event"] == "migration-phase"]
    assert phases[0] == "connecting"
    assert phases[-1] == "done"


async def test_iterations_are_counted(client: Client, machine: Machine) -> None:
    """Those with the guest running: one here, then it is paused."""
    with Guest() as guest:
        machine.guest = guest
        guest.script["collect 1"] = lambda: guest.write(0, b"x" * 4096)
        async with listening(client) as listener, destination(Landing()) as reception:
            await client.put("vm.send-migration", send_to(reception))
            events = await listener.until("migration-finished")
    found = [one for one in events if one["event"] == "migration-memory-iteration"]
    assert [one["properties"]["id"] for one in found] == ["0"]


async def test_a_migration_that_fails(client: Client, machine: Machine) -> None:
    with Guest() as guest:
        machine.guest = guest
        async with listening(client) as listener:
            await client.put("vm.send-migration", {"destination_url": "tcp:127.0.0.1:1"})
            failed = (await listener.until("migration-failed"))[-1]
    assert "the VM is with the source" in failed["properties"]["error"]
    assert failed["properties"]["state"] == "failed"


async def test_a_reception(client: Client) -> None:
    async with listening(client) as listener:
        asked, url = await receive_here(client)
        ready = (await listener.until("migration-receive-ready"))[-1]
        assert ready["properties"]["url"] == url
        await client.put("vm.cancel-migration")
        await listener.until("migration-receive-failed")
        await asked


async def test_pausing_and_resuming(client: Client, machine: Machine) -> None:
    with Guest() as guest:
        machine.guest = guest
        async with listening(client) as listener:
            await client.put("vm.pause")
            await client.put("vm.resume")
            events = await listener.until("resumed")
    assert [one["event"] for one in events] == ["pausing", "paused", "resuming", "resumed"]


async def test_who_hears_nothing_hears_that_the_service_is_there(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_IDLE_S", 0.02)
    async with listening(client) as listener:
        heard = [await listener.any_event() for _ in range(2)]
    assert [(one["event"], one["properties"]) for one in heard] == [("heartbeat", {})] * 2


async def test_a_full_queue_loses_the_oldest_and_says_so() -> None:
    bus = EventBus()
    with bus.listen() as listener:
        for number in range(QUEUE_EVENTS + 7):
            bus.publish(Event.PHASE, {"number": number})
        events = [line for line in (await listener.take()).split(b"\n") if line[:6] == b"data: "]
    documents = [json.loads(line[6:]) for line in events]
    assert documents[0]["event"] == "events-lost"
    assert documents[0]["properties"] == {"count": "7"}
    numbers = [document["properties"]["number"] for document in documents[1:]]
    assert numbers == list(range(7, QUEUE_EVENTS + 7))


async def test_a_listener_that_reads_nothing_holds_up_nobody(
    client: Client, service: Service, machine: Machine
) -> None:
    """Its socket and its queue are full: the migration, and another listener, go on."""
    with Guest() as guest:
        machine.guest = guest
        landing = Landing()
        async with listening(client) as stuck, listening(client) as other:
            for _ in range(20 * QUEUE_EVENTS):
                service.bus.publish(Event.PHASE, {"filler": "x" * 1000})
                await asyncio.sleep(0)
            async with destination(landing) as reception:
                await client.put("vm.send-migration", send_to(reception))
                await other.until("migration-finished")
                assert landing.digest() == guest.digest()
            late = await stuck.until("migration-finished")
    assert guest.ended
    assert "events-lost" in {event["event"] for event in late}, "its queue was full"


async def test_a_listener_that_takes_nothing_is_let_go(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_STUCK_S", 0.05)
    gone = departure(service.bus, monkeypatch)
    async with listening(client):
        for _ in range(QUEUE_EVENTS):  # at once, and far more than a socket holds
            service.bus.publish(Event.PHASE, {"filler": "x" * 10000})
        await gone.wait()
    assert not service.bus.listeners


async def test_a_listener_that_goes_away_is_noticed(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_IDLE_S", 0.02)
    gone = departure(service.bus, monkeypatch)
    async with listening(client) as listener:
        assert service.bus.listeners == 1
        listener.writer.transport.abort()
        await gone.wait()
    assert not service.bus.listeners


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 3 * THOUSAND,
    reason="a thousand connections, with both ends here, need more descriptors",
)
async def test_a_thousand_listeners(client: Client, service: Service, machine: Machine) -> None:
    """Each of them hears of the migration, which is none the worse for it."""
    with Guest() as guest:
        machine.guest = guest
        landing = Landing()
        async with AsyncExitStack() as stack:
            listeners = [
                await stack.enter_async_context(listening(client)) for _ in range(THOUSAND)
            ]
            assert service.bus.listeners == THOUSAND
            async with destination(landing) as reception:
                await client.put("vm.send-migration", send_to(reception))
                ends = await asyncio.gather(*(one.until("migration-finished") for one in listeners))
                assert landing.digest() == guest.digest()
    names = {tuple(event["event"] for event in events) for events in ends}
    assert len(names) == 1, "all heard the same"
    assert guest.ended


def test_there_are_not_too_many() -> None:
    bus = EventBus()
    with pytest.raises(TooManyListeners):
        listen_to(bus, MAX_LISTENERS + 1)


def listen_to(bus: EventBus, count: int) -> None:
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(bus.listen())


async def test_too_many_are_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiomigrate.api.events.MAX_LISTENERS", 0)
    answer = await client.get("/events")
    assert (answer.status, answer.json) == (429, ["there are too many listeners"])


async def test_the_end_of_the_service_is_the_end_of_the_stream() -> None:
    bus = EventBus()
    with bus.listen() as listener:
        bus.publish(Event.PAUSED, {})
        bus.close()
        assert b"event: paused" in await listener.take()
        assert await listener.take() == b""
    with bus.listen() as late:
        assert await late.take() == b""
