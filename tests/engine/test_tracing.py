"""Spans of a migration, by OpenTelemetry's own SDK."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aiomigrate import MigrationCancelled, tracing
from tests.support.vms import Guest, Landing, migrate

SOURCE, DESTINATION = "migration at its source", "migration at its destination"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What is exported of this test."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


def tree(exporter: InMemorySpanExporter, root: str) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """A span, and those below it by their beginning."""
    (span,) = (one for one in exporter.get_finished_spans() if one.name == root)
    below = [
        one
        for one in exporter.get_finished_spans()
        if one.parent is not None
        and span.context is not None
        and one.parent.span_id == span.context.span_id
    ]
    return span, sorted(below, key=lambda one: one.start_time or 0)


async def test_phases_follow_one_another(spans: InMemorySpanExporter) -> None:
    with Guest() as guest, Landing() as landing:
        await migrate(guest, landing)
    ids = set()
    for name, phases in {
        SOURCE: ["connecting", "precopy", "switchover", "completing", "done"],
        DESTINATION: ["waiting", "precopy", "switchover", "completing", "done"],
    }.items():
        whole, parts = tree(spans, name)
        assert [part.name for part in parts] == phases
        assert (parts[0].start_time, parts[-1].end_time) == (whole.start_time, whole.end_time)
        for part, following in pairwise(parts):
            assert part.end_time == following.start_time
        assert whole.status.is_unset
        assert whole.attributes is not None
        assert whole.attributes["aiomigrate.bytes"]
        ids.add(whole.attributes["aiomigrate.migration"])
    assert len(ids) == 1


async def test_a_failure_is_told(spans: InMemorySpanExporter) -> None:
    with Guest() as guest, Landing() as landing:
        guest.script["pause"] = lambda: asyncio.get_running_loop().create_future().result()
        sent, _ = await migrate(guest, landing)
    whole, parts = tree(spans, SOURCE)
    assert whole.status.status_code is trace.StatusCode.ERROR
    assert whole.status.description == str(sent)
    assert parts[-1].name == "failed"


async def test_without_the_api_nothing_is_told(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "has_api", False)
    with Guest() as guest, Landing() as landing:
        sent, _ = await migrate(guest, landing)
    assert not isinstance(sent, MigrationCancelled)
    assert spans.get_finished_spans() == ()
