"""The source's side of a migration, from the first connection to the release of the VM.

The order is the protocol's (docs/protocol-states.md). Everything up to the commit point runs in
one task group with the readers of all connections, so that whatever ends a connection ends the
attempt; then lanes and readers are gone, and `Handover` asks for Complete. `_take_back` undoes
what was done to the guest, whatever went wrong before the commit point.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TypeVar

from aiomigrate.embedding import Source
from aiomigrate.errors import (
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
)
from aiomigrate.executor import JobExecutor
from aiomigrate.handover import Handover
from aiomigrate.lane import Lane, MainConnection
from aiomigrate.memory.bitmaps import Bitmap, check_bitmaps, dirty_bytes, dirty_tables, union
from aiomigrate.memory.ranges import Table
from aiomigrate.opening import open_lanes
from aiomigrate.options import SendOptions
from aiomigrate.pool import WorkPool, chunks_of
from aiomigrate.precopy import Verdict, decide
from aiomigrate.progress import Phase, Report, Tracker
from aiomigrate.protocol import Dialect, ProtocolError
from aiomigrate.tasks import outlive, root_cause
from aiomigrate.transport import Address, TransportError, connect
from aiomigrate.window import Window

__all__ = ["Sending"]

log = logging.getLogger("aiomigrate.send")
T = TypeVar("T")


class Sending:
    """One attempt to send `source` to `address`. `run` once."""

    def __init__(self, source: Source, address: Address, options: SendOptions) -> None:
        self._source = source
        self._address = address
        self._options = options
        self._deadlines = options.deadlines
        self._memory = source.memory
        self.tracker = Tracker(total_bytes=source.memory.map.total_bytes)
        self._lanes: list[Lane] = []
        self._handover: Handover | None = None
        self._logging_dirt = False
        self._paused_at: float | None = None
        self._handed_over = False

    @property
    def committed(self) -> bool:
        """Whether the VM may be the destination's: cancelling can no longer keep it here."""
        return self._handover is not None and self._handover.committed

    async def run(self) -> Report:
        """Migrate. Raises a MigrationError that says who has the VM."""
        try:
            with JobExecutor() as executor, self._memory.lease():
                async with AsyncExitStack() as connections:
                    await self._migrate(executor, connections)
        except BaseException as error:
            cause = root_cause(error)
            failure = self._explain(cause)
            self.tracker.phase = Phase.FAILED
            await outlive(self._after_failure(failure))
            raise failure from cause
        report = self.tracker.report(
            running=self._source.resumes, downtime_s=self._now() - (self._paused_at or 0)
        )
        await self._release()
        self.tracker.phase = Phase.DONE
        return report

    async def _migrate(self, executor: JobExecutor, connections: AsyncExitStack) -> None:
        connection = await connect(self._address, within=self._deadlines.connect_s)
        connections.callback(connection.abort)
        main = MainConnection(
            connection, self._memory, self._window(), self.tracker, self._deadlines
        )
        core = main.main
        try:
            async with asyncio.TaskGroup() as readers:
                reading = readers.create_task(main.read_answers())
                await main.request("Start", core.start())
                config = await self._call("config", self._source.config())
                await main.request("Config", core.config(len(config)), config)
                self._lanes = await self._open_lanes(connections)
                carriers = self._lanes or [main]
                lanes_reading = [readers.create_task(lane.read_answers()) for lane in self._lanes]
                await self._precopy(carriers, executor)
                state = await self._switch_over(main, executor)
                await _stop(lanes_reading)
                for lane in self._lanes:
                    lane.close()
                await main.request("State", core.state_snapshot(len(state)), state)
                await _stop([reading])
            self.tracker.phase = Phase.COMPLETING
            self._handover = Handover(connection, core, self._deadlines)
            await self._handover.complete(paused=not self._source.resumes)
        except BaseException:
            if not self.committed:
                await outlive(main.abandon())
            raise
        connection.close()

    def _window(self) -> Window:
        return Window(self._options.chunk_bytes)

    async def _open_lanes(self, connections: AsyncExitStack) -> list[Lane]:
        if self._options.connections == 1:
            return []
        opened = await open_lanes(self._address, self._options)
        for connection, _ in opened:
            connections.callback(connection.abort)
        if not opened:
            warning = f"{self._address} takes no additional connections: one is used"
            log.warning(warning)
            self.tracker.warnings.append(warning)
        return [
            Lane(connection, core, self._memory, self._window(), self.tracker, self._deadlines)
            for connection, core in opened
        ]

    # Memory

    async def _precopy(self, lanes: Sequence[Lane], executor: JobExecutor) -> None:
        """Iterate until what is left can be moved with the guest paused; then pause it."""
        self.tracker.phase = Phase.PRECOPY
        self._logging_dirt = True
        await self._call("dirty.start", self._source.dirty.start())
        began = mark = self._now()
        tables = (
            self._memory.data_tables()
            if self._options.destination_is_fresh
            else iter([self._memory.map.whole()])
        )
        self.tracker.begin_iteration(0, self.tracker.total_bytes)
        moved = await self._carry(tables, lanes, executor)
        while True:
            dirty = await self._collect()
            nbytes = dirty_bytes(dirty)
            now = self._now()
            bandwidth = moved / max(now - mark, 1e-9)
            self.tracker.dirty_rate = nbytes / max(now - mark, 1e-9)
            if bandwidth:
                self.tracker.expected_downtime_ms = 1000 * nbytes / bandwidth
            decision = decide(self._options, nbytes, bandwidth, now - began)
            log.debug("%s", decision)
            self.tracker.decisions.append(str(decision))
            if decision.verdict is Verdict.GIVE_UP:
                raise MigrationFailed(
                    f"pre-copy did not converge: {decision.reason}",
                    hint="Allow more downtime, more connections, or the timeout strategy 'ignore'",
                )
            if decision.verdict is Verdict.SWITCH_OVER:
                break
            mark = now
            self.tracker.begin_iteration(self.tracker.iteration + 1, nbytes)
            moved = await self._carry(dirty_tables(self._memory.map, dirty), lanes, executor)
        self.tracker.phase = Phase.SWITCHOVER
        self._paused_at = self._now()
        await self._call("pause", self._source.pause())
        rest = union(await self._collect(), dirty)
        if rest:
            self.tracker.begin_iteration(self.tracker.iteration + 1, dirty_bytes(rest))
            await self._carry(dirty_tables(self._memory.map, rest), lanes, executor)

    async def _switch_over(self, main: Lane, executor: JobExecutor) -> bytes:
        """Capture the paused VM and send what that wrote: little, over the main connection."""
        state = await self._call("capture", self._source.capture())
        self._handed_over = True
        await self._call("hand_over", self._source.hand_over(str(self._address)))
        dirt = await self._collect()
        if dirty_bytes(dirt):
            await self._carry(dirty_tables(self._memory.map, dirt), [main], executor)
        return state

    async def _collect(self) -> Sequence[Bitmap]:
        bitmaps = await self._call("dirty.collect", self._source.dirty.collect())
        check_bitmaps(self._memory.map, bitmaps)
        return bitmaps

    async def _carry(
        self, tables: Iterator[Table], lanes: Sequence[Lane], executor: JobExecutor
    ) -> int:
        """Move one iteration: returns when every chunk of it is answered, the gate to the next."""
        pool = WorkPool(self._memory, executor, len(lanes))
        try:
            async with asyncio.TaskGroup() as group:
                production = group.create_task(
                    pool.produce(chunks_of(tables, self._options.chunk_bytes))
                )
                for lane in lanes:
                    group.create_task(lane.carry(pool))
        except BaseExceptionGroup as failures:
            raise root_cause(failures) from None
        return production.result()

    # Control

    async def _call(self, what: str, hook: Awaitable[T]) -> T:
        """Wait for the embedder, not for ever; what goes wrong there is named."""
        try:
            async with asyncio.timeout(self._deadlines.embedder_s):
                return await hook
        except MigrationError:
            raise
        except TimeoutError as error:
            reason = f"{what} did not return in {self._deadlines.embedder_s:g} s"
            raise MigrationFailed(f"source: {reason}") from error
        except Exception as error:
            raise MigrationFailed(f"source: {what} failed: {error!r}") from error

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # The end

    def _explain(self, cause: BaseException) -> MigrationError:
        match cause:
            case MigrationError():
                if cause.owner is Owner.SOURCE and not cause.hint:
                    cause.hint = self._dialect_hint()
                return cause
            case asyncio.CancelledError() if self.committed:
                return OutcomeUnknown("cancelled after Complete was sent")
            case asyncio.CancelledError():
                return MigrationCancelled("the migration was cancelled")
            case TransportError() | ProtocolError():
                return MigrationFailed(str(cause), hint=self._dialect_hint())
            case _:
                return MigrationFailed(f"source: {cause!r}")

    def _dialect_hint(self) -> str:
        """What lanes that were all taken, and of which none was ever answered, may mean."""
        if not self._lanes or any(lane.answers for lane in self._lanes):
            return ""
        other = Dialect.V52 if self._options.dialect is Dialect.V53 else Dialect.V53
        return (
            f"None of {len(self._lanes)} lanes was ever answered: the peer may speak the other "
            f"dialect, try --dialect {other}, or take one connection only"
        )

    async def _after_failure(self, failure: MigrationError) -> None:
        """Leave the guest as its owner needs it; a hook that fails is logged, the rest goes on."""
        if failure.owner is Owner.SOURCE:
            if self._handed_over:
                await self._try("take_back", lambda: self._source.take_back(failure))
            if self._paused_at is not None:
                await self._try("resume", self._source.resume)
        else:
            await self._try("lost", lambda: self._source.lost(failure))
        if self._logging_dirt:
            await self._try("dirty.stop", self._source.dirty.stop)

    async def _release(self) -> None:
        """The destination has the VM: nothing from here on may resume it or fail the migration."""
        await self._try("dirty.stop", self._source.dirty.stop)
        await self._try("release", self._source.release)

    async def _try(self, what: str, hook: Callable[[], Awaitable[None]]) -> None:
        with suppress(MigrationFailed):
            try:
                await self._call(what, hook())
            except MigrationFailed as error:
                log.error("%s", error.what)
                self.tracker.warnings.append(error.what)
                raise


async def _stop(readers: Sequence[asyncio.Task[None]]) -> None:
    """End tasks that only wait for what need not come any more."""
    for reader in readers:
        reader.cancel()
    if readers:
        await asyncio.wait(readers)
