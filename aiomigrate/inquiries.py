"""The ownership query, at the side that is asked: whoever knows the migration's token is told who
owns the VM.

The question is a fence, and comes on a connection of its own: it may overtake what still lies in
the others. From State on these are the only connections that are accepted; earlier ones are handed
over by `Arrivals`. An answer waits until the VM is taken over or discarded. The destination stays
to answer for as long as the source may not know what became of Complete.
"""

import asyncio
import hmac
import logging
from collections.abc import Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self

from aiomigrate.construction import Construction
from aiomigrate.options import ReceiveOptions
from aiomigrate.protocol import (
    REQUEST_BYTES,
    ROLE_BYTES,
    DestinationLane,
    Event,
    Extension,
    OwnershipAsked,
    RemoteProtocolError,
)
from aiomigrate.requests import dismiss, read_opening
from aiomigrate.tasks import settle
from aiomigrate.transport import Connection, Listener, Strangers, TransportError

__all__ = ["Inquiries"]

log = logging.getLogger("aiomigrate.destination")


class Inquiries:
    """Answers queries about one VM. Use as a context manager: its tasks end with it."""

    def __init__(self, listener: Listener, options: ReceiveOptions, vm: Construction) -> None:
        self._listener = listener
        self._options = options
        self._vm = vm
        self._token = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers = Strangers()
        """Those that have not shown the token."""
        self.open = False
        """Whether connections are accepted for queries."""
        self.told = asyncio.Event()
        """Set once a source has read who owns the VM."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        # A cancellation meanwhile is not passed on: how the migration ended says more.
        await settle(asyncio.gather(*tasks, return_exceptions=True))

    def accept(self, token: bytes) -> None:
        """Accept connections from now on, which nobody else does any more."""
        self._token = token
        self.open = True
        self._start(self._accept(), None)

    def hand_over(self, connection: Connection, core: DestinationLane) -> None:
        """Answer a connection that has asked, with the right token, already."""
        self._start(self._answer(connection, core), connection)

    async def linger(self, main: Coroutine[Any, Any, bool] | None = None) -> bool:
        """Stay until the source knows who owns the VM, as long as `linger_s`: whether it does.

        `main` waits for the end of the main connection, and tells whether it was a clean one.
        """
        asked = asyncio.create_task(self.told.wait())
        tasks: set[asyncio.Task[bool]] = {asked}
        if main is not None:
            tasks.add(asyncio.create_task(main))
        try:
            async with asyncio.timeout(self._options.linger_s):
                pending = tasks
                while pending:
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    if any(task.result() for task in done):
                        return True
                    if not self.open:  # a plain peer asks nothing
                        return False
                    log.warning(
                        "The VM is here, and its source has not confirmed that it knows. Staying "
                        "for %g s: it may ask",
                        self._options.linger_s,
                    )
        except TimeoutError:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return False

    def _start(
        self, serving: Coroutine[Any, Any, None], connection: Connection | None
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(serving)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, connection))
        return task

    def _ended(self, connection: Connection | None, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if connection is not None:  # also of a task that was cancelled before its first step
            connection.close()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an ownership query failed: %r", error, exc_info=error)

    async def _accept(self) -> None:
        while True:
            connection = await self._listener.accept()
            self._strangers.add(connection, self._start(self._serve(connection), connection))
            await self._strangers.limit(self._options.limits.max_strangers)  # a source asks at once

    async def _serve(self, connection: Connection) -> None:
        """Answer one question; whoever has not the token gets an Error."""
        core = DestinationLane(f"query {connection.name}", Extension.OWNERSHIP)
        try:
            knows = await self._identify(connection, core)
        except (TransportError, RemoteProtocolError) as error:
            log.info("refused: %s", error)
            return
        if knows:
            self._strangers.discard(connection)
            self._vm.fence()
            await self._answer(connection, core)

    async def _identify(self, connection: Connection, core: DestinationLane) -> bool:
        """Read what a connection asks: whether it has the token. Else it has been refused."""
        event = await self._read(connection, core)
        if not isinstance(event, OwnershipAsked):
            log.info("refused: %s: all memory has come", connection.name)
            return False
        if not hmac.compare_digest(event.token, self._token):
            log.info("refused: %s asks about another migration", connection.name)
            await dismiss(connection, core.answer(ok=False), self._options.deadlines)
            return False
        return True

    async def _read(self, connection: Connection, core: DestinationLane) -> Event:
        """What a connection begins with."""
        header_s = self._options.deadlines.header_s
        await connection.secure(header_s)
        first = await connection.read_exactly(ROLE_BYTES, rest_within=header_s)
        return await read_opening(connection, core, first, self._options.deadlines)

    async def _answer(self, connection: Connection, core: DestinationLane) -> None:
        """Answer once it can be told; without an answer if it never can."""
        deadlines = self._options.deadlines
        try:
            await self._vm.settled.wait()
            verdict = self._vm.ownership.verdict
            if verdict is None:
                log.warning("%s: asks who owns the VM, which cannot be told", connection.name)
                return
            await connection.write(core.answer_owner(verdict), deadlines.pace)
            # It may write down first what it was told.
            async with asyncio.timeout(self._options.linger_s):
                rest = await connection.read_some(REQUEST_BYTES)
            if not rest and connection.acknowledged() == connection.written:
                self.told.set()
        except (TransportError, TimeoutError) as error:
            log.info("%s: did not take the answer: %r", connection.name, error)
