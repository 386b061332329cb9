"""A stored VM whose pages are served on demand: what was written of it, and the fault connection by
hand.
"""

import asyncio
import os
import socket
import struct
import threading
from collections import Counter
from pathlib import Path

import pytest

from aiomigrate import Deadlines, Limits
from aiomigrate.memory.blocks import Block, FilePart
from aiomigrate.protocol import FaultSource
from aiomigrate.serving import PageServer
from aiomigrate.transport import Connection
from tests.support.image import PAGE, Mapping
from tests.support.vms import MIB

__all__ = ["HIGH", "MAPPINGS", "Wire", "Writes", "held", "memory_at", "page_fault", "stored_at"]

MAPPINGS = (
    Mapping(4, 0, 5 * MIB, "a", virtio_mem=False, file_offset=8 * PAGE),
    Mapping(1, 1 << 32, MIB + PAGE, "b", virtio_mem=False, file_offset=0),
)
HIGH = 1 << 32


def memory_at(fds: dict[int, int], gpa: int, length: int) -> bytes:
    mapping = MAPPINGS[1] if gpa >= HIGH else MAPPINGS[0]
    return os.pread(fds[mapping.slot], length, mapping.file_offset + gpa - mapping.gpa)


def stored_at(stored: Path, gpa: int, length: int) -> bytes:
    mapping = MAPPINGS[1] if gpa >= HIGH else MAPPINGS[0]
    with (stored / f"memory-{mapping.slot}").open("rb") as file:
        file.seek(gpa - mapping.gpa)
        return file.read(length)


def held(fds: dict[int, int]) -> int:
    return sum(os.fstat(fd).st_blocks * 512 for fd in fds.values())


class Writes:
    """What was written into the guest's memory, page by page, and what was read for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pages: Counter[tuple[int, int, int]] = Counter()
        self.read: list[int] = []
        self.stops_at = -1
        self.started = threading.Event()
        self.goes_on = threading.Event()
        write_pages, read_pages = FilePart.write_pages, FilePart.read_pages

        def write(part: FilePart, index: int, first: int, last: int, content: Block) -> None:
            self.pages.update((part.size, index, page) for page in range(first, last + 1))
            write_pages(part, index, first, last, content)

        def read(part: FilePart, index: int, first: int, last: int, buffer: Block) -> Block:
            self.read.append(index)
            if index == self.stops_at:
                self.started.set()
                assert self.goes_on.wait(20)
            return read_pages(part, index, first, last, buffer)

        monkeypatch.setattr(FilePart, "write_pages", write)
        monkeypatch.setattr(FilePart, "read_pages", read)


# The fault connection. A request is u16 command, six bytes, u64 length; then gpa and length.


def page_fault(gpa: int, length: int) -> bytes:
    return struct.pack("<H6xQQQ", 9, 16, gpa, length)


class Wire:
    """The destination's end of a fault connection, and the task that serves it."""

    def __init__(self, server: PageServer) -> None:
        ours, self.sock = socket.socketpair(socket.AF_UNIX)
        ours.setblocking(False)
        self.sock.setblocking(False)
        self.connection = Connection(ours, "fault", "")
        core = FaultSource(Limits())
        core.open()
        self.serving = asyncio.create_task(
            server.answer(self.connection, core, Deadlines(linger_s=0.01))
        )

    async def ask(self, request: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.sock, request)
        return await loop.sock_recv(self.sock, 100)
