"""Events: what happens to the VMs of a service, for whoever listens.

An event is Cloud Hypervisor's (its event monitor's JSON), with its names where it has one. It is
encoded once, whoever listens. Each listener has a bounded queue of its own, and publishing never
waits: a listener that does not keep up loses the oldest and is told how many (`events-lost`).
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

__all__ = ["Event", "EventBus", "Listener", "TooManyListeners", "encode"]

QUEUE_EVENTS = 256
"""Arbitrary: half a minute of a migration's events, some 100 KiB."""
MAX_LISTENERS = 4096
"""Arbitrary, and far over what operates a host: each holds a connection and a queue."""


class Event(StrEnum):
    """The names. Cloud Hypervisor has those of the first two groups."""

    MIGRATION_STARTED = "migration-started"
    """A VM is being sent."""
    MIGRATION_ITERATION = "migration-memory-iteration"
    """A pass over memory has begun; `id` is its number."""
    MIGRATION_FINISHED = "migration-finished"
    """A VM was sent."""
    MIGRATION_FAILED = "migration-failed"
    """A VM was not sent, or it is unknown; `error` is a sentence, `state` how it ended."""
    RECEIVE_READY = "migration-receive-ready"
    """A VM can come: somebody listens."""
    RECEIVE_STARTED = "migration-receive-started"
    """A VM comes."""
    RECEIVE_FINISHED = "migration-receive-finished"
    """A VM was received."""
    RECEIVE_FAILED = "migration-receive-failed"
    """A VM was not received; `error` is a sentence, `state` how it ended."""

    PAUSING = "pausing"
    """The guest is to be paused."""
    PAUSED = "paused"
    """It is."""
    RESUMING = "resuming"
    """The guest is to run."""
    RESUMED = "resumed"
    """It does."""
    SNAPSHOTTING = "snapshotting"
    """A paused VM is to be kept."""
    SNAPSHOTTED = "snapshotted"
    """It is."""
    RESTORING = "restoring"
    """A stored VM is to come here."""
    RESTORED = "restored"
    """It is here."""

    PHASE = "migration-phase"
    """A migration is in another phase; `phase` says which."""
    PROGRESS = "migration-progress"
    """How far a migration is, every now and then; `progress` has the members of `Progress`."""
    TUNED = "migration-tuned"
    """A migration was changed; its properties are what was."""
    LOST = "events-lost"
    """Whoever listens did not keep up: as many as `count` were left out here."""
    HEARTBEAT = "heartbeat"
    """There was nothing to tell for 5 s, and the service is there; without properties."""


class TooManyListeners(Exception):
    """There are `MAX_LISTENERS` already."""


class Listener:
    """One that listens: its events, encoded for the wire, oldest first."""

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._lost = 0
        self._there = asyncio.Event()
        self._ended = False

    def put(self, encoded: bytes) -> None:
        """Queue an event; the oldest goes if there are too many."""
        if len(self._queue) >= QUEUE_EVENTS:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(encoded)
        self._there.set()

    def end(self) -> None:
        """Nothing comes any more."""
        self._ended = True
        self._there.set()

    async def take(self) -> bytes:
        """All that is there, or the next event; what was lost is told first. Empty at the end."""
        await self._there.wait()
        if not self._ended:
            self._there.clear()
        events = list(self._queue)
        self._queue.clear()
        if self._lost:
            events.insert(0, encode(Event.LOST, {"count": str(self._lost)}))
            self._lost = 0
        return b"".join(events)


class EventBus:
    """Publishes events to the listeners of the moment."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._closed = False

    @property
    def listeners(self) -> int:
        """How many there are."""
        return len(self._listeners)

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """A listener, for as long as the context lasts. TooManyListeners if there are too many."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise TooManyListeners
        listener = Listener()
        if self._closed:
            listener.end()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def close(self) -> None:
        """Nothing is published any more: listeners get what is queued, and then the end."""
        self._closed = True
        for listener in self._listeners:
            listener.end()

    def publish(self, event: Event, properties: Mapping[str, Any]) -> None:
        """Queue an event for each listener. Never waits."""
        if not self._listeners:
            return
        encoded = encode(event, properties)
        for listener in self._listeners:
            listener.put(encoded)


def encode(event: Event, properties: Mapping[str, Any]) -> bytes:
    """A server-sent event with Cloud Hypervisor's event as its data."""
    secs, nanos = divmod(time.time_ns(), 10**9)
    document = {
        "timestamp": {"secs": secs, "nanos": nanos},
        "source": "vm",
        "event": event.value,
        "properties": properties,
    }
    return f"event: {event.value}\ndata: {json.dumps(document)}\n\n".encode("ascii")
