"""Reading a recorded stream: the bytes that a source wrote on one connection, in a file.

What a connection is shows in its first bytes: a Start, a role (v53), or a Memory (a v52 lane).
Content is skipped, not read, so that a file of any size takes a moment. Nothing is believed:
lengths that lead past the end of the file are where the recording breaks off.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from aiomigrate.protocol import (
    RANGE_BYTES,
    REQUEST_BYTES,
    RESPONSE_BYTES,
    ROLE_BYTES,
    Command,
    Request,
    Response,
    Role,
)
from aiomigrate.protocol.wire import command_name, decode_range, decode_role

__all__ = ["Message", "NoStreamError", "Recording", "read"]

_TABLE_PIECE = RANGE_BYTES * 4096


class NoStreamError(ValueError):
    """The file does not begin as any connection does."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: a role, a request, or a page (the answer to a fault)."""

    offset: int
    name: str
    payload_bytes: int = 0
    """Behind the header, without content."""
    ranges: int | None = None
    content_bytes: int | None = None
    """What the ranges add up to, or a page's length."""
    missing_bytes: int = 0
    """How much of the message lies past the end of the file; content counts with the rest."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A whole file."""

    kind: str
    size: int
    messages: tuple[Message, ...]

    @property
    def broken_off(self) -> Message | None:
        """The message in whose middle the file ends."""
        last = self.messages[-1] if self.messages else None
        return last if last is not None and last.missing_bytes else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        broken = self.broken_off
        return {
            "kind": self.kind,
            "size": self.size,
            "messages": [asdict(message) for message in self.messages],
            "breaks_off_at": None if broken is None else broken.offset,
        }


def read(path: Path) -> Recording:
    """Read a recording. NoStreamError if it is none, OSError if it cannot be read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        kind, at = _opening(file.read(REQUEST_BYTES))
        messages: list[Message] = []
        if at:
            messages.append(Message(0, "role", missing_bytes=max(0, at - size)))
        following = _pages if kind == "fault" else _requests
        messages.extend(following(file, at, size))
    return Recording(kind, size, tuple(messages))


def _opening(head: bytes) -> tuple[str, int]:
    """What a connection is, and where its first request begins."""
    if len(head) >= REQUEST_BYTES:
        request = Request.decode(head)
        if request.command == Command.START and not request.length:
            return "main", 0
        if request.command == Command.MEMORY and not request.length % RANGE_BYTES:
            return "lane (v52)", 0
    if len(head) >= ROLE_BYTES:
        match decode_role(head[:ROLE_BYTES]):
            case Role.PRECOPY_MEMORY:
                return "lane", ROLE_BYTES
            case Role.FAULT:
                return "fault", ROLE_BYTES
    raise NoStreamError(f"it begins with {head.hex(' ') or 'nothing'}, as no connection does")


def _requests(file: BinaryIO, at: int, size: int) -> Iterator[Message]:
    while at < size:
        file.seek(at)
        header = file.read(REQUEST_BYTES)
        if len(header) < REQUEST_BYTES:
            yield Message(at, "half a header", missing_bytes=REQUEST_BYTES - len(header))
            return
        request = Request.decode(header)
        name = command_name(request.command)
        behind = at + REQUEST_BYTES + request.length
        if request.command != Command.MEMORY:
            yield Message(at, name, request.length, missing_bytes=max(0, behind - size))
            at = behind
            continue
        ranges, content = _table(file, min(request.length, size - at - REQUEST_BYTES))
        end = behind + content
        yield Message(at, name, request.length, ranges, content, missing_bytes=max(0, end - size))
        at = end


def _table(file: BinaryIO, nbytes: int) -> tuple[int, int]:
    """(ranges, what they add up to) of the table that comes next."""
    ranges = content = 0
    while nbytes >= RANGE_BYTES:
        piece = file.read(min(nbytes - nbytes % RANGE_BYTES, _TABLE_PIECE))
        for start in range(0, len(piece), RANGE_BYTES):
            _, length = decode_range(piece[start : start + RANGE_BYTES])
            content += length
            ranges += 1
        nbytes -= len(piece)
        if len(piece) % RANGE_BYTES or not piece:
            break
    return ranges, content


def _pages(file: BinaryIO, at: int, size: int) -> Iterator[Message]:
    while at < size:
        file.seek(at)
        header = file.read(RESPONSE_BYTES)
        if len(header) < RESPONSE_BYTES:
            yield Message(at, "half a header", missing_bytes=RESPONSE_BYTES - len(header))
            return
        length = Response.decode(header).length
        end = at + RESPONSE_BYTES + length
        yield Message(at, "page", content_bytes=length, missing_bytes=max(0, end - size))
        at = end
