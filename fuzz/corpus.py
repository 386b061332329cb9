"""The inputs that fuzzing begins with: streams of real migrations, shortened, and what the
extensions add to them.

A capture is shortened to a few ranges a table, a few KiB of content and a small guest: what is
left keeps its order of requests and its layout, and an input stays short enough to be played
thousands of times a second.
"""

import itertools
import json
import struct
from collections.abc import Iterable, Iterator

from aiomigrate.protocol import ALL_EXTENSIONS, Command
from fuzz.reception import Move, encode_moves
from tests.support.captures import Capture, Message, Stream, load

__all__ = ["seeds"]

_CAPTURES = ("one", "paused", "four", "two_slots", "zones", "v52_four", "abandon")
_PAGE = 4096
_MAPPING_BYTES = 16 * _PAGE
_MOST_MESSAGES = 6
_TOKEN = bytes(range(16))
_OK, _ERROR = struct.pack("<H14x", 1), struct.pack("<H14x", 2)
_ALL = bytes([ALL_EXTENSIONS])


def _request(command: int, payload: bytes = b"", headers: bytes = bytes(6)) -> bytes:
    return struct.pack("<H6sQ", command, headers, len(payload)) + payload


def _table(ranges: Iterable[tuple[int, int]]) -> bytes:
    return b"".join(struct.pack("<QQ", gpa, length) for gpa, length in ranges)


def _config(capture: Capture) -> bytes:
    """The capture's Config for a guest of a few pages, without most of what nobody reads."""
    document = json.loads(capture.config)
    for number, mapping in enumerate(document["memory_manager_data"]["guest_ram_mappings"]):
        mapping["size"] = _MAPPING_BYTES
        mapping["gpa"] = number << 32
    memory = document["vm_config"]["memory"]
    kept = {
        "vm_config": {"memory": memory},
        "memory_manager_data": document["memory_manager_data"],
    }
    return json.dumps(kept).encode()


def _small(capture: Capture, message: Message, *, content: bool) -> bytes:
    """A message of a capture, for the small guest."""
    match message.command:
        case None:
            return struct.pack("<H", 1)
        case Command.CONFIG:
            return _request(Command.CONFIG, _config(capture))
        case Command.STATE:
            return _request(Command.STATE, b'{"snapshots": {}}')
        case Command.MEMORY:
            ranges = [(number * _PAGE, _PAGE >> 3) for number in range(min(len(message.ranges), 3))]
            table = _request(Command.MEMORY, _table(ranges))
            return table + (bytes(sum(length for _, length in ranges)) if content else b"")
        case command:
            return _request(command)


def _messages(stream: Stream) -> Iterator[Message]:
    """Few enough: the first memory stands for all."""
    memories = 0
    for message in stream.messages:
        memories += message.command == Command.MEMORY
        if message.command != Command.MEMORY or memories <= 2:
            yield message


def _stream(capture: Capture, stream: Stream, *, content: bool) -> bytes:
    return b"".join(
        _small(capture, message, content=content)
        for message in itertools.islice(_messages(stream), _MOST_MESSAGES)
    )


_START = _request(Command.START, headers=struct.pack("<HI", 0, ALL_EXTENSIONS))
_ZEROS = _request(Command.ZEROS, _table([(0, _PAGE), (2 * _PAGE, _PAGE)]))
_MEMORY = _request(Command.MEMORY, _table([(_PAGE, 64)])) + bytes(range(64))
_JOIN = _request(Command.JOIN, _TOKEN + struct.pack("<I", 1))
_OWNER = _request(Command.OWNER, _TOKEN)


def _extended(capture: Capture) -> list[bytes]:
    """A main connection where all extensions are accepted, a request each."""
    return [
        _START,
        _request(Command.SESSION, _TOKEN),
        _request(Command.CONFIG, _config(capture)),
        _ZEROS,
        _MEMORY,
        _request(Command.RETIRE_LANE, struct.pack("<I", 1)),
        _request(Command.STATE, b'{"snapshots": {}}'),
        _request(Command.COMPLETE),
    ]


def _receptions() -> Iterator[bytes]:
    for capture in map(load, _CAPTURES):
        streams = [_stream(capture, stream, content=True) for stream in capture.streams[:3]]
        moves = [Move(0, streams[0][:16])]
        rest = streams[0][16:]
        # State comes once the lanes have nothing more to say.
        lanes = [Move(n, data, rest=True) for n, data in enumerate(streams[1:], 1) if data]
        body, state, end = rest.partition(_request(Command.STATE, b'{"snapshots": {}}'))
        yield encode_moves([*moves, Move(0, body), *lanes, Move(0, state + end, rest=True)])
        yield encode_moves(
            [*moves, *(Move(0, rest[at : at + 200]) for at in range(0, len(rest), 200))]
        )
    # Zeros by itself: an extension may be refused that the others do without.
    for zeros in (_ZEROS, b""):
        yield from _extended_receptions(zeros)


def _extended_receptions(zeros: bytes) -> Iterator[bytes]:
    requests = [request for request in _extended(load("two_slots")) if request != _ZEROS]
    requests[3:3] = [zeros]
    yield encode_moves([Move(0, request, rest=True) for request in requests])
    joined = [Move(0, request, rest=True) for request in requests]
    joined[3:3] = [Move(1, _JOIN, rest=True), Move(1, zeros + _MEMORY), Move(1, ends=True)]
    yield encode_moves([*joined, Move(2, _OWNER, rest=True)])
    yield encode_moves([*joined[:-1], Move(0, breaks=True), Move(2, _OWNER, rest=True)])
    yield encode_moves([*joined[:-1], Move(2, _OWNER, rest=True), joined[-1]])
    yield encode_moves([Move(1, b"\x02\0"), *joined[:3], Move(2, b"\x02\0", rest=True)])


def _mains() -> Iterator[bytes]:
    for capture in map(load, _CAPTURES):
        yield b"\0\0" + _stream(capture, capture.streams[0], content=False)
    without_content = [request.removesuffix(bytes(range(64))) for request in _extended(load("one"))]
    yield b"\x07" + _ALL + b"".join(without_content)
    yield b"\0" + _ALL + b"".join([*without_content[:5], _request(Command.ABANDON)])
    yield b"\0\0" + _START + _request(Command.MEMORY_FD, bytes(4))


def _lanes() -> Iterator[bytes]:
    for capture in map(load, ("four", "v52_four")):
        for stream in capture.streams[1:3]:
            yield b"\x05\0" + _stream(capture, stream, content=False)
    yield b"\0" + _ALL + _JOIN + _ZEROS[:16] + _MEMORY[:16]
    yield b"\x03" + _ALL + _OWNER
    yield b"\0\0\x02\0"


def _pages(capture: Capture) -> Iterator[bytes]:
    asked = capture.streams[1].answers
    yield asked[:32]
    yield asked[:96] + _request(Command.ABANDON)


def _recordings() -> Iterator[bytes]:
    for capture in map(load, ("one", "four", "v52_four")):
        for stream in capture.streams[:3]:
            yield _stream(capture, stream, content=True)
    yield b"\x02\0" + struct.pack("<H6xQ", 1, 8) + bytes(8) + _OK


_WHOLE_MANIFEST = {
    "version": 1,
    "running": False,
    "files": [
        {"name": "state.json", "size": 28762, "checksum": "xxh3-128:00"},
        {"name": "memory-0", "size": 0, "checksum": None},
    ],
    "history": [
        {
            "event": "taken",
            "at": "2026-01-02T03:04:05+00:00",
            "source": "tcp:10.0.0.7:4711",
            "confirmed": True,
        },
        {
            "event": "given",
            "at": "2026-01-02T03:04:05+00:00",
            "destination": "unix:/a",
            "outcome": "unknown",
            "running": True,
        },
    ],
}
_MANIFESTS = (
    b'{"version": 1, "running": true, "files": [], "history": []}',
    json.dumps(_WHOLE_MANIFEST).encode(),
)
_ADDRESSES = (b"tcp:host:6000", b"tcp:[fe80::1%eth0]:1", b"tcp:0.0.0.0:0", b"unix:/run/vm.sock")
_TABLES = (
    _table([(0, _PAGE), (_PAGE, 0x3F_F000), (0x40_0000, 4096)]),
    _table([(2**64 - 0x2000, 0x2000), (1, 1)]),
    _table([(0x3F_F000, 0x2000)]),
)


def seeds(target: str) -> list[bytes]:
    """The corpus of a target, by its name."""
    answers = (b"\x00", b"\x13", b"\xff", b"\x27")
    match target:
        case "receive":
            return list(_receptions())
        case "destination_main":
            return list(_mains())
        case "destination_lane":
            return list(_lanes())
        case "fault_source":
            return [b"\0\0" + data for data in _pages(load("postcopy"))]
        case "fault_destination":
            return [b"\x03\0" + struct.pack("<H6xQ", 1, 4096) + bytes(4096) + _OK + _ERROR]
        case "source_main" | "source_lane" | "source_query":
            padded = struct.pack("<H6sQ", 1, _ALL + bytes(5), 0)
            streams = (_OK * 3, _OK + _ERROR, padded + _OK)
            return [
                one + two + three for one in answers for two in (b"\0", _ALL) for three in streams
            ]
        case "config":
            return [*(load(name).config for name in ("one", "v52_four")), _config(load("zones"))]
        case "manifest":
            return list(_MANIFESTS)
        case "table":
            return list(_TABLES)
        case "address":
            return list(_ADDRESSES)
        case _:
            return list(_recordings())
