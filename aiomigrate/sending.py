"""The source's side of a migration, from the first connection to the release of the VM.

The order is the protocol's (docs/protocol-states.md). Everything up to the commit point runs in
one task group with the readers of all connections, so that whatever ends a connection ends the
attempt; then lanes and readers are gone, and `Handover` asks for Complete: at once, with State
still unanswered, where the destination can be asked who owns the VM. `GuestHold` knows what was
done to the guest, and undoes it whatever went wrong before the commit point.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from itertools import zip_longest
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from aiomigrate.bookkeeping import Books
from aiomigrate.downtime import Stage, Stopwatch
from aiomigrate.embedding import Source
from aiomigrate.errors import (
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    OutcomeUnknown,
    UsageError,
)
from aiomigrate.executor import JobExecutor
from aiomigrate.handover import Desk, Handover
from aiomigrate.hold import GuestHold
from aiomigrate.hooks import Hooks
from aiomigrate.iterating import Precopy
from aiomigrate.journal import Side, Standing, migration_id
from aiomigrate.lane import Shared
from aiomigrate.lanes import Lanes
from aiomigrate.main_connection import MainConnection
from aiomigrate.memory.bitmaps import Bitmap, count_steps, dirty_tables, union_steps
from aiomigrate.memory.errors import ConfigError, GuestMemoryClaimedError
from aiomigrate.memory.map import Mapping, VmConfig
from aiomigrate.on_demand import PageService
from aiomigrate.opening import Door, reached
from aiomigrate.options import SendOptions
from aiomigrate.phase import Phase
from aiomigrate.progress import Report, Tracker
from aiomigrate.protocol import (
    TOKEN_BYTES,
    Extension,
    ProtocolError,
    SourceFact,
    SourceOwnership,
    SourceTitle,
)
from aiomigrate.scope import Scope, enter_connection, enter_migration
from aiomigrate.sharing import share_memory
from aiomigrate.tasks import cause_of, outlive, root_cause
from aiomigrate.transport import Address, Identity, TransportError, connect
from aiomigrate.tuning import Tuning

__all__ = ["Sending"]

log = logging.getLogger("aiomigrate.source")
T = TypeVar("T")


class Sending:
    """One attempt to send `source` to `address`. `run` once; the identity is closed at its end."""

    def __init__(
        self,
        source: Source,
        address: Address,
        options: SendOptions,
        identity: Identity | None = None,
    ) -> None:
        self._source = source
        self._identity = identity
        self._address = address
        self._options = options
        self._deadlines = options.deadlines
        self._memory = source.memory
        self.tracker = Tracker(total_bytes=source.memory.map.total_bytes)
        self.tracker.phase = Phase.CONNECTING
        self._hooks = Hooks("source", self._deadlines.embedder_s, self.tracker.warnings)
        self._main: MainConnection | None = None
        self._lanes: Lanes | None = None
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self.id = migration_id(self._token)
        """The migration's, as the journals of both sides have it."""
        self._ownership = SourceOwnership()
        self._hold = GuestHold(source, self._hooks)
        self._stopwatch = Stopwatch()
        self._pages = PageService(source, options)
        self.tuning = Tuning(options)
        self.tracker.throttle_percent = self._hold.throttle_percent

    @property
    def committed(self) -> bool:
        """Whether the VM may be the destination's: cancelling can no longer keep it here."""
        return self._ownership.title in (SourceTitle.IN_DOUBT, SourceTitle.THEIRS)

    @property
    def failing(self) -> bool:
        """Whether it has failed, and what it did is being undone."""
        return self.tracker.phase is Phase.FAILED

    async def run(self) -> Report:
        """Migrate. Raises a MigrationError that says who has the VM; UsageError, and nothing was
        done, while another migration sends the same memory, or if that is closed.
        """
        try:
            return await self._run()
        finally:
            if self._identity is not None:
                self._identity.close()

    async def _run(self) -> Report:
        enter_migration(Scope(self.id, self.tracker))
        warnings = self.tracker.warnings
        with JobExecutor() as jobs:
            within = self._deadlines.journal_s
            books = Books(Side.SOURCE, self._options.journal, self._source, within, warnings)
            async with books, self._pages:
                await self._attempt(jobs, books)
                downtime = self._stopwatch.stop()
                report = self.tracker.report(
                    running=self._source.resumes,
                    downtime_ms=self._stopwatch.total_ms,
                    downtime=downtime,
                )
                loss: MigrationError | None = None
                if self._pages.serves:
                    self.tracker.phase = Phase.SERVING
                try:
                    loss = await self._pages.finish()
                finally:
                    with suppress(asyncio.CancelledError):  # there is nothing left to cancel
                        await outlive(self._hold.release())
                if loss is not None:
                    self.tracker.phase = Phase.FAILED
                    raise loss
        self.tracker.phase = Phase.DONE
        history = self.tracker.account().history
        return replace(report, warnings=tuple(warnings), history=history)

    async def _attempt(self, jobs: JobExecutor, books: Books) -> None:
        async with AsyncExitStack() as connections:
            try:
                connections.enter_context(self._memory.claim())
            except (GuestMemoryClaimedError, ValueError) as error:  # or closed
                self.tracker.phase = Phase.FAILED
                raise UsageError(f"source: {error}") from None
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
        within = self._deadlines.connect_s
        connection = await connect(self._address, within=within, identity=self._identity)
        connections.callback(connection.abort)
        enter_connection("main")
        shared = Shared(self._memory, self.tracker, self._options)
        main = MainConnection(connection, shared)
        self._main = main
        core = main.main
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(main.read_answers())
            await main.request("Start", lambda: core.start(self._options.extensions))
            if Extension.SESSION in core.extensions:
                await main.request("Session", lambda: core.session(self._token))
            config = await self._config()
            if self._options.local:
                await share_memory(main, self._memory, config)
            holds = await executor.run(self._memory.held_bytes)
            await main.request("Config", lambda: core.config(len(config.raw), holds), config.raw)
            door = Door(
                connection,
                self._address,
                self._options,
                core.extensions,
                self._token,
                self._identity,
            )
            lanes = Lanes(main, shared, door, executor, group, self.tuning.rate)
            self._lanes = lanes
            connections.callback(lanes.abort)
            rest: Sequence[Bitmap] = ()
            tasks = [reading]
            if self._options.local:
                await self._pages.open(reached(self._address, connection))
                tasks.append(group.create_task(self._pages.watch()))
                await self._pause()
            else:
                await lanes.open()
                precopy = Precopy(
                    self._memory,
                    self._hold,
                    lanes,
                    executor,
                    self.tracker,
                    self.tuning,
                    self._stopwatch,
                )
                rest = await precopy.run(self._fresh(core.extensions, config))
            await lanes.close()
            asked_at = reached(self._address, connection)
            asks = Extension.OWNERSHIP in core.extensions
            # Later whoever is asked has to prove that it is the host that was meant.
            noted = asked_at if self._identity is None else self._address
            books.identify(self.id)
            books.begin(self._token, str(noted), ownership=asks)
            state = await self._switch_over(lanes, executor, rest)
            await lanes.stop()
            self._stopwatch.enter(Stage.RESTORE)
            restored = await main.ask(lambda: core.state_snapshot(len(state)), state)
            # Whoever was given the memory may have to copy all of it first.
            if self._options.local or not (asks or self._options.fast_switchover):
                await main.wait_ok("State", restored)
            await books.require()
            if restored.done():  # also one that was not waited for may have its answer by now
                await main.wait_ok("State", restored)
                self._stopwatch.enter(Stage.WAITING)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        self.tracker.phase = Phase.COMPLETING
        desk = Desk(asked_at, self._token, self._identity) if asks else None
        handover = Handover(
            connection, core, self._deadlines, self._ownership, desk, self._stopwatch
        )
        await handover.complete(paused=not self._source.resumes)
        self._stopwatch.stop()
        with suppress(asyncio.CancelledError):  # there is nothing left to cancel
            await outlive(self._conclude(books, handover))
        connection.close()

    async def _config(self) -> VmConfig:
        """The VM's Config, which maps the memory that is to be sent; MigrationFailed if not."""
        raw = await self._hooks.call("config", self._source.config())
        try:
            config = VmConfig.parse(raw)
        except ConfigError as error:
            raise MigrationFailed(f"source: config is none that can be sent: {error}") from error
        for mappings in zip_longest(config.memory_map.mappings, self._memory.map.mappings):
            maps, has = map(_place, mappings)
            if maps != has:
                raise MigrationFailed(f"source: config maps {maps} where its memory has {has}")
        return config

    def _fresh(self, extensions: Extension, config: VmConfig) -> npt.NDArray[np.bool_] | None:
        """Of which mappings the destination's memory reads as zeros before; None: of none.

        Assumed of a plain destination, as the reference does; promised by one that could say
        otherwise. Never of a zone that is backed by a file.
        """
        promised = not extensions or Extension.FRESH_MEMORY in extensions
        if not (promised and self._options.destination_is_fresh):
            return None
        mappings = self._memory.map.mappings
        return np.array([mapping.zone_id not in config.file_zones for mapping in mappings])

    async def _pause(self) -> None:
        """Pause the guest whose memory is the destination's already."""
        self.tracker.phase = Phase.SWITCHOVER
        self._stopwatch.enter(Stage.PAUSE)
        await self._hold.pause()

    async def _switch_over(
        self, main: Lanes, executor: JobExecutor, rest: Sequence[Bitmap]
    ) -> bytes:
        """Capture the paused VM and send what that wrote, and the `rest`: little, over the main
        connection.
        """
        self._stopwatch.enter(Stage.CAPTURE)
        state = await self._hold.capture()
        self._stopwatch.enter(Stage.HAND_OVER)
        await self._hold.hand_over(str(self._address))
        if self._options.local:
            return state
        self._stopwatch.enter(Stage.LAST_PASS)
        dirt = await executor.drive(union_steps(await self._hold.collect(), rest))
        if await executor.drive(count_steps(self._memory.map, dirt)):
            await main.move(dirty_tables(self._memory.map, dirt))
        return state

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
        """Leave guest and destination as they need it; neither the guest nor the journal waits for
        the peer.
        """
        if self._ownership.may(SourceFact.FAILED):
            self._ownership.take(SourceFact.FAILED)
            if self._main is not None:
                await asyncio.gather(
                    self._restore_guest(failure), self._main.abandon(), books.note(Standing.OURS)
                )
                return
        await self._restore_guest(failure)
        if self._ownership.title is SourceTitle.KEPT:
            await books.note(Standing.OURS)

    async def _restore_guest(self, failure: MigrationError) -> None:
        """Undo what was done to the guest, or leave it paused where the outcome is unknown."""
        kept = self._ownership.title is SourceTitle.KEPT
        problems = await (self._hold.undo(failure) if kept else self._hold.lose(failure))
        if any(problems):
            failure.hint = ". ".join(filter(None, [*problems, failure.hint]))

    async def _conclude(self, books: Books, handover: Handover) -> None:
        """The destination has the VM: nothing from here on may resume it or fail the migration.

        What is confirmed is on the disk: the destination need not stay, nor keep its record, to
        tell it once more. As long as our record says that it is in doubt, it has to.
        """
        if await books.note(Standing.THEIRS):
            await handover.confirm()
            return
        handover.withhold()
        warning = (
            "source: so the destination was not told that this is known: it stays for a while to "
            "be asked, and its VM counts as not confirmed"
        )
        log.warning("%s", warning)
        self.tracker.warnings.append(warning)


def _place(mapping: Mapping | None) -> str:
    if mapping is None:
        return "nothing"
    return f"slot {mapping.slot} of {mapping.size} bytes at {mapping.gpa:#x}"
