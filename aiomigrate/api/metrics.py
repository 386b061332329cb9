"""Metrics for Prometheus, made when they are asked for from what the migrations count anyway.

Totals are of all migrations since the service began; what a running one does right now has labels.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from aiomigrate.api.migrations import Direction, Entry, State
from aiomigrate.api.service import Service

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

_TOTALS = {
    "bytes_done": ("bytes", "Content of Memory requests, moved and answered"),
    "ranges": ("ranges", "Ranges of Memory requests, moved and answered"),
    "zero_bytes": ("zero_bytes", "Bytes found to be zero, and named or left out"),
    "iterations": ("iterations", "Passes over memory"),
    "lanes_lost": ("lanes_lost", "Connections lost on the way"),
    "chunks_resent": ("retries", "Memory requests of lost connections, sent again"),
}
_GAUGES = {
    "total_bytes": "The guest's RAM",
    "rate": "Bytes a second, lately",
    "dirty_rate": "Bytes a second that the guest writes",
    "expected_downtime_ms": "Milliseconds, if the guest were paused now",
    "throttle_percent": "How far the guest is slowed down",
    "fraction": "Of the whole work, done: 0 to 1",
    "iteration": "The pass over dirty memory; 0 is the one over all",
}
_LABELS = ["vm", "direction"]


class Metrics(Collector):
    """The metrics of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        entries = list(self._service.migrations)
        yield from _totals(self._service.migrations.totals())
        yield from _now([entry for entry in entries if not entry.over.is_set()])
        yield from _ended(entries)
        yield GaugeMetricFamily(
            "aiomigrate_longest_callback_seconds",
            "What a timer of the event loop came late by at the most in the last minute or two",
            value=self._service.lateness.longest_s,
        )
        yield GaugeMetricFamily(
            "aiomigrate_event_listeners",
            "Who listens to events: clients, and `aiomigrate serve` itself",
            value=self._service.bus.listeners,
        )


def _totals(totals: Counter[tuple[Direction, str]]) -> Iterator[Metric]:
    for figure, (name, help_text) in _TOTALS.items():
        family = CounterMetricFamily(f"aiomigrate_{name}", help_text, labels=["direction"])
        for direction in Direction:
            family.add_metric([direction.value], totals[direction, figure])
        yield family
    ended = CounterMetricFamily(
        "aiomigrate_migrations", "Migrations, by how they ended", labels=["direction", "state"]
    )
    for direction in Direction:
        for state in State:
            if state is not State.RUNNING:
                ended.add_metric([direction.value, state.value], totals[direction, state.value])
    yield ended


def _now(running: list[Entry]) -> Iterator[Metric]:
    count = GaugeMetricFamily(
        "aiomigrate_migrations_running", "Migrations that run", labels=["direction"]
    )
    for direction in Direction:
        count.add_metric([direction.value], sum(e.direction is direction for e in running))
    yield count
    for name, help_text in _GAUGES.items():
        family = GaugeMetricFamily(f"aiomigrate_migration_{name}", help_text, labels=_LABELS)
        for entry in running:
            value = getattr(entry.progress, name, None)
            if value is not None:
                family.add_metric([entry.vm, entry.direction.value], value)
        yield family
    window = GaugeMetricFamily(
        "aiomigrate_migration_window_bytes",
        "Content that may wait for its answer, by connection of a source",
        labels=["vm", "connection"],
    )
    for entry in running:
        if entry.direction is Direction.SEND and entry.progress is not None:
            for connection in entry.progress.connections:
                window.add_metric([entry.vm, connection.name], connection.window)
    yield window


def _ended(entries: list[Entry]) -> Iterator[Metric]:
    downtime = GaugeMetricFamily(
        "aiomigrate_last_downtime_seconds",
        "The guest's pause of a VM's last migration, as a whole and of a source by stage",
        labels=[*_LABELS, "stage"],
    )
    last = {(entry.vm, entry.direction): entry for entry in entries if entry.report is not None}
    for (vm, direction), entry in last.items():
        if entry.report is None:
            continue
        downtime.add_metric([vm, direction.value, "all"], entry.report.downtime_ms / 1000)
        if entry.report.downtime is not None:
            for stage, milliseconds in asdict(entry.report.downtime).items():
                labels = [vm, direction.value, stage.removesuffix("_ms")]
                downtime.add_metric(labels, milliseconds / 1000)
    yield downtime
