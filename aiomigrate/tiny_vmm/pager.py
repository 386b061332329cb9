"""A guest that runs while its memory comes: the destination's end of a fault connection.

The guest's memory is a memfd that is empty at first. What the CPU touches and what is fetched in
the background takes the same way: the source is asked for the page, writes it into the file and
says so, and then it is mapped. One request is on the way at a time, so a fault waits for one other
page at the most; each page is asked for once.

The event loop does this, so nobody may stand still at a fault on the loop's own thread, nor with
the GIL: see `Ram`.
"""

from __future__ import annotations

import asyncio

from aiomigrate import Deadlines
from aiomigrate.protocol import RESPONSE_BYTES, FaultDestination
from aiomigrate.tasks import settle
from aiomigrate.tiny_vmm.guest import PAGE
from aiomigrate.tiny_vmm.ram import Ram
from aiomigrate.tiny_vmm.userfaultfd import Userfaultfd
from aiomigrate.transport import Connection
from aiomigrate.transport.readiness import Readiness

__all__ = ["Pager"]


class Pager:
    """Serves faults on `ram` over `connection`, whose role was read, from `begin` on; to be closed.

    UserfaultfdUnusable.
    """

    def __init__(self, ram: Ram, connection: Connection, deadlines: Deadlines) -> None:
        self._base = ram.address
        self._pages = len(ram.memory) // PAGE
        self._connection = connection
        self._deadlines = deadlines
        self._core = FaultDestination()
        self._core.opened()
        self._here = bytearray(self._pages)
        self._turn = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None
        self._faults = Userfaultfd()
        try:
            self._faults.register(self._base, len(ram.memory))
        except BaseException:
            self._faults.close()
            raise

    @property
    def missing(self) -> int:
        """How many pages are not here yet."""
        return self._here.count(0)

    def begin(self) -> None:
        """Serve faults, and fetch all other pages."""
        self._running = asyncio.create_task(self._run())

    async def whole(self) -> None:
        """Wait until all memory is here. Raises what made that impossible: the guest then stands
        still at the first page that it misses.
        """
        if self._running is not None:
            await asyncio.shield(self._running)

    async def close(self) -> None:
        """End it; where pages are missing zeros take their place, so the guest must not go on."""
        if self._running is not None:
            self._running.cancel()
            await settle(self._running)
            if not self._running.cancelled():
                self._running.exception()  # `whole` tells it
        self._faults.close()
        self._connection.close()

    async def _run(self) -> None:
        try:
            serving = asyncio.create_task(self._serve())
            fetching = asyncio.create_task(self._fetch_all())
            try:
                await asyncio.wait([serving, fetching], return_when=asyncio.FIRST_COMPLETED)
            finally:
                serving.cancel()
                fetching.cancel()
                await settle(asyncio.gather(serving, fetching, return_exceptions=True))
            for task in (serving, fetching):
                if not task.cancelled():
                    task.result()
            # Each page is mapped: nobody stands still. Its end tells the source so.
            self._faults.close()
            self._core.close()
        finally:
            self._connection.close()

    async def _serve(self) -> None:
        ready = Readiness(asyncio.get_running_loop(), self._faults.fd)
        while True:
            for address in self._faults.read():
                await self._fetch((address - self._base) // PAGE)
            await ready.wait()

    async def _fetch_all(self) -> None:
        for page in range(self._pages):
            await self._fetch(page)

    async def _fetch(self, page: int) -> None:
        """Have a page here. OSError, TransportError, RemoteProtocolError."""
        address = self._base + page * PAGE
        async with self._turn:
            if self._here[page]:
                self._faults.wake(address, PAGE)  # told before it was mapped
                return
            pace = self._deadlines.pace
            await self._connection.write(self._core.page_fault(page * PAGE, PAGE), pace)
            answer = bytearray(RESPONSE_BYTES)
            await self._connection.read_into(answer, pace)
            if self._core.receive_response(answer).length:
                raise ValueError("a page came as content, where its file was passed")
            self._faults.map(address, PAGE)
            self._here[page] = 1
