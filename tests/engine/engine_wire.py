"""A source by hand: requests are written one by one, and answers read."""

import asyncio
import struct
from types import TracebackType
from typing import Self

from tests.support.image import Mapping
from tests.support.vms import STATE_JSON, config_of

__all__ = ["COMPLETE", "CONFIG", "ERROR", "MEMORY", "OK", "PAGE_OF_ONES", "START", "STATE", "Hand"]

OK, ERROR = 1, 2
START, CONFIG, STATE, MEMORY, COMPLETE = 1, 2, 3, 4, 5
PAGE_OF_ONES = b"\1" * 4096


class Hand:
    """One connection to a destination; a context manager. `local` is the address it comes from."""

    def __init__(self, address: str, local: str = "127.0.0.1") -> None:
        _, self._host, port = address.split(":")
        self._port = int(port)
        self._local = local

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(
            self._host, self._port, local_addr=(self._local, 0)
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> int | None:
        """The status of the next answer; None at an end of stream or a reset instead."""
        try:
            status: int = struct.unpack("<H6xQ", await self._reader.readexactly(16))[0]
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return status

    async def ended(self) -> bool:
        """Wait for the end of the stream; True if nothing came before it."""
        try:
            return await self._reader.read(1) == b""
        except ConnectionError:
            return True

    async def ask(self, command: int, payload: bytes = b"") -> int | None:
        self.write(struct.pack("<H6xQ", command, len(payload)) + payload)
        return await self.answer()

    async def memory(self, gpa: int, content: bytes = PAGE_OF_ONES) -> int | None:
        self.write(struct.pack("<H6xQQQ", MEMORY, 16, gpa, len(content)) + content)
        return await self.answer()

    async def begin(self, mapping: Mapping) -> None:
        """Start and Config of a VM of one mapping."""
        assert await self.ask(START) == OK
        assert await self.ask(CONFIG, config_of([mapping])) == OK

    async def end(self) -> None:
        """State and Complete."""
        assert await self.ask(STATE, STATE_JSON) == OK
        assert await self.ask(COMPLETE) == OK
