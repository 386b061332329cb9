"""Who connects to a destination: the source's main connection, its lanes, strangers.

The main connection is the first that sends a whole Start. What connects afterwards from the same
address is a lane as soon as its first Memory's table has been checked; until then it is a
stranger, and whatever it does neither ends nor delays the migration. A connection with the role
Fault is held open: a stock source takes its end for "every page has been transferred".
"""

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from aiomigrate.options import ReceiveOptions
from aiomigrate.protocol import (
    ROLE_BYTES,
    DestinationLane,
    DestinationMain,
    FaultOpened,
    LaneState,
    RemoteProtocolError,
    StartReceived,
)
from aiomigrate.tasks import outlive
from aiomigrate.transport import Connection, EndOfStream, Listener, Pace, TransportError

__all__ = ["Arrivals", "ArrivedLane"]

log = logging.getLogger("aiomigrate.destination")


class ArrivedLane:
    """A connection that said it is a lane; `joined` once a Memory of it was found good."""

    def __init__(self, connection: Connection, core: DestinationLane) -> None:
        self.connection = connection
        self.core = core
        self.joined = False
        self.settled = connection.received
        """Bytes received when its last request was done with: more than that are of the next."""

    @property
    def quiet(self) -> bool:
        """Whether nothing was begun on it, and nothing waits in its socket.

        A stranger that was refused and has not gone yet is none of the migration's business.
        """
        if self.core.state is LaneState.FAILED:
            return not self.joined
        begun = not self.core.between_requests or self.connection.received != self.settled
        return not begun and not self.connection.unread()


class Arrivals:
    """Accepts connections and finds out what they are, as long as the task group lives."""

    def __init__(
        self,
        listener: Listener,
        options: ReceiveOptions,
        group: asyncio.TaskGroup,
        serve: Callable[[ArrivedLane], Awaitable[None]],
    ) -> None:
        self._listener = listener
        self._options = options
        self._group = group
        self._serve = serve
        self._networks = [ipaddress.ip_network(net) for net in options.allow_lanes_from]
        loop = asyncio.get_running_loop()
        self._main: asyncio.Future[tuple[Connection, DestinationMain]] = loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: list[Connection] = []
        self._closed = False
        self._joined = 0
        self._faults: list[Connection] = []
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
            task = self._group.create_task(self._receive(connection))
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, connection))

    def _ended(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # perhaps before its first step: then nothing in it closes
            connection.close()

    async def main(self) -> tuple[Connection, DestinationMain]:
        """Wait for the source: its connection, whose Start has not been answered yet."""
        return await self._main

    async def close(self) -> None:
        """End every connection but the main one and fault connections; join what serves them.

        What connects from now on is turned away.
        """
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def release(self) -> None:
        """Close what outlives its task: the main connection, whether or not `main` gave it away
        before it was cancelled, and fault connections, now that the source has its Error.
        """
        if self._main.done() and not self._main.cancelled():
            main, _ = self._main.result()
            main.close()
        for connection in self._faults:
            connection.close()

    def _unwelcome(self, connection: Connection) -> str:
        if self._closed:
            return "all memory has come"
        held = len(self._strangers) + len(self._faults)
        crowded = held >= self._options.limits.max_strangers
        if not self._main.done():
            if crowded:  # the source speaks at once: whoever has been silent longest is not it
                self._strangers[0].close()
            return ""
        if crowded:
            return f"{held} connections have not shown what they are"
        return self._foreign(connection)

    def _foreign(self, connection: Connection) -> str:
        """Why a connection cannot be one of the migration's that has begun, or nothing."""
        main, _ = self._main.result()
        if main.peer_host == connection.peer_host:
            # On a unix socket there are no addresses, and no lanes either.
            return "" if connection.peer_host else "lanes exist on tcp only"
        address = ipaddress.ip_address(connection.peer_host.partition("%")[0])
        if any(address in network for network in self._networks):
            return ""
        return f"it is not from the source's address {main.peer_host}"

    def refuse(self, reason: str) -> None:
        """A stranger was turned away: it is logged, and named should the migration fail."""
        log.info("refused: %s", reason)
        self.refused = [*self.refused[-3:], reason]

    def join(self, lane: ArrivedLane) -> bool:
        """A Memory's table of `lane` was found good: it belongs. False if there are too many."""
        if self._joined >= self._options.limits.max_connections:
            return False
        self._joined += 1
        self._strangers.remove(lane.connection)
        lane.joined = True
        return True

    async def _receive(self, connection: Connection) -> None:
        """Identify a connection and serve it to its end; a stranger's errors end only itself."""
        self._strangers.append(connection)
        lane: ArrivedLane | None = None
        keep = False
        try:
            first = await connection.read_exactly(
                ROLE_BYTES, rest_within=self._options.deadlines.header_s
            )
            if not self._main.done():
                keep = await self._expect_start(connection, first)
                return
            if reason := self._foreign(connection):  # it came before the migration had begun
                self.refuse(f"{connection.name}: {reason}")
                return
            core = DestinationLane(f"lane {connection.name}")
            if isinstance(core.receive_data(first), FaultOpened):
                self._faults.append(connection)
                keep = True
                return
            lane = ArrivedLane(connection, core)
            self.lanes.append(lane)
            await self._serve(lane)
        except (TransportError, RemoteProtocolError) as error:
            if lane is not None and lane.joined:
                raise
            if not isinstance(error, EndOfStream) or error.received:
                self.refuse(str(error))
            if isinstance(error, RemoteProtocolError) and error.reply:
                await self.dismiss(connection, error.reply)
        finally:
            if lane is not None:
                self.lanes.remove(lane)
            if lane is None or not lane.joined:
                self._strangers.remove(connection)
            if not keep:
                connection.close()

    async def _expect_start(self, connection: Connection, first: bytes) -> bool:
        """Whether the connection is the migration's main one now; else it is to be closed."""
        core = DestinationMain(self._options.limits, f"main {connection.name}")
        event = core.receive_data(first)
        while event is None:
            rest = bytearray(core.wanted)
            await connection.read_into(rest, Pace(len(rest), self._options.deadlines.header_s))
            event = core.receive_data(rest)
        if isinstance(event, StartReceived) and not self._main.done():
            self._main.set_result((connection, core))
            for stranger in self._strangers:
                if stranger is not connection and self._foreign(stranger):
                    stranger.close()
            return True
        reason = "another migration has begun" if self._main.done() else "it begins with Abandon"
        self.refuse(f"{connection.name}: {reason}")
        await self.dismiss(connection, core.answer(ok=False))
        return False

    async def last_words(self, connection: Connection, reply: bytes) -> None:
        """Answer with `reply` and close so that the peer reads it before the end of stream.

        Also if the caller is cancelled meanwhile: what else breaks must not cost the peer its
        Error.
        """
        await outlive(self.dismiss(connection, reply))

    async def dismiss(self, connection: Connection, reply: bytes) -> None:
        """The same for a stranger: the migration does not wait until it has read that."""
        deadlines = self._options.deadlines
        try:
            await connection.write(reply, deadlines.pace)
            await connection.close_lingering(deadlines.linger_s)
        except TransportError as error:
            log.debug("%s: did not take its answer: %s", connection.name, error)
