"""The main connection at the source: it asks for everything but memory, and carries that, too.

Each request has a future, which `read_answers` resolves in the order of the requests; Memory is the
lane's matter. When the migration is given up before Complete it is ended so that the destination
cleans up, as far as the stream allows that.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from aiomigrate.errors import MigrationFailed
from aiomigrate.lane import Lane, Shared
from aiomigrate.protocol import (
    RESPONSE_BYTES,
    Answer,
    Command,
    MainState,
    ProtocolError,
    SourceMain,
)
from aiomigrate.transport import Connection, TransportError

__all__ = ["MainConnection"]

log = logging.getLogger("aiomigrate.source")


class MainConnection(Lane):
    """The main connection at the source: a lane, and what asks for everything else."""

    def __init__(
        self,
        connection: Connection,
        shared: Shared,
    ) -> None:
        self.main = SourceMain(f"main {connection.name}")
        super().__init__(connection, self.main, shared)
        self.name = "main"
        self._waiters: deque[asyncio.Future[Answer]] = deque()
        self._retiring = 0

    @property
    def _owed(self) -> bool:
        return super()._owed or self._retiring > 0

    async def retire(self, number: int) -> None:
        """Have a lost lane fenced: nothing of it touches the destination's memory afterwards."""
        if not self._owed:
            self._progress_at = self._loop.time()
        self._retiring += 1
        try:
            await self.request("RetireLane", lambda: self.main.retire_lane(number))
        finally:
            self._retiring -= 1

    async def request(self, what: str, header: Callable[[], bytes], payload: bytes = b"") -> None:
        """Send a request other than Memory and wait for its Ok; MigrationFailed without one."""
        await self.wait_ok(what, await self.ask(header, payload))

    async def ask(
        self, header: Callable[[], bytes], payload: bytes = b""
    ) -> asyncio.Future[Answer]:
        """Send a request other than Memory: its answer, which `read_answers` will bring.

        `header` is made when its turn has come: the core counts requests in their order.
        """

        def write() -> Awaitable[None]:
            return self.connection.write(header() + payload, self._deadlines.pace)

        return await self._ask(write)

    async def pass_memory(self, slot: int, fd: int) -> None:
        """Give the memory of a slot by descriptor; MigrationFailed if it is not taken."""

        async def write() -> None:
            header, payload = self.main.memory_fd(slot)
            await self.connection.write(header, self._deadlines.pace)
            await self.connection.write(payload, self._deadlines.pace, descriptor=fd)

        await self.wait_ok(f"MemoryFd of slot {slot}", await self._ask(write))

    async def _ask(self, write: Callable[[], Awaitable[None]]) -> asyncio.Future[Answer]:
        answered: asyncio.Future[Answer] = self._loop.create_future()
        async with self._writing:
            writing = write()
            self._waiters.append(answered)
            self._mid_request = True
            try:
                await writing
                self._mid_request = False
            except TransportError:
                # It may have been refused before it was whole: that says more than the break.
                await asyncio.wait([answered], timeout=self._deadlines.linger_s)
                if not answered.done():
                    raise
        return answered

    async def wait_ok(self, what: str, answered: asyncio.Future[Answer]) -> None:
        """Wait until a request has its Ok; MigrationFailed without one."""
        try:
            async with asyncio.timeout(self._deadlines.answer_s):
                answer = await answered
        except TimeoutError:
            self._silent = True
            raise MigrationFailed(
                f"{self.connection.name}: no answer to {what} in {self._deadlines.answer_s:g} s"
            ) from None
        if not answer.ok:
            raise MigrationFailed(f"{self.connection.name}: the destination refused {what}")

    def _settle(self, answer: Answer) -> None:
        if answer.command in (Command.MEMORY, Command.ZEROS):
            super()._settle(answer)
            return
        waiter = self._waiters.popleft()
        if not waiter.done():
            waiter.set_result(answer)

    async def abandon(self) -> None:
        """Give up in good order where the stream allows it, else reset the connection.

        A destination that reads Abandon cleans up; one that meets an end of stream in the middle
        of a request may not (Cloud Hypervisor then spins for ever, a reset ends it), nor one that
        is left while it restores (it then keeps the VM, paused): its answer is waited for first.
        Nobody else reads or writes the connection any more.
        """
        core = self.main
        if core.state in (MainState.FAILED, MainState.CLOSED):
            # There was an Error, or nothing to give up: a clean end says that it was read.
            self.connection.close()
            return
        if core.state in (MainState.IN_FLIGHT, MainState.COMPLETING):
            # Nothing of Complete was handed over, and nothing can follow it.
            self.connection.abort()
            return
        try:
            begun = core.state is not MainState.ESTABLISHED
            if begun and not (self._mid_request or self._silent):
                async with asyncio.timeout(self._deadlines.abandon_s):
                    while core.unanswered and core.state is not MainState.CONFIGURED:
                        await self._read_answer()
                    await self.connection.write(core.abandon(), self._deadlines.pace)
                    while core.state is MainState.ABANDONING:
                        await self._read_answer()
                    self.connection.close()
        except (TimeoutError, TransportError, ProtocolError) as error:
            log.debug("%s: not abandoned in good order: %s", self.connection.name, error)
        finally:
            self.connection.abort()

    async def _read_answer(self) -> None:
        data = await self.connection.read_some(RESPONSE_BYTES)
        if not data:
            self.main.receive_end()
        self.main.receive_data(data)
