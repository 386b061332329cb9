"""The destination's side of a migration: from the first Start to the answer to Complete.

One task serves the main connection; `Arrivals` accepts the others and has each lane served by
a task of its own. What goes wrong on any of them ends the migration in one place: the VM that was
being built is discarded, the peer gets its Error where the protocol has one, and reads it before
the connection closes.
"""

import asyncio
import logging
import secrets
from contextlib import suppress

from aiomigrate.arrivals import Arrivals
from aiomigrate.arrived_lane import ArrivedLane
from aiomigrate.bookkeeping import Books
from aiomigrate.construction import Construction
from aiomigrate.embedding import Destination
from aiomigrate.errors import (
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    OutcomeUnknown,
)
from aiomigrate.executor import JobExecutor
from aiomigrate.hooks import Hooks
from aiomigrate.inquiries import Inquiries
from aiomigrate.intake import Intake
from aiomigrate.journal import Side, Standing, migration_id
from aiomigrate.options import ReceiveOptions
from aiomigrate.phase import Phase
from aiomigrate.progress import Report, Tracker
from aiomigrate.protocol import (
    TOKEN_BYTES,
    AbandonReceived,
    CompleteReceived,
    ConfigReceived,
    DestinationLane,
    DestinationMain,
    DestinationTitle,
    Event,
    Extension,
    LaneRetired,
    LaneState,
    MemoryFdReceived,
    MemoryReceived,
    ProtocolError,
    RemoteProtocolError,
    SessionReceived,
    StateReceived,
    ZerosReceived,
)
from aiomigrate.requests import REFUSALS, failure_of, read_request
from aiomigrate.scope import Scope, enter_connection, enter_migration
from aiomigrate.takeover import Takeover
from aiomigrate.tasks import cause_of, outlive, root_cause
from aiomigrate.transport import (
    Connection,
    EndOfStream,
    Identity,
    Listener,
    TransportError,
)

__all__ = ["Receiving"]

log = logging.getLogger("aiomigrate.destination")

_IDLE_CHECKS = 4
"""How often in `idle_s` it is looked whether anything came."""


class Receiving:
    """One migration taken from `listener`. `run` once; listener and identity are closed at its
    end.
    """

    def __init__(
        self,
        destination: Destination,
        listener: Listener,
        options: ReceiveOptions,
        identity: Identity | None = None,
    ) -> None:
        self._listener = listener
        self._identity = identity
        self._options = options
        self._deadlines = options.deadlines
        self._executor = JobExecutor()
        self.tracker = Tracker()
        self.tracker.phase = Phase.WAITING
        self._own_token = secrets.token_bytes(TOKEN_BYTES)
        """The migration's where the source gives it none."""
        self._scope = Scope(migration_id(self._own_token), self.tracker)
        warnings = self.tracker.warnings
        self._books = Books(
            Side.DESTINATION, options.journal, destination, self._deadlines.journal_s, warnings
        )
        hooks = Hooks("destination", self._deadlines.embedder_s, warnings)
        self._vm = Construction(destination, hooks, self._books, self._executor, warnings)
        self._inquiries = Inquiries(listener, options, self._vm)
        self._source = ""
        self._source_knows = False
        self._blamed: Exception | None = None
        self._listening = False
        self._asks = False
        self._serving = False
        self._state_at = 0.0

    @property
    def id(self) -> str:
        """The migration's, as the journals have it: common to both sides once the source has named
        it.
        """
        return self._scope.migration

    @property
    def committed(self) -> bool:
        """Whether the VM may be ours: cancelling can no longer give it back."""
        return self._vm.owned or self._vm.ownership.title is DestinationTitle.TAKING_OVER

    async def run(self) -> Report:
        """Receive. Raises a MigrationError that says who has the VM."""
        enter_migration(self._scope)
        try:
            with self._executor:
                async with self._books, self._inquiries:
                    return await self._run()
        finally:
            self._listener.close()
            if self._identity is not None:
                self._identity.close()

    async def _run(self) -> Report:
        try:
            return await self._migrate()
        except BaseException as error:
            cause = self._blamed or root_cause(error)
            failure = self._explain(cause)
            self.tracker.phase = Phase.FAILED
            with suppress(asyncio.CancelledError):  # `failure` says more
                if await outlive(self._vm.discard(failure)):
                    await self._stay(failure)
            raise failure from cause_of(failure, cause)

    async def _stay(self, failure: MigrationError) -> None:
        """The VM is discarded: a source that may not know is told when it asks."""
        doubts = self._vm.fenced.is_set() or self._may_be_committed()
        if doubts and not self._inquiries.open:
            self._inquiries.accept(self._arrivals.token)
        if self._inquiries.open and not self._source_knows:
            log.warning(
                "%s. Staying for %g s: the source may ask whether it can resume the VM",
                failure,
                self._options.linger_s,
            )
            await self._inquiries.linger()

    def _may_be_committed(self) -> bool:
        """Whether State may have been sent, and Complete right behind it, though it was not read.

        Not before memory has come, nor while any Memory is unanswered: it is sent after that.
        """
        served = not self._serving and not self._arrivals.broken
        return self._asks and self._intake.memory_came and served

    async def _migrate(self) -> Report:
        try:
            async with asyncio.TaskGroup() as group:
                arrivals = Arrivals(
                    self._listener, self._options, group, self._serve_lane, self._asked
                )
                self._arrivals = arrivals
                self._intake = Intake(
                    self._vm, arrivals, self.tracker, self._executor, self._options
                )
                self._accepting = group.create_task(arrivals.accept())
                connection, core = await arrivals.main()
                self._source = connection.name
                enter_connection("main")
                self.tracker.started_at = asyncio.get_running_loop().time()
                log.info("%s: a migration begins", self._source)
                watching = [
                    group.create_task(self._watch_idle(connection)),
                    group.create_task(self._watch_fence()),
                ]
                paused = await self._serve_until_complete(connection, core)
                for task in (*watching, self._accepting):
                    task.cancel()
                await arrivals.close()
            return await self._complete(connection, core, paused=paused)
        finally:
            self._arrivals.release()
            await self._intake.close()

    # The main connection

    async def _serve_until_complete(self, connection: Connection, core: DestinationMain) -> bool:
        """Serve requests up to Complete, which is left unanswered: whether it wants a pause."""
        self._asks = Extension.OWNERSHIP in core.extensions
        await connection.write(core.answer(ok=True), self._deadlines.pace)
        while True:
            try:
                self._listening = True
                event = await read_request(connection, core, self._deadlines)
                self._listening = False
                if isinstance(event, CompleteReceived):
                    return event.paused
                self._serving = not isinstance(event, StateReceived)
                await self._serve(connection, core, event)
            except RemoteProtocolError as error:
                failure = self._explain(error)
                self._blame(failure)
                if error.reply:
                    await outlive(self._refuse(connection, error.reply, failure))
                raise failure from error
            except REFUSALS as error:
                failure = failure_of(connection.name, error)
                self._blame(failure)
                await outlive(self._refuse(connection, core.answer(ok=False), failure))
                raise failure from cause_of(failure, error)
            self._source_knows = isinstance(event, AbandonReceived)
            await connection.write(core.answer(ok=True), self._deadlines.pace)
            self._serving = False
            if isinstance(event, AbandonReceived):
                raise MigrationFailed(f"{self._source}: the source abandoned the migration")

    async def _refuse(self, connection: Connection, reply: bytes, failure: MigrationError) -> bool:
        """Discard what was built, and only then answer Error: the source resumes when it reads it.

        Answers nothing, and gives False, if something of the VM is left.
        """
        await self._arrivals.close()
        gone = await self._vm.discard(failure)
        if gone:
            self._source_knows = await self._arrivals.last_words(connection, reply)
        return gone

    async def _serve(self, connection: Connection, core: DestinationMain, event: Event) -> None:
        match event:
            case SessionReceived(token=token):
                self._arrivals.token = token
                self._scope.migration = migration_id(token)
            case LaneRetired(number=number):
                await self._arrivals.retire(number)
                self.tracker.lanes_lost += 1
            case ConfigReceived(payload=payload, data_bytes=data_bytes):
                self._books.identify(self._scope.migration)
                await self._intake.configure(payload, data_bytes, self._source)
            case MemoryReceived() | ZerosReceived():
                await self._intake.apply("main", connection, event)
            case MemoryFdReceived(slot=slot):
                self._intake.pass_memory(connection, slot)
            case StateReceived(payload=payload):
                await self._restore(payload, core.extensions)

    async def _restore(self, state: bytes, extensions: Extension) -> None:
        """All memory has come, or is missing: only questions are accepted from here on."""
        self.tracker.phase = Phase.SWITCHOVER
        self._state_at = asyncio.get_running_loop().time()
        await self._intake.require_all()
        await self._arrivals.close()
        asks = Extension.OWNERSHIP in extensions
        token = self._arrivals.token
        if asks:  # nothing but that is accepted any more, and it is longer than this migration
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
            self._inquiries.accept(token)
        self._books.begin(token or self._own_token, self._source, ownership=asks)
        await self._vm.restore(state)
        self._arrivals.turn_away()

    def _asked(self, connection: Connection, core: DestinationLane) -> None:
        """The source, or whoever has its token, asks already who owns the VM."""
        self._inquiries.hand_over(connection, core)
        self._vm.fence()

    # Lanes

    async def _serve_lane(self, lane: ArrivedLane) -> None:
        connection, core = lane.connection, lane.core
        enter_connection(lane.label)
        while True:
            try:
                event = await read_request(connection, core, self._deadlines)
                # A lane's core lets nothing else through.
                if isinstance(event, MemoryReceived | ZerosReceived):
                    await self._intake.apply(lane.label, connection, event, lane)
                answer = core.answer(ok=True)
                lane.settled = connection.received
                await connection.write(answer, self._deadlines.pace)
            except RemoteProtocolError as error:
                if error.reply and lane.joined:  # a stranger's last words are Arrivals' matter
                    self._blame(error)
                    await self._arrivals.last_words(connection, error.reply)
                raise
            except EndOfStream as end:
                if end.received or core.state is not LaneState.CLOSED:
                    raise
                return
            except REFUSALS as error:
                self._arrivals.refuse(f"{connection.name}: {error}")
                if not lane.joined:
                    await self._arrivals.dismiss(connection, core.answer(ok=False))
                    return
                failure = failure_of(core.name, error)
                self._blame(failure)
                await self._arrivals.last_words(connection, core.answer(ok=False))
                raise failure from cause_of(failure, error)

    async def _watch_idle(self, connection: Connection) -> None:
        """Judge silence over all connections together: the main one has nothing to say for long."""
        seen, quiet = -1, 0
        while True:
            await asyncio.sleep(self._deadlines.idle_s / _IDLE_CHECKS)
            received = connection.received + self._arrivals.bytes_received
            quiet = quiet + 1 if self._listening and received == seen else 0
            seen = received
            if quiet >= _IDLE_CHECKS:
                raise MigrationFailed(
                    f"{self._source}: nothing came on any connection in "
                    f"{self._deadlines.idle_s:g} s"
                )

    async def _watch_fence(self) -> None:
        await self._vm.fenced.wait()
        raise MigrationFailed(f"{self._source}: the source asked who owns the VM, and keeps it")

    # The end

    def _blame(self, failure: Exception) -> None:
        """Note what ends the migration: while a peer reads its Error the others break off, too."""
        self._blamed = self._blamed or failure

    async def _complete(
        self, connection: Connection, core: DestinationMain, *, paused: bool
    ) -> Report:
        takeover = Takeover(self._vm, connection, core, self._deadlines)
        self.tracker.phase = Phase.COMPLETING
        confirmed = False
        downtime = 0.0
        try:
            await self._books.require()
            try:
                await takeover.own(paused=paused)
            finally:
                downtime = self._since_state()
                if self._vm.owned:  # also if we were cancelled meanwhile
                    await outlive(self._books.note(Standing.OWNED))
            confirmed = await self._inquiries.linger(takeover.confirmed(self._options.linger_s))
            if confirmed:
                await outlive(self._vm.confirmed(noted=takeover.noted))
        except BaseException as error:
            if not self._vm.owned:
                await outlive(self._decline(connection, core, self._explain(error)))
                raise
            if not isinstance(error, asyncio.CancelledError):  # nothing is left to cancel
                log.warning("the VM is here, but: %r", error)
                self.tracker.warnings.append(repr(error))
        self.tracker.phase = Phase.DONE
        return self.tracker.report(
            running=not paused, downtime_ms=1000 * downtime, confirmed=confirmed
        )

    async def _decline(
        self, connection: Connection, core: DestinationMain, failure: MigrationError
    ) -> None:
        """The VM was not taken over: tell the source, if it is certain that it may resume."""
        if self._vm.in_doubt:
            return
        if not await self._refuse(connection, core.answer(ok=False), failure):
            raise OutcomeUnknown(f"{failure.what}, and it could not be discarded", failure.hint)

    def _since_state(self) -> float:
        return asyncio.get_running_loop().time() - self._state_at

    def _explain(self, cause: BaseException) -> MigrationError:
        hint = ""
        if self._source and self._arrivals.refused:
            hint = f"Connections were refused meanwhile, the last one {self._arrivals.refused[-1]}"
        match cause:
            case MigrationError():
                cause.hint = cause.hint or hint
                return cause
            case _ if self._vm.in_doubt:
                return OutcomeUnknown(f"{cause!r} while the VM was resumed here", hint)
            case asyncio.CancelledError():
                return MigrationCancelled("the migration was cancelled")
            case TransportError() | ProtocolError():
                return MigrationFailed(str(cause), hint=hint)
            case _:
                return MigrationFailed(f"destination: {cause!r}", hint=hint)
