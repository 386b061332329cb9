"""Streams of real migrations through both cores, byte for byte."""

from collections.abc import Iterator

import pytest

from aiomigrate.protocol import (
    AbandonReceived,
    CompleteReceived,
    ConfigReceived,
    DestinationLane,
    DestinationMain,
    Dialect,
    Extension,
    FaultDestination,
    FaultOpened,
    FaultSource,
    FaultState,
    LaneOpened,
    LaneState,
    Limits,
    MainState,
    MemoryFdReceived,
    MemoryReceived,
    PageAnswered,
    PageRequested,
    SourceLane,
    SourceMain,
    StartReceived,
    StateReceived,
)
from aiomigrate.protocol.wire import Command, decode_range
from tests.support.captures import ACCEPTED, Capture, Message, Stream, load
from tests.support.feeding import feed

LANES = [name for name in ACCEPTED if name not in {"one", "paused", "v52_one", "virtio_mem"}]


def _ask(source: SourceMain, message: Message) -> bytes:
    """The header that the source core writes for a recorded request."""
    match message.command:
        case Command.START:
            return source.start()
        case Command.CONFIG:
            payload = message.part("payload")
            return source.config(payload.end - payload.start)
        case Command.MEMORY:
            return source.memory(len(message.ranges))
        case Command.STATE:
            payload = message.part("payload")
            return source.state_snapshot(payload.end - payload.start)
        case _:
            return source.complete(paused=message.command == Command.COMPLETE_PAUSED)


def _headers_and_payloads(stream: Stream) -> Iterator[tuple[Message, bytes, bytes]]:
    """Each request with its header and payload; Memory's table and content are not in it."""
    for message in stream.requests:
        start = message.start
        payload = b""
        if message.command in {Command.CONFIG, Command.STATE}:
            part = message.part("payload")
            payload = stream.data[part.start : part.end]
        yield message, stream.data[start : start + 16], payload


@pytest.mark.parametrize("name", [*ACCEPTED, "postcopy"])
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_the_main_connection(name: str, step: int) -> None:
    capture = load(name)
    stream = capture.streams[0]
    source, destination = SourceMain(), DestinationMain(Limits())
    answers = b""
    seen = []
    for message, header, payload in _headers_and_payloads(stream):
        assert _ask(source, message) == header
        data = header + payload
        (event,) = feed(destination, data, range(step, len(data), step))
        seen.append(event)
        if isinstance(event, MemoryReceived):
            table = message.part("table")
            assert event.table_bytes == table.end - table.start
        answer = destination.answer(ok=True)
        (answered,) = source.receive_data(answer)
        assert (answered.command, answered.ok) == (message.command, True)
        answers += answer
    assert answers == stream.answers
    destination.receive_end()
    source.receive_end()
    assert destination.state is source.state is MainState.CLOSED
    _check_order(capture, seen)


def _check_order(capture: Capture, seen: list[object]) -> None:
    assert seen[0] == StartReceived(version=0, offer=Extension.NONE)
    assert seen[1] == ConfigReceived(payload=capture.config)
    assert seen[-2] == StateReceived(payload=capture.state or b"")
    assert seen[-1] == CompleteReceived(paused=not capture.running)
    assert all(isinstance(event, MemoryReceived) for event in seen[2:-2])
    assert not any(isinstance(event, AbandonReceived | MemoryFdReceived) for event in seen)


@pytest.mark.parametrize("name", LANES)
@pytest.mark.parametrize("step", [1, 3, 16])
def test_lanes(name: str, step: int) -> None:
    capture = load(name)
    dialect = Dialect(capture.dialect)
    used = 0
    for stream in capture.streams[1:]:
        source = SourceLane(f"lane {stream.number}", dialect)
        destination = DestinationLane(f"lane {stream.number}")
        role = source.open()
        assert stream.data.startswith(role)
        opened = feed(destination, role, range(step, len(role), step))
        assert opened == ([LaneOpened(dialect=Dialect.V53)] if role else [])
        # All requests are written before the first answer is read.
        written = [source.memory(len(message.ranges)) for message in stream.requests]
        assert source.unanswered == len(stream.requests)
        answers = b""
        for message, header in zip(stream.requests, written, strict=True):
            assert header == stream.data[message.start : message.start + 16]
            events = feed(destination, header, range(step, 16, step))
            if not role and not answers:
                assert events.pop(0) == LaneOpened(dialect=Dialect.V52)
            table = message.part("table")
            assert events == [MemoryReceived(table_bytes=table.end - table.start)]
            answers += destination.answer(ok=True)
        assert answers == stream.answers
        assert all(answer.ok for answer in source.receive_data(answers))
        assert source.unanswered == 0
        assert destination.between_requests
        destination.receive_end()
        source.close()
        assert destination.state is source.state is LaneState.CLOSED
        used += len(written)
    assert used > 0


@pytest.mark.parametrize("window", [1, 64])
def test_the_fault_connection(window: int) -> None:
    """`window` is how many PageFaults are unanswered at once; the recorded peer has one."""
    stream = load("postcopy").streams[1]
    lane = DestinationLane("lane 1")
    source, destination = FaultSource(Limits()), FaultDestination()
    role = source.open()
    assert stream.data.startswith(role)
    assert feed(lane, role) == [FaultOpened()]
    destination.opened()
    asked = memoryview(stream.answers)
    requests = [asked[at : at + 32] for at in range(0, len(asked), 32)]
    messages = stream.requests
    assert len(requests) == len(messages) == 16_384
    for first in range(0, len(requests), window):
        batch = range(first, min(first + window, len(requests)))
        pages = []
        for index in batch:
            gpa, length = decode_range(requests[index][16:])
            assert destination.page_fault(gpa, length) == requests[index]
            pages.append((gpa, length))
        assert destination.unanswered == len(pages)
        for index, (gpa, length) in zip(batch, pages, strict=True):
            assert feed(source, bytes(requests[index])) == [PageRequested(gpa=gpa, length=length)]
            message = messages[index]
            response = stream.data[message.start : message.start + 16]
            assert source.page(length) == response
            answered = destination.receive_response(response)
            assert answered == PageAnswered(gpa=gpa, length=length)
    destination.close()
    source.receive_end()
    assert destination.state is source.state is FaultState.CLOSED
