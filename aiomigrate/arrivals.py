"""Who connects to a destination: the source's main connection, its lanes, strangers.

The main connection is the first that sends a whole Start. What connects afterwards from the same
address is a lane once it has joined with the migration's token and a number of its own, or, where
there is no token, as soon as its first Memory's table has been checked; until then it is a
stranger, and whatever it does neither ends nor delays the migration. A connection with the role
Fault is held open: a stock source takes its end for "every page has been transferred".

A lane that has joined may be lost, where RETIRE_LANE was accepted: the source then has it retired,
and a number that was retired is never taken again.
"""

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

from aiomigrate.arrived_lane import ArrivedLane
from aiomigrate.errors import MigrationFailed
from aiomigrate.options import ReceiveOptions
from aiomigrate.protocol import (
    ROLE_BYTES,
    AbandonReceived,
    DestinationLane,
    DestinationMain,
    Extension,
    FaultOpened,
    LaneJoining,
    OwnershipAsked,
    RemoteProtocolError,
    StartReceived,
)
from aiomigrate.requests import dismiss, read_opening
from aiomigrate.tasks import outlive
from aiomigrate.transport import Connection, EndOfStream, Listener, Strangers, TransportError

__all__ = ["Arrivals"]

log = logging.getLogger("aiomigrate.destination")


class Arrivals:
    """Accepts connections and finds out what they are, as long as the task group lives."""

    def __init__(
        self,
        listener: Listener,
        options: ReceiveOptions,
        group: asyncio.TaskGroup,
        serve: Callable[[ArrivedLane], Awaitable[None]],
        asked: Callable[[Connection, DestinationLane], None],
    ) -> None:
        self._listener = listener
        self._options = options
        self._group = group
        self._serve = serve
        self._asked = asked
        self._networks = [ipaddress.ip_network(net) for net in options.allow_lanes_from]
        loop = asyncio.get_running_loop()
        self._main: asyncio.Future[tuple[Connection, DestinationMain]] = loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers = Strangers()
        self._closed = False
        self._complete = False
        self._joined = 0
        self._faults: list[Connection] = []
        self._held: list[Connection] = []
        """Came so late that it was not found out what they are: perhaps fault connections."""
        self._numbers: set[int] = set()
        """Of lanes that have joined or were retired: none is taken twice."""
        self.token = b""
        """The migration's, where the source gave it one."""
        self.broken: dict[int, str] = {}
        """Lanes that ended in the middle of a request and are not retired yet, and how."""
        self.lanes: list[ArrivedLane] = []
        """Lanes that are open."""
        self.refused: list[str] = []
        """Why strangers were refused, newest last, a few."""

    @property
    def means_postcopy(self) -> bool:
        """Whether the source opened a fault connection."""
        return bool(self._faults)

    @property
    def bytes_received(self) -> int:
        """Bytes read on the lanes that are open; grows while any of them moves."""
        return sum(lane.connection.received for lane in self.lanes)

    async def accept(self) -> None:
        """Accept connections for ever; a task of its own."""
        while True:
            connection = await self._listener.accept()
            if reason := self._unwelcome(connection):
                self.refuse(f"{connection.name}: {reason}")
                connection.close()
                continue
            if self._closed:
                self._held.append(connection)
                continue
            task = self._group.create_task(self._receive(connection))
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, connection))
            self._strangers.add(connection, task)
            if not self._main.done():  # the source speaks at once
                await self._strangers.limit(self._options.limits.max_strangers)

    def _ended(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() and connection not in self._held:
            connection.close()

    async def main(self) -> tuple[Connection, DestinationMain]:
        """Wait for the source: its connection, whose Start has not been answered yet."""
        return await self._main

    async def catch_up(self) -> None:
        """Look at all that has connected so far, and at what it has said: a fault connection is
        known as one afterwards. MigrationFailed if that does not end.
        """
        within = self._options.deadlines.header_s
        try:
            async with asyncio.timeout(within):
                # What the kernel holds can only be polled; each turn of the loop takes some of it.
                while self._listener.waiting() or any(map(_unread, self._strangers)):  # noqa: ASYNC110
                    await asyncio.sleep(0)
        except TimeoutError:
            raise MigrationFailed(
                f"connections came for {within:g} s: any could be for post-copy"
            ) from None

    async def close(self) -> None:
        """End every connection but the main one and fault connections; join what serves them.

        What connects from now on, or has not shown what it is, is held open and not served.
        """
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def turn_away(self) -> None:
        """All memory has come: what connected late is none of the migration's, nor is what still
        does.
        """
        self._complete = True
        self._close_held()

    async def retire(self, number: int) -> None:
        """Fence a lane that the source has lost, seen here or not: no system call and no job of it
        touches guest memory any more, nor will. MigrationFailed if there were too many.
        """
        self._numbers.add(number)
        if len(self._numbers) > self._options.limits.max_lane_numbers:
            raise MigrationFailed(f"there were {len(self._numbers)} lanes")
        tasks = [lane.task for lane in self.lanes if lane.number == number]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self.broken.pop(number, None)  # it may have broken off while a job of it was waited for

    def release(self) -> None:
        """Close what outlives its task: the main connection, whether or not `main` gave it away
        before it was cancelled, and fault connections, now that the source has its Error.
        """
        if self._main.done() and not self._main.cancelled():
            main, _ = self._main.result()
            main.close()
        for connection in self._faults:
            connection.close()
        self._close_held()

    def _close_held(self) -> None:
        while self._held:
            self._held.pop().close()

    def _unwelcome(self, connection: Connection) -> str:
        if self._complete:
            return "all memory has come"
        if not self._main.done():
            return ""
        held = len(self._strangers) + len(self._faults) + len(self._held)
        if held >= self._options.limits.max_strangers:
            return f"{held} connections have not shown what they are"
        return self._foreign(connection)

    def _foreign(self, connection: Connection) -> str:
        """Why a connection cannot be one of the migration's that has begun, or nothing."""
        main, _ = self._main.result()
        shown, wanted = connection.peer_certificate, main.peer_certificate
        if shown is not None and wanted is not None and shown != wanted:
            return (
                f"its client certificate ({shown.subject}) is not that of the main connection "
                f"({wanted.subject})"
            )
        if main.peer_host == connection.peer_host:  # on a unix socket both are ""
            return ""
        address = ipaddress.ip_address(connection.peer_host.partition("%")[0])
        if any(address in network for network in self._networks):
            return ""
        return f"it is not from the source's address {main.peer_host}"

    def refuse(self, reason: str) -> None:
        """A stranger was turned away: it is logged, and named should the migration fail."""
        log.info("refused: %s", reason)
        self.refused = [*self.refused[-3:], reason]

    def join(self, lane: ArrivedLane) -> bool:
        """`lane` was found to be the migration's. False if there are too many.

        Of a plain peer's lanes all that ever were count, as with Cloud Hypervisor.
        """
        taken = self._joined
        if lane.number is not None:
            taken = sum(other.joined for other in self.lanes)
        if taken >= self._options.limits.max_connections:
            return False
        self._joined += 1
        self._strangers.discard(lane.connection)
        lane.joined = True
        return True

    def _join(self, lane: ArrivedLane, token: bytes) -> str:
        """Why a lane that asks to join is not taken, or nothing."""
        if lane.number is None or not hmac.compare_digest(token, self.token):
            return "it has not the migration's token"
        if lane.number in self._numbers:
            return f"lane {lane.number} was there already, or is retired"
        if len(self._numbers) >= self._options.limits.max_lane_numbers:
            return f"there were {len(self._numbers)} lanes"
        if not self.join(lane):
            return f"there are {self._options.limits.max_connections} lanes already"
        self._numbers.add(lane.number)
        return ""

    def _lose(self, lane: ArrivedLane, error: Exception) -> bool:
        """Whether the migration goes on without a lane that has joined."""
        retires = Extension.RETIRE_LANE in lane.core.extensions
        if not retires or lane.number is None or not isinstance(error, TransportError):
            return False
        log.warning("%s was lost: %s", lane.core.name, error)
        if lane.begun:
            self.broken[lane.number] = str(error)
        return True

    async def _receive(self, connection: Connection) -> None:
        """Identify a connection and serve it to its end; a stranger's errors end only itself."""
        lane: ArrivedLane | None = None
        keep = False
        try:
            header_s = self._options.deadlines.header_s
            await connection.secure(header_s)
            first = await connection.read_exactly(ROLE_BYTES, rest_within=header_s)
            if not self._main.done():
                keep = await self._expect_start(connection, first)
                return
            if reason := self._foreign(connection):  # it came before the migration had begun
                self.refuse(f"{connection.name}: {reason}")
                return
            lane, keep = await self._identify(connection, first)
            if lane is not None:
                if lane.number is not None:
                    answer = lane.core.answer(ok=True)
                    lane.settled = connection.received
                    await connection.write(answer, self._options.deadlines.pace)
                await self._serve(lane)
        except (TransportError, RemoteProtocolError) as error:
            if lane is not None and lane.joined:
                if not self._lose(lane, error):
                    raise
                return
            if not isinstance(error, EndOfStream) or error.received:
                self.refuse(str(error))
            if isinstance(error, RemoteProtocolError) and error.reply:
                await self.dismiss(connection, error.reply)
        except asyncio.CancelledError:
            if self._closed and lane is None:
                self._held.append(connection)
                keep = True
            raise
        finally:
            if lane is not None:
                self.lanes.remove(lane)
                if lane.joined and lane.number is not None and lane.begun:
                    self.broken.setdefault(lane.number, "it was ended here")
            if not keep:
                connection.close()

    async def _identify(
        self, connection: Connection, first: bytes
    ) -> tuple[ArrivedLane | None, bool]:
        """The lane that a connection of the migration is, if it is one, and whether to hold it
        open although it is none.
        """
        _, main = self._main.result()
        core = DestinationLane(f"lane {connection.name}", main.extensions)
        event = await read_opening(connection, core, first, self._options.deadlines)
        if isinstance(event, FaultOpened):
            self._faults.append(connection)
            return None, True
        if isinstance(event, OwnershipAsked):
            if hmac.compare_digest(event.token, self.token):
                self._asked(connection, core)
                return None, True
            self.refuse(f"{connection.name}: it asks about another migration")
            await self.dismiss(connection, core.answer(ok=False))
            return None, False
        if not connection.peer_host:
            self.refuse(f"{connection.name}: lanes exist on tcp only")
            return None, False
        task = cast("asyncio.Task[None]", asyncio.current_task())
        if not isinstance(event, LaneJoining):
            lane = ArrivedLane(connection, core, task)
            self.lanes.append(lane)
            return lane, False
        core.name = f"lane {event.number} ({connection.name})"
        lane = ArrivedLane(connection, core, task, event.number)
        if reason := self._join(lane, event.token):
            self.refuse(f"{core.name}: {reason}")
            await self.dismiss(connection, core.answer(ok=False))
            return None, False
        self.lanes.append(lane)
        return lane, False

    async def _expect_start(self, connection: Connection, first: bytes) -> bool:
        """Whether the connection is the migration's main one now; else it is to be closed."""
        options = self._options
        core = DestinationMain(options.limits, f"main {connection.name}", options.extensions)
        event = await read_opening(connection, core, first, self._options.deadlines)
        if isinstance(event, StartReceived) and not self._main.done():
            self._main.set_result((connection, core))
            for stranger in self._strangers:
                if stranger is not connection and self._foreign(stranger):
                    stranger.close()
            return True
        abandoned = isinstance(event, AbandonReceived)  # what had not begun
        reason = "it begins with Abandon" if abandoned else "another migration has begun"
        self.refuse(f"{connection.name}: {reason}")
        await self.dismiss(connection, core.answer(ok=abandoned))
        return False

    async def last_words(self, connection: Connection, reply: bytes) -> bool:
        """Answer with `reply` and close so that the peer reads it before the end of stream:
        whether it has.

        Also if the caller is cancelled meanwhile: what else breaks must not cost the peer its
        Error.
        """
        return await outlive(self.dismiss(connection, reply))

    async def dismiss(self, connection: Connection, reply: bytes) -> bool:
        """The same for a stranger: the migration does not wait until it has read that."""
        return await dismiss(connection, reply, self._options.deadlines)


def _unread(connection: Connection) -> bool:
    return not connection.closed and connection.unread() > 0
