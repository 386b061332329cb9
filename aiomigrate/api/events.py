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

__all__ = ["Event", "EventBus", "Listener", "TooManyListeners"]

QUEUE_EVENTS = 256
"""Arbitrary: half a minute of a migration's events, some 100 KiB."""
MAX_LISTENERS = 4096
"""Arbitrary, and far over what operates a host: each holds a connection and a queue."""


class Event(StrEnum):
    """The names. Cloud Hypervisor has those of the first two groups."""

    MIGRATION_STARTED = "migration-started"
    MIGRATION_ITERATION = "migration-memory-iteration"
    MIGRATION_FINISHED = "migration-finished"
    MIGRATION_FAILED = "migration-failed"
    RECEIVE_READY = "migration-receive-ready"
    RECEIVE_STARTED = "migration-receive-started"
    RECEIVE_FINISHED = "migration-receive-finished"
    RECEIVE_FAILED = "migration-receive-failed"

    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    RESUMED = "resumed"
    SNAPSHOTTING = "snapshotting"
    SNAPSHOTTED = "snapshotted"
    RESTORING = "restoring"
    RESTORED = "restored"

    PHASE = "migration-phase"
    PROGRESS = "migration-progress"
    TUNED = "migration-tuned"
    LOST = "events-lost"


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
