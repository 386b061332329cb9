"""Real byte streams, and a reader of them that shares no code with aiomigrate.

Everything here is the plainest that works: `struct` over a whole stream in memory, a dictionary of
pages, the order of requests taken from the relay's logs. It is the oracle that engine and protocol
are compared with, so it must not import them.

A *message* is one role, one request with all that follows its header, or (on the source's side of
a fault connection) one answered page. A *part* is a piece of a message: "role", "header",
"payload" (Config, State), "table" and "content" (Memory, pages).
"""

import io
import math
import re
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import zstandard

from tests.support.image import PAGE, GuestImage, Mapping, mappings_of

__all__ = [
    "ACCEPTED",
    "CAPTURES",
    "COMPLETE",
    "COMPLETE_PAUSED",
    "CONFIG",
    "MEMORY",
    "STATE",
    "Capture",
    "Cut",
    "Message",
    "Part",
    "Stream",
    "load",
    "messages_of",
    "replay_memory",
    "unpack_file",
    "unpack_offload",
]

CAPTURES = Path(__file__).resolve().parent.parent / "captures"
# The captures that their real receiver accepted: a migration that ended with Ok to Complete or
# CompletePaused.
ACCEPTED = ("one", "four", "paused", "two_slots", "zones", "virtio_mem", "v52_one", "v52_four")

CONFIG, STATE, MEMORY, COMPLETE, COMPLETE_PAUSED = 2, 3, 4, 5, 8
_ROLE_FAULT = 2
_WINDOW = 2**27


@dataclass(frozen=True)
class Part:
    """Bytes [start, end) of a stream. `complete` is False where the recording ends before `end`."""

    kind: str
    start: int
    end: int
    complete: bool


@dataclass(frozen=True)
class Message:
    """One message; `command` is None for a role. `end` is where it would end had it been recorded
    whole.
    """

    command: int | None
    parts: tuple[Part, ...]
    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def start(self) -> int:
        return self.parts[0].start

    @property
    def end(self) -> int:
        return self.parts[-1].end

    @property
    def complete(self) -> bool:
        return all(part.complete for part in self.parts)

    def part(self, kind: str) -> Part:
        return next(part for part in self.parts if part.kind == kind)


@dataclass(frozen=True)
class Stream:
    """One connection: what the sender wrote (`data`), what it was answered (`answers`), and when
    (`log`: seconds, side, bytes).
    """

    number: int
    data: bytes
    answers: bytes
    log: tuple[tuple[float, str, int], ...]
    messages: tuple[Message, ...]
    role: int | None

    @property
    def requests(self) -> tuple[Message, ...]:
        """Everything that gets an answer: all messages but the role."""
        return tuple(message for message in self.messages if message.command is not None)

    def sent_at(self, offset: int) -> float:
        """When the byte at `offset` went by, in seconds of the log; without a log (post-copy),
        last.
        """
        return self._moment("src", offset) if self.log else math.inf

    def answered_at(self, index: int) -> float | None:
        """When the answer to request `index` had gone by whole; None if it was never answered."""
        return (
            self._moment("dst", index * 16 + 15) if len(self.answers) >= index * 16 + 16 else None
        )

    def _moment(self, side: str, offset: int) -> float:
        seen = 0
        for seconds, who, count in self.log:
            if who == side:
                seen += count
                if seen > offset:
                    return seconds
        raise AssertionError(f"connection {self.number}: the log does not reach byte {offset}")


@dataclass(frozen=True)
class Cut:
    """Send only the first `offset` bytes of connection `connection`; `where` says in words what
    that breaks.
    """

    connection: int
    offset: int
    where: str


@dataclass(frozen=True)
class Capture:
    """One recorded migration. `running` is None where it did not end; `state` is None where no
    State was sent.
    """

    name: str
    streams: tuple[Stream, ...]
    config: bytes
    state: bytes | None
    running: bool | None
    dialect: Literal["v52", "v53"]

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        return mappings_of(self.config)

    def cuts(self) -> Iterator[Cut]:
        """Each end of a part in each stream (its very end excepted), and the middle of each part
        that has one.
        """
        for stream in self.streams:
            for number, message in enumerate(stream.messages):
                what = (
                    "role"
                    if message.command is None
                    else f"request {number} (command {message.command})"
                )
                for part in message.parts:
                    if part.start < len(stream.data):
                        here = f"connection {stream.number}, {what}, "
                        if part.start == message.start:
                            yield Cut(stream.number, part.start, here + "before it")
                        else:
                            yield Cut(stream.number, part.start, here + f"before its {part.kind}")
                        middle = (part.start + min(part.end, len(stream.data))) // 2
                        if middle > part.start:
                            yield Cut(stream.number, middle, here + f"in its {part.kind}")


def replay_memory(capture: Capture) -> GuestImage:
    """The guest memory after every whole Memory request (and answered page) of all connections.

    Requests on one connection apply in their order. Across connections the log decides: some
    captures write a page again on another lane, always after the first one's answer.
    """
    image = GuestImage.of_config(capture.config)
    writes = [
        (stream.sent_at(message.start), stream, message)
        for stream in capture.streams
        for message in stream.messages
        if message.ranges and message.complete
    ]
    for _, stream, message in sorted(writes, key=lambda write: write[0]):
        at = message.part("content").start
        view = memoryview(stream.data)
        for gpa, length in message.ranges:
            image.write(gpa, view[at : at + length])
            at += length
    return image


@lru_cache(maxsize=2)
def load(name: str) -> Capture:
    """The capture in the folder `name`. Two are kept in memory: some hold 64 MiB."""
    folder = CAPTURES / name
    numbers = sorted(int(re.sub(r"\D", "", path.name)) for path in folder.glob("conn*.src.zst"))
    dialect: Literal["v52", "v53"] = "v52" if name.startswith("v52") else "v53"
    streams = tuple(_load_stream(folder, number, dialect) for number in numbers)
    main = streams[0]
    payloads = {
        message.command: main.data[message.part("payload").start : message.end]
        for message in main.messages
        if message.command in {CONFIG, STATE}
    }
    ends = {message.command for message in main.messages} & {COMPLETE, COMPLETE_PAUSED}
    return Capture(
        name=name,
        streams=streams,
        config=payloads[CONFIG],
        state=payloads.get(STATE),
        running=COMPLETE in ends if ends else None,
        dialect=dialect,
    )


def unpack_offload(into: Path) -> Path:
    """The directory that Cloud Hypervisor's offload daemon wrote, unpacked below `into` with its
    holes; returns its path.
    """
    return _unpack("offload", into)


def unpack_file(into: Path) -> Path:
    """The same of Cloud Hypervisor's own `file://` snapshot of the same VM."""
    return _unpack("file", into)


def _unpack(name: str, into: Path) -> Path:
    archive = io.BytesIO(_decompress(CAPTURES / "snapshots" / f"{name}.tar.zst"))
    with tarfile.open(fileobj=archive) as tar:
        for member in tar.getmembers():
            target = into / member.name
            if member.isdir():
                target.mkdir(mode=0o700, parents=True)
                continue
            source = tar.extractfile(member)
            assert source is not None
            with source, target.open("xb") as file:
                for at in range(0, member.size, PAGE):
                    piece = source.read(PAGE)
                    if piece.strip(b"\0"):
                        file.seek(at)
                        file.write(piece)
                file.truncate(member.size)
    return into / name


def _load_stream(folder: Path, number: int, dialect: str) -> Stream:
    data = _decompress(folder / f"conn{number}.src.zst")
    answers = _decompress(folder / f"conn{number}.dst.zst")
    log_file = folder / f"conn{number}.log"
    lines = log_file.read_text().splitlines() if log_file.exists() else []
    log = tuple(
        (float(seconds), side, 0 if count == "eof" else int(count))
        for seconds, side, count in (line.split() for line in lines)
    )
    role = None
    if number > 0 and dialect == "v53" and data:
        role = int.from_bytes(data[:2], "little")
    if role == _ROLE_FAULT:
        messages = [Message(None, (_part(data, "role", 0, 2),)), *_pages(data, 2, answers)]
    else:
        messages = messages_of(data, role=role is not None)
    return Stream(number, data, answers, log, tuple(messages), role)


def messages_of(data: bytes, *, role: bool) -> list[Message]:
    """The messages of a main connection or a lane, which may begin with a role."""
    if not role:
        return list(_requests(data, 0))
    return [Message(None, (_part(data, "role", 0, 2),)), *_requests(data, 2)]


def _requests(data: bytes, at: int) -> Iterator[Message]:
    """Requests of the main connection or a lane: 16 bytes (u16 command, 6 bytes, u64 length), then
    what the command says.
    """
    while at < len(data):
        header = _part(data, "header", at, 16)
        if not header.complete:
            yield Message(None, (header,))
            return
        command, length = struct.unpack_from("<H6xQ", data, at)
        at = header.end
        if command != MEMORY:
            parts = (header, _part(data, "payload", at, length)) if length else (header,)
            yield Message(command, parts)
            at = parts[-1].end
            continue
        table = _part(data, "table", at, length)
        if not table.complete:
            yield Message(command, (header, table))
            return
        ranges = tuple(struct.iter_unpack("<QQ", data[table.start : table.end]))
        content = _part(data, "content", table.end, sum(size for _, size in ranges))
        yield Message(command, (header, table, content), ranges)
        at = content.end


def _pages(data: bytes, at: int, asked: bytes) -> Iterator[Message]:
    """The source's side of a fault connection: a response and its content for each PageFault
    request in `asked`.
    """
    command_bytes = 32  # a request and its one range
    for question in range(0, len(asked) - command_bytes + 1, command_bytes):
        command, gpa, size = struct.unpack_from("<H14xQQ", asked, question)
        header = _part(data, "header", at, 16)
        content = _part(data, "content", header.end, size)
        yield Message(command, (header, content), ((gpa, size),))
        at = content.end


def _part(data: bytes, kind: str, start: int, length: int) -> Part:
    return Part(kind, start, start + length, complete=start + length <= len(data))


def _decompress(path: Path) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    with path.open("rb") as file, decompressor.stream_reader(file) as reader:
        return reader.read()
