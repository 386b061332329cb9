"""Serving the pages of a VM that is restored on demand: it runs while its memory comes.

The destination maps empty memfds and asks for each page that is missed on a fault connection
(protocol/fault.py). `answer` writes it into the memfd and says so; `fill` does the same in the
background, in order of address, and begins no block while somebody waits for a page. A block
(1 MiB) is worked on by one job at a time, so that each page is written once, whoever comes first;
after a write that failed nothing is.

The loop itself reads and writes no guest memory: that is done by system calls in an executor, so
that a fault of this very process on memory that is served here cannot stop what serves it.
"""

import asyncio
from collections.abc import Callable, Mapping

from aiomigrate.executor import JobExecutor
from aiomigrate.memory.blocks import BLOCK_BYTES, FilePart
from aiomigrate.memory.errors import FramesError, RangeError, StoredVmError
from aiomigrate.memory.map import PAGE_BYTES
from aiomigrate.memory.pages import BLOCK_PAGES, ServedPages
from aiomigrate.memory.stored import StoredVm
from aiomigrate.options import Deadlines
from aiomigrate.protocol import FaultSource, RemoteProtocolError
from aiomigrate.protocol.fault import ServingEnded
from aiomigrate.requests import dismiss, read_request
from aiomigrate.tasks import outlive
from aiomigrate.transport import Connection, EndOfStream

__all__ = ["PageServer"]


class PageServer:
    """Serves the pages of a stored VM, `vm`, into a memfd of each slot (`fds`), which is empty at
    first. Its jobs are done by `executor`.

    The VM stays open, and the descriptors too, until every task that serves has ended.
    """

    def __init__(self, vm: StoredVm, fds: Mapping[int, int], executor: JobExecutor) -> None:
        self.total_bytes = vm.config.memory_map.total_bytes
        """The guest's RAM."""
        self._vm = vm
        self._map = vm.config.memory_map
        self._executor = executor
        self._names = [vm.memory(mapping).name for mapping in self._map.mappings]
        self._parts = [
            ServedPages(
                vm.memory(mapping).source,
                FilePart(fds[mapping.slot], mapping.file_offset, mapping.size),
            )
            for mapping in self._map.mappings
        ]
        self._busy: dict[tuple[int, int], asyncio.Future[None]] = {}
        self._failed = False
        self._waiting = 0
        self._calm = asyncio.Event()
        self._calm.set()

    @property
    def served_bytes(self) -> int:
        """Memory that is with the guest; what is zero is not, unless it was asked for."""
        return sum(part.served_bytes for part in self._parts)

    async def serve(self, gpa: int, length: int) -> None:
        """Have the pages of a range (`gpa` and `length`, bytes) in the guest's file, written once.

        RangeError, StoredVmError, OSError.
        """
        part, start = self._locate(gpa, length)
        self._waiting += 1
        self._calm.clear()
        try:
            for block in range(start // BLOCK_BYTES, -(-(start + length) // BLOCK_BYTES)):
                first = max(0, start // PAGE_BYTES - block * BLOCK_PAGES)
                last = min(BLOCK_PAGES, (start + length) // PAGE_BYTES - block * BLOCK_PAGES)
                pages = (1 << last) - (1 << first)
                await self._work(part, block, pages, self._parts[part].serve)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._calm.set()

    def _locate(self, gpa: int, length: int) -> tuple[int, int]:
        """(index of the mapping, bytes into it) of a range of whole pages in one mapping."""
        if length <= 0 or gpa % PAGE_BYTES or length % PAGE_BYTES:
            raise RangeError(0, gpa, length, f"is not whole pages of {PAGE_BYTES} bytes")
        for index, mapping in enumerate(self._map.mappings):
            if mapping.gpa <= gpa and gpa + length - 1 <= mapping.last:
                return index, gpa - mapping.gpa
        raise RangeError(0, gpa, length, "is not inside one mapping of the guest's memory")

    async def fill(self) -> None:
        """Serve all that is not zero, in order of address. StoredVmError, OSError."""
        for index, part in enumerate(self._parts):
            block = 0
            while block < part.blocks:
                found, block = await self._executor.run(part.source.find, block)
                for full in found:
                    await self._calm.wait()
                    await self._work(index, full, part.pages(full), part.fill)

    async def _work(
        self, index: int, block: int, pages: int, job: Callable[[int, int], int]
    ) -> None:
        """Run a job on a block, unless nothing is missing of it, when no other job does."""
        part = self._parts[index]
        while (other := self._busy.get((index, block))) is not None:
            await asyncio.wait([other])
        missing = part.missing(block, pages)
        if not missing:
            return
        if self._failed:
            raise StoredVmError(self._vm.path, "an earlier page could not be served")
        mine = self._busy[index, block] = asyncio.get_running_loop().create_future()
        try:
            # What a job wrote is noted even if whoever waits for it is cancelled.
            await outlive(self._run(index, block, missing, job))
        finally:
            del self._busy[index, block]
            mine.set_result(None)

    async def _run(
        self, index: int, block: int, missing: int, job: Callable[[int, int], int]
    ) -> None:
        try:
            written = await self._executor.run(job, block, missing)
        except OSError:
            # What was written by then is the guest's, and nobody knows what that was.
            self._failed = True
            raise
        except FramesError as error:
            raise StoredVmError(self._vm.path, f"{self._names[index]}: {error.why}") from error
        self._parts[index].note(block, written)

    async def answer(self, connection: Connection, core: FaultSource, deadlines: Deadlines) -> None:
        """Answer what is asked on a fault connection (its role was written) until the peer ends it.

        `core` is the connection's, and `deadlines` are those of the migration. Waits for requests
        without limit: a guest's memory may be missing as long as it runs. What cannot be served is
        answered with Error and raised: RangeError, StoredVmError, OSError; RemoteProtocolError for
        what is no request. TransportError.
        """
        while True:
            try:
                event = await read_request(connection, core, deadlines)
            except EndOfStream as end:
                if end.received:
                    raise
                return
            except RemoteProtocolError as error:
                if error.reply:
                    await outlive(dismiss(connection, error.reply, deadlines))
                raise
            if isinstance(event, ServingEnded):
                await connection.write(core.answer(ok=True), deadlines.pace)
                return
            try:
                await self.serve(event.gpa, event.length)
            except (RangeError, StoredVmError, OSError):
                await outlive(dismiss(connection, core.answer(ok=False), deadlines))
                raise
            await connection.write(core.page(0), deadlines.pace)
