"""A connection that carries memory, at the source: pipelined requests and their answers.

The main connection is one too, and asks for everything else besides (`main_connection.py`). A lane
takes the next chunk when its window has room, so a slow lane takes fewer; it never waits for an
answer while there is room. Answers are read in bulk by a task that lives as long as the lane: a
loss is noticed between iterations too, and what was unanswered then is still known.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from aiomigrate.errors import MigrationFailed
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.options import SendOptions
from aiomigrate.pool import Chunk, WorkPool
from aiomigrate.progress import Tracker
from aiomigrate.protocol import (
    RESPONSE_BYTES,
    Answer,
    LaneState,
    RemoteProtocolError,
    SourceLane,
    SourceMain,
    command_name,
)
from aiomigrate.tasks import settle
from aiomigrate.transport import Connection, TransportError
from aiomigrate.window import Window

__all__ = ["LOSSES", "Lane", "Shared", "SilentLane"]

_BULK_BYTES = 256 * RESPONSE_BYTES
"""Answers of a whole window come with one read."""
_SILENCE_CHECKS = 4
"""How often in `memory_answer_s` it is looked whether the peer's kernel took anything: so much
finer than the deadline is known when it last did."""


class SilentLane(MigrationFailed):
    """A connection on which no answer came in time."""


LOSSES = (TransportError, RemoteProtocolError, SilentLane)
"""How a lane is lost. What a destination *refuses* ends the migration."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all connections of one attempt have in common."""

    memory: GuestMemory
    tracker: Tracker
    options: SendOptions


class Lane:
    """A connection of the source with its core, its window, and the task that reads its answers."""

    def __init__(
        self,
        connection: Connection,
        core: SourceMain | SourceLane,
        shared: Shared,
        number: int = 0,
    ) -> None:
        self.connection = connection
        self.core = core
        self.number = number
        """As Join and RetireLane say it; the main connection has none, and is 0."""
        self.name = core.name
        """As progress shows it: `lane 3`."""
        self.answers = 0
        """Answers to Memory so far: none from a peer of the other dialect."""
        self._memory = shared.memory
        self._tracker = shared.tracker
        self._deadlines = shared.options.deadlines
        # Cloud Hypervisor's lanes poll the descriptor before each request, while the next one may
        # lie in its TLS layer (its vmm/src/migration/transport.rs): one at a time, there.
        one_by_one = (
            connection.peer_certificate is not None
            and isinstance(core, SourceLane)
            and not core.extensions
        )
        self._window = Window(shared.options.chunk_bytes, one_by_one=one_by_one)
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._writing = asyncio.Lock()
        self._chunks: deque[Chunk] = deque()
        self._pool: WorkPool | None = None
        self._mid_request = False
        self._sending = False
        self._answered_early = False
        self._silent = False
        self._progress_at = self._loop.time()
        self._acknowledged = 0

    def __repr__(self) -> str:
        return (
            f"<Lane {self.name} {self.core.state.value} unanswered={self._window.unanswered} "
            f"window={self._window.size} rate={self._window.rate:.0f}>"
        )

    @property
    def unanswered(self) -> int:
        """Bytes of content that wait for their answer."""
        return self._window.unanswered

    @property
    def unanswered_chunks(self) -> tuple[Chunk, ...]:
        """What is to be sent again if the lane is lost, oldest first."""
        return tuple(self._chunks)

    async def run(self, pool: WorkPool) -> None:
        """Carry chunks of `pool` and read their answers until the lane is lost: that is raised."""
        reading = asyncio.create_task(self.read_answers())
        carrying = asyncio.create_task(self.carry(pool))
        both = reading, carrying
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                # What the peer said before it broke off says more than the break.
                await asyncio.wait([reading], timeout=self._deadlines.linger_s)
        finally:
            for task in both:
                task.cancel()
            cancelled = [await settle(task) for task in both]
            if any(cancelled):  # not to be taken for a loss, which is followed by another lane
                raise asyncio.CancelledError
        for task in both:
            if not task.cancelled():
                task.result()

    async def carry(self, pool: WorkPool) -> None:
        """Send chunks of the pool as the window has room, for ever; answered ones are `done`.

        Cancelling while nothing is unanswered leaves the stream between two requests.
        """
        self._pool = pool
        waits = self._tracker.waits
        with waits.carrying(self.connection.times, lambda: self.connection.write_wait_s):
            while True:
                if not self._window.has_room:
                    with waits.answers:
                        while not self._window.has_room:
                            await self._change()
                chunk = await pool.take()
                self._chunks.append(chunk)
                async with self._writing:
                    await self._send(chunk)

    async def _send(self, chunk: Chunk) -> None:
        count = len(chunk.table)
        header = self.core.zeros(count) if chunk.zeros else self.core.memory(count)
        now = self._loop.time()
        if not self._owed:
            self._progress_at = now
        self._window.sent(chunk.wire_bytes, now)
        content = chunk.table[:0] if chunk.zeros else chunk.table
        vector = self._memory.iovec(content, (header, chunk.table))
        self._mid_request = self._sending = True
        await self.connection.write_vector(vector, self._deadlines.pace)
        self._mid_request = self._sending = False
        if self._answered_early:
            self._answered_early = False
            self._finish_oldest()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def read_answers(self) -> None:
        """Take answers until the stream ends where it may; a task of its own.

        Raises MigrationFailed when a Memory is refused or no answer comes,
        RemoteProtocolError or TransportError when the peer breaks the protocol or the connection.
        """
        while True:
            try:
                async with asyncio.timeout(self._patience()):
                    data = await self.connection.read_some(_BULK_BYTES)
            except TimeoutError:
                self._judge_silence()
                continue
            if not data:
                self.core.receive_end()
                return
            answers = self.core.receive_data(data)
            for answer in answers:
                self._progress_at = self._loop.time()
                self._settle(answer)
            if not answers:  # a piece of one is no progress
                self._judge_silence()

    def close(self) -> None:
        """Every Memory is answered: end the lane in good order."""
        if isinstance(self.core, SourceLane) and self.core.state is not LaneState.FAILED:
            self.core.close()
        self.connection.close()

    def _settle(self, answer: Answer) -> None:
        if not answer.ok:
            raise MigrationFailed(
                f"{self.name} ({self.connection.name}): the destination refused a "
                f"{command_name(answer.command)}"
            )
        self.answers += 1
        if self._sending and len(self._chunks) == 1:
            # Some relays answer when they have read the table. It counts once it is sent whole,
            # or the next iteration would overtake the rest of it.
            self._answered_early = True
        else:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        chunk = self._chunks.popleft()
        self._window.answered(self._progress_at)
        if chunk.zeros:
            self._tracker.zeroed(chunk.nbytes)
        else:
            self._tracker.moved(self.name, chunk.nbytes, len(chunk.table), self._window.size)
        self._changed.set()
        if self._pool is not None:
            self._pool.done()

    @property
    def _owed(self) -> bool:
        """Whether an answer is due that comes as soon as the destination can."""
        return self._window.unanswered > 0

    @property
    def _due(self) -> str:
        return "Memory" if self._window.unanswered else "RetireLane"

    def _patience(self) -> float:
        """Seconds until it is looked for progress again."""
        limit = self._deadlines.memory_answer_s
        soon = limit / _SILENCE_CHECKS
        if not self._owed:
            return soon
        return min(soon, max(0.0, self._progress_at + limit - self._loop.time()))

    def _judge_silence(self) -> None:
        """Bytes that the peer's kernel acknowledged are progress; without any, the lane is lost."""
        acknowledged = self.connection.acknowledged()
        least = min(self._deadlines.pace.min_bytes, self._window.unanswered)
        if acknowledged - self._acknowledged >= max(least, 1):
            self._acknowledged = acknowledged
            self._progress_at = self._loop.time()
        elif self._owed and self._patience() == 0.0:
            self._silent = True
            raise SilentLane(
                f"{self.name} ({self.connection.name}): no answer to {self._due} in "
                f"{self._deadlines.memory_answer_s:g} s, {self._window.unanswered} bytes unanswered"
            )
