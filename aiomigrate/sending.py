"""The source's side of a migration, from the first connection to the release of the VM.

The order is the protocol's (docs/protocol-states.md). Everything up to the commit point runs in
one task group with the readers of all connections, so that whatever ends a connection ends the
attempt; then lanes and readers are gone, and `Handover` asks for Complete. `_restore_guest`
undoes what was done to the guest, whatever went wrong before the commit point.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from aiomigrate.bookkeeping import Books
from aiomigrate.embedding import Source
from aiomigrate.errors import (
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    OutcomeUnknown,
)
from aiomigrate.executor import JobExecutor
from aiomigrate.handover import Desk, Handover
from aiomigrate.hooks import Hooks
from aiomigrate.journal import Side, Standing
from aiomigrate.lane import MainConnection, Shared
from aiomigrate.lanes import Lanes
from aiomigrate.memory.bitmaps import Bitmap, check_bitmaps, dirty_bytes, dirty_tables, union
from aiomigrate.memory.errors import ConfigError
from aiomigrate.memory.map import PAGE_BYTES, VmConfig
from aiomigrate.memory.ranges import make_table
from aiomigrate.opening import Door, reached
from aiomigrate.options import SendOptions
from aiomigrate.precopy import Verdict, decide
from aiomigrate.progress import Phase, Report, Tracker
from aiomigrate.protocol import (
    TOKEN_BYTES,
    Extension,
    ProtocolError,
    SourceFact,
    SourceOwnership,
    SourceTitle,
)
from aiomigrate.tasks import cause_of, outlive, root_cause
from aiomigrate.transport import Address, TransportError, connect

__all__ = ["Sending"]

log = logging.getLogger("aiomigrate.source")
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
        self._hooks = Hooks("source", self._deadlines.embedder_s, self.tracker.warnings)
        self._main: MainConnection | None = None
        self._lanes: Lanes | None = None
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._ownership = SourceOwnership()
        self._logging_dirt = False
        self._paused_at: float | None = None
        self._handed_over = False

    @property
    def committed(self) -> bool:
        """Whether the VM may be the destination's: cancelling can no longer keep it here."""
        return self._ownership.title in (SourceTitle.IN_DOUBT, SourceTitle.THEIRS)

    async def run(self) -> Report:
        """Migrate. Raises a MigrationError that says who has the VM."""
        warnings = self.tracker.warnings
        with JobExecutor() as jobs:
            books = Books(Side.SOURCE, self._options.journal, self._source, jobs, warnings)
            async with books:
                await self._attempt(jobs, books)
                report = self.tracker.report(
                    running=self._source.resumes, downtime_s=self._now() - (self._paused_at or 0)
                )
                with suppress(asyncio.CancelledError):  # there is nothing left to cancel
                    await outlive(self._release(books))
        self.tracker.phase = Phase.DONE
        return replace(report, warnings=tuple(warnings))

    async def _attempt(self, jobs: JobExecutor, books: Books) -> None:
        with self._memory.lease():
            async with AsyncExitStack() as connections:
                try:
                    await self._migrate(jobs, books, connections)
                except BaseException as error:
                    cause = root_cause(error)
                    failure = self._explain(cause)
                    self.tracker.phase = Phase.FAILED
                    with suppress(asyncio.CancelledError):  # `failure` says more
                        await outlive(self._after_failure(failure, books))
                    raise failure from cause_of(failure, cause)

    async def _migrate(
        self, executor: JobExecutor, books: Books, connections: AsyncExitStack
    ) -> None:
        connection = await connect(self._address, within=self._deadlines.connect_s)
        connections.callback(connection.abort)
        shared = Shared(self._memory, self.tracker, self._options)
        main = MainConnection(connection, shared)
        self._main = main
        core = main.main
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(main.read_answers())
            await main.request("Start", lambda: core.start(self._options.extensions))
            if Extension.SESSION in core.extensions:
                await main.request("Session", lambda: core.session(self._token))
            config = await self._hooks.call("config", self._source.config())
            await main.request("Config", lambda: core.config(len(config)), config)
            door = Door(connection, self._address, self._options, core.extensions, self._token)
            lanes = Lanes(main, shared, door, executor, group)
            self._lanes = lanes
            connections.callback(lanes.abort)
            await lanes.open()
            await self._precopy(lanes, self._fresh(core.extensions, config))
            await lanes.close()
            asked_at = reached(self._address, connection)
            asks = Extension.OWNERSHIP in core.extensions
            books.begin(self._token, str(asked_at), ownership=asks)
            state = await self._switch_over(lanes)
            await lanes.stop()
            await main.request("State", lambda: core.state_snapshot(len(state)), state)
            reading.cancel()
            await asyncio.wait([reading])
            await books.require()
        self.tracker.phase = Phase.COMPLETING
        desk = Desk(asked_at, self._token) if asks else None
        handover = Handover(connection, core, self._deadlines, self._ownership, desk)
        await handover.complete(paused=not self._source.resumes)
        connection.close()

    def _fresh(self, extensions: Extension, config: bytes) -> npt.NDArray[np.bool_] | None:
        """Of which mappings the destination's memory reads as zeros before; None: of none.

        Assumed of a plain destination, as the reference does; promised by one that could say
        otherwise. Never of a zone that is backed by a file. MigrationFailed for a Config that is
        none.
        """
        promised = not extensions or Extension.FRESH_MEMORY in extensions
        if not (promised and self._options.destination_is_fresh):
            return None
        try:
            file_zones = VmConfig.parse(config).file_zones
        except ConfigError as error:
            raise MigrationFailed(f"source: config is none that can be sent: {error}") from error
        mappings = self._memory.map.mappings
        return np.array([mapping.zone_id not in file_zones for mapping in mappings])

    # Memory

    async def _precopy(self, lanes: Lanes, fresh: npt.NDArray[np.bool_] | None) -> None:
        """Iterate until what is left can be moved with the guest paused; then pause it."""
        self.tracker.phase = Phase.PRECOPY
        self._logging_dirt = True
        await self._hooks.call("dirty.start", self._source.dirty.start())
        began = mark = self._now()
        if fresh is None:
            tables, expected = iter([self._memory.map.whole()]), self.tracker.total_bytes
        else:
            tables, expected = self._memory.data_tables(), self._memory.expected_bytes()
        self.tracker.begin_iteration(0, expected)
        moved = await lanes.move(tables, fresh=fresh)
        if not moved:
            # All zero: a destination cannot tell that from a source whose memory is still to come.
            first = self._memory.map.mappings[0]
            page = make_table([(first.gpa, PAGE_BYTES)])
            moved = await lanes.move(iter([page]))
        bandwidth = 0.0
        while True:
            dirty = await self._collect()
            nbytes = dirty_bytes(self._memory.map, dirty)
            now = self._now()
            elapsed = max(now - mark, 1e-9)
            if moved:
                bandwidth = moved / elapsed
            elif not bandwidth:  # nothing but zeros so far, and that is what is to be expected
                bandwidth = self.tracker.iteration_bytes_done / elapsed
            self.tracker.dirty_rate = nbytes / elapsed
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
            moved = await lanes.move(dirty_tables(self._memory.map, dirty))
        self.tracker.phase = Phase.SWITCHOVER
        self._paused_at = self._now()
        await self._hooks.call("pause", self._source.pause())
        rest = union(await self._collect(), dirty)
        if rest:
            nbytes = dirty_bytes(self._memory.map, rest)
            self.tracker.begin_iteration(self.tracker.iteration + 1, nbytes)
            await lanes.move(dirty_tables(self._memory.map, rest))

    async def _switch_over(self, main: Lanes) -> bytes:
        """Capture the paused VM and send what that wrote: little, over the main connection."""
        state = await self._hooks.call("capture", self._source.capture())
        self._handed_over = True
        await self._hooks.call("hand_over", self._source.hand_over(str(self._address)))
        dirt = await self._collect()
        if dirty_bytes(self._memory.map, dirt):
            await main.move(dirty_tables(self._memory.map, dirt))
        return state

    async def _collect(self) -> Sequence[Bitmap]:
        bitmaps = await self._hooks.call("dirty.collect", self._source.dirty.collect())
        check_bitmaps(self._memory.map, bitmaps)
        return bitmaps

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # The end

    def _explain(self, cause: BaseException) -> MigrationError:
        match cause:
            case OutcomeUnknown():
                return cause
            case MigrationError() if not self.committed:
                cause.hint = cause.hint or self._lane_hint()
                return cause
            case asyncio.CancelledError() if self.committed:
                return OutcomeUnknown("cancelled after Complete was sent")
            case _ if self.committed:
                return OutcomeUnknown(f"source: {cause!r} after Complete was sent")
            case asyncio.CancelledError():
                return MigrationCancelled("the migration was cancelled")
            case TransportError() | ProtocolError():
                return MigrationFailed(str(cause), hint=self._lane_hint())
            case _:
                return MigrationFailed(f"source: {cause!r}")

    def _lane_hint(self) -> str:
        return self._lanes.hint() if self._lanes is not None else ""

    async def _after_failure(self, failure: MigrationError, books: Books) -> None:
        """Leave guest and destination as they need it; the guest does not wait for the peer."""
        if self._ownership.may(SourceFact.FAILED):
            self._ownership.take(SourceFact.FAILED)
            if self._main is not None:
                await asyncio.gather(self._restore_guest(failure), self._main.abandon())
                await books.note(Standing.OURS)
                return
        await self._restore_guest(failure)
        if self._ownership.title is SourceTitle.KEPT:
            await books.note(Standing.OURS)

    async def _restore_guest(self, failure: MigrationError) -> None:
        """Undo what was done to the guest, or leave it paused where the outcome is unknown."""
        problems = []
        if self._ownership.title is SourceTitle.KEPT:
            if self._handed_over:
                problems.append(
                    await self._hooks.attempt("take_back", self._source.take_back(failure))
                )
            if self._paused_at is not None:
                problems.append(await self._hooks.attempt("resume", self._source.resume()))
        else:
            await self._hooks.attempt("lost", self._source.lost(failure))
        if self._logging_dirt:
            problems.append(await self._hooks.attempt("dirty.stop", self._source.dirty.stop()))
        if any(problems):
            failure.hint = ". ".join(filter(None, [*problems, failure.hint]))

    async def _release(self, books: Books) -> None:
        """The destination has the VM: nothing from here on may resume it or fail the migration."""
        await books.note(Standing.THEIRS)
        await self._hooks.attempt("dirty.stop", self._source.dirty.stop())
        await self._hooks.attempt("release", self._source.release())
