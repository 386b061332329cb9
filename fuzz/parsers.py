"""The targets that read bytes and nothing else, and what may come out of each.

A target is a function of its input. It returns for whatever the code under test may answer with,
and lets everything else out, which is a finding: an exception that is not documented, a broken
promise of a core, a disagreement with a plain oracle.
"""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from aiomigrate.cli import recorded
from aiomigrate.memory.errors import ConfigError, ManifestError, RangeError
from aiomigrate.memory.manifest import Manifest
from aiomigrate.memory.map import Mapping, MemoryMap, VmConfig
from aiomigrate.memory.ranges import RANGE
from aiomigrate.protocol import (
    ALL_EXTENSIONS,
    RESPONSE_BYTES,
    TOKEN_BYTES,
    Answer,
    DestinationLane,
    DestinationMain,
    Dialect,
    Event,
    Extension,
    FaultDestination,
    FaultOpened,
    FaultSource,
    LaneOpened,
    Limits,
    LocalProtocolError,
    MemoryReceived,
    OwnershipAsked,
    PageRequested,
    RemoteProtocolError,
    Response,
    SourceLane,
    SourceMain,
    SourceQuery,
    Status,
    Verdict,
    ZerosReceived,
)
from aiomigrate.protocol.extensions import accept, encode_extensions
from aiomigrate.protocol.fault import ServingEnded
from aiomigrate.transport import AddressError, parse_address

__all__ = ["PARSERS", "Target"]

Target = Callable[[bytes], None]
Server = DestinationMain | DestinationLane | FaultSource
Reader = SourceMain | SourceLane | SourceQuery
_Event = Event | PageRequested | ServingEnded

_LIMITS = Limits(max_config_bytes=4096, max_state_bytes=4096, max_drained_bytes=256)
_MOST_WANTED = 1 << 20
"""A core never asks for more than this at once (`machine.py`)."""
_TOKEN = bytes(TOKEN_BYTES)
_OK = Response(Status.OK).encode()
_MAPPINGS = (
    Mapping(0, 0, 0x40_0000, "a", virtio_mem=False, file_offset=0),
    Mapping(1, 0x40_0000, 0x1000, "a", virtio_mem=False, file_offset=0),
    Mapping(2, 2**64 - 0x2000, 0x2000, "b", virtio_mem=False, file_offset=0),
)
_MEMORY_MAP = MemoryMap(_MAPPINGS)


class Broken(AssertionError):
    """The code under test did not keep a promise."""


def _choices(data: bytes) -> tuple[int, Extension, bytes]:
    """The first two bytes of an input choose: a number of 8 bits, and a set of extensions."""
    choice, extensions = (*data[:2], 0, 0)[:2]
    return choice, ALL_EXTENSIONS & Extension(extensions), data[2:]


# Cores that read requests


def destination_main(data: bytes) -> None:
    """Requests on the main connection."""
    choice, willing, stream = _choices(data)
    _serve(DestinationMain(_LIMITS, willing=willing), stream, choice)


def destination_lane(data: bytes) -> None:
    """The beginning of any other connection, and requests on a lane."""
    choice, extensions, stream = _choices(data)
    _serve(DestinationLane("lane 1", extensions), stream, choice)


def fault_source(data: bytes) -> None:
    """Requests for pages."""
    choice, _, stream = _choices(data)
    core = FaultSource(_LIMITS)
    core.open()
    _serve(core, stream, choice)


def _serve(core: Server, stream: bytes, choice: int) -> None:
    """Read as a driver does: at most `wanted`, each request answered, tables skipped.

    Five bits of `choice` say how long the pieces are; the others whether requests are refused.
    """
    longest = choice % 32 or _MOST_WANTED
    refuse = choice >= 0xE0
    at = 0
    try:
        while at < len(stream) and core.wanted:
            _require(core.wanted <= _MOST_WANTED, f"{core.wanted} bytes wanted")
            piece = stream[at : at + min(core.wanted, longest)]
            at += len(piece)
            event = core.receive_data(piece)
            held = len(core._header) + len(core._payload or b"")
            _require(held <= at, f"{held} bytes held of {at}")
            if event is not None:
                at += _answer(core, event, refuse=refuse)
        core.receive_end()
    except RemoteProtocolError as error:
        _require(core.state.value == "Failed", f"it refused and is {core.state}")
        _require(len(error.reply) in (0, 16), "a reply that is no response")
        _require(not core.wanted, "it failed and wants more")
        try:
            core.receive_data(b"\0")
        except LocalProtocolError:
            return
        raise Broken("it failed and takes more") from error


def _answer(core: Server, event: _Event, *, refuse: bool) -> int:
    """Answer what needs an answer: the bytes of the stream that are not for the core."""
    match event:
        case LaneOpened() | FaultOpened():
            return 0
        case MemoryReceived(table_bytes=skipped) | ZerosReceived(table_bytes=skipped):
            core.answer(ok=not refuse)
            return skipped
        case OwnershipAsked() if isinstance(core, DestinationLane):
            core.answer_owner(Verdict.ABORTED)
        case PageRequested(length=length) if isinstance(core, FaultSource) and not refuse:
            core.page(length)
        case _:
            core.answer(ok=not refuse)
    return 0


# Cores that read answers


def source_main(data: bytes) -> None:
    """Answers on the main connection, to requests that the input chooses."""
    choice, offer, stream = _choices(data)
    core = SourceMain()
    core.start(offer)
    begin = Response(Status.OK, padding=encode_extensions(accept(offer, offer)) + bytes(2))
    if choice & 1:
        core.receive_data(begin.encode())
        core.config(1)
    if choice & 3 == 3:
        core.receive_data(_OK)
        for _ in range(choice >> 4):
            core.memory(1)
    if choice & 4 and core.state.value == "Configured":
        core.abandon()
    _read(core, stream, choice >> 3)


def source_lane(data: bytes) -> None:
    """Answers on a lane, and on a connection that asks who owns the VM."""
    choice, extensions, stream = _choices(data)
    core = SourceLane("lane 1", Dialect.V52 if choice & 1 else Dialect.V53, extensions)
    if Extension.SESSION in extensions:
        core.join(_TOKEN, 1)
        core.receive_data(_OK)
    else:
        core.open()
    for _ in range(choice >> 4):
        core.memory(1)
    _read(core, stream, choice >> 1)


def source_query(data: bytes) -> None:
    """The answer to who owns the VM."""
    choice, _, stream = _choices(data)
    core = SourceQuery("query")
    core.ask(_TOKEN)
    _read(core, stream, choice)


def _read(core: Reader, stream: bytes, choice: int) -> None:
    longest = choice % 32 or len(stream) or 1
    due = core.unanswered
    answers: list[Answer] = []
    try:
        for at in range(0, len(stream), longest):
            answers += core.receive_data(stream[at : at + longest])
            _require(len(core._partial) < RESPONSE_BYTES, "it keeps whole responses")
        if isinstance(core, SourceQuery):
            for answer in answers:
                core.verdict(answer)
        core.receive_end()
    except RemoteProtocolError:
        _require(core.state.value == "Failed", f"it refused and is {core.state}")
        _require(not core.receive_data(_OK), "it failed and takes an answer")
    _require(len(answers) + core.unanswered <= due, "more answers than requests")
    _require(all(answer.ok for answer in answers[:-1]), "an answer after an Error")


def fault_destination(data: bytes) -> None:
    """Pages: a response, then its content, which goes past the core."""
    choice, _, stream = _choices(data)
    core = FaultDestination()
    core.opened()
    for number in range(choice):
        core.page_fault(number << 12, 4096)
    at = 0
    try:
        while core.unanswered and len(stream) - at >= RESPONSE_BYTES:
            page = core.receive_response(stream[at : at + RESPONSE_BYTES])
            _require(page.length in (0, 4096), f"a page of {page.length}")
            at += RESPONSE_BYTES + page.length
        core.receive_end()
    except RemoteProtocolError:
        _require(core.state.value == "Failed", f"it refused and is {core.state}")


# Documents, tables, addresses, recordings


def config(data: bytes) -> None:
    """A Config's JSON."""
    try:
        parsed = VmConfig.parse(data)
    except ConfigError:
        return
    _require(parsed.raw == data, "the payload was changed")
    again = MemoryMap(parsed.memory_map.mappings)
    _require(again.mappings == parsed.memory_map.mappings, "the map is not sorted")


def manifest(data: bytes) -> None:
    """A manifest's JSON; what is read can be written and read again."""
    try:
        decoded = Manifest.decode(data)
    except ManifestError:
        return
    decoded.refusal()
    _require(Manifest.decode(decoded.encode()) == decoded, "it changed when it was written")


def table(data: bytes) -> None:
    """A range table against a memory map, compared with a plain check of each range."""
    whole = data[: len(data) - len(data) % RANGE.itemsize]
    rows = list(struct.iter_unpack("<QQ", whole))
    try:
        total = _MEMORY_MAP.check(np.frombuffer(whole, RANGE))
    except RangeError as error:
        _require((error.gpa, error.length) == rows[error.index], "another range is named")
        right, wrong = rows[: error.index], rows[error.index]
        _require(not _inside(*wrong) or _sum([*right, wrong]) >= 2**63, f"{wrong} is inside")
    else:
        right = rows
        _require(total == _sum(rows), "a wrong sum")
    _require(all(_inside(gpa, length) for gpa, length in right), "a range outside was accepted")


def _inside(gpa: int, length: int) -> bool:
    return length > 0 and any(
        mapping.gpa <= gpa and gpa + length <= mapping.gpa + mapping.size for mapping in _MAPPINGS
    )


def _sum(rows: list[tuple[int, ...]]) -> int:
    return sum(length for _, length in rows)


def address(data: bytes) -> None:
    """An address, as typed; what is read says itself the same way."""
    text = os.fsdecode(data)
    for listening in (False, True):
        try:
            parsed = parse_address(text, listening=listening)
        except AddressError as error:
            str(error)
        else:
            again = parse_address(str(parsed), listening=listening)
            _require(again == parsed, f"{parsed} reads as {again}")


def recording(data: bytes) -> None:
    """A recorded stream, as `aiomigrate inspect` reads it."""
    os.ftruncate(_RECORDING, 0)
    os.pwrite(_RECORDING, data, 0)
    try:
        found = recorded.read(Path(f"/proc/self/fd/{_RECORDING}"))
    except recorded.NoStreamError:
        return
    _require(found.size == len(data), "a wrong size")
    offsets = [message.offset for message in found.messages]
    _require(offsets == sorted(set(offsets)), "a message twice")
    _require(all(offset < max(len(data), 1) for offset in offsets), "a message past the end")
    found.as_dict()


_RECORDING = os.memfd_create("recording", os.MFD_CLOEXEC)


def _require(kept: bool, otherwise: str) -> None:
    if not kept:
        raise Broken(otherwise)


PARSERS: dict[str, Target] = {
    target.__name__: target
    for target in (
        destination_main,
        destination_lane,
        fault_source,
        source_main,
        source_lane,
        source_query,
        fault_destination,
        config,
        manifest,
        table,
        address,
        recording,
    )
}
