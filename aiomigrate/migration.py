"""A migration as its embedder holds it: a context whose tasks end with it.

async with aiomigrate.send(source, "tcp:host:6000", SendOptions(connections=8)) as migration:
    async for progress in migration:
        print(progress.phase, progress.bytes_done)
    report = await migration.result()
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from aiomigrate.credentials import destination_identity, source_identity
from aiomigrate.embedding import Destination, Source
from aiomigrate.errors import (
    MigrationError,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    UsageError,
)
from aiomigrate.options import ReceiveOptions, SendOptions
from aiomigrate.progress import Account, Progress, Report
from aiomigrate.receiving import Receiving
from aiomigrate.sending import Sending
from aiomigrate.tasks import settle
from aiomigrate.tracing import Attempt, traced
from aiomigrate.transport import (
    Address,
    AddressError,
    Identity,
    Listener,
    UnixAddress,
    listen,
    parse_address,
)

__all__ = ["Departure", "Migration", "Reception", "receive", "send"]

log = logging.getLogger("aiomigrate")

_PROGRESS_S = 0.1
"""How often progress is handed out at the most: what a person's eye follows."""


class Migration:
    """One migration, from entering the context to leaving it.

    Leaving it waits for the end and raises its error unless `result` has; leaving it with an
    exception cancels first.
    Iterating yields progress until the end. Made by `send` and `receive`.
    """

    _side: str
    _attempt: Attempt
    _task: asyncio.Task[Report]
    _told = False

    async def _begin(self) -> Attempt:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self._attempt = await self._begin()
        self._task = asyncio.create_task(traced(self._side, self._attempt))
        try:
            # A task that is cancelled before its first step never cleans up: have it take that.
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._task.cancel()
            await settle(self._task)
            if not self._task.cancelled():
                self._task.exception()  # it is the cancellation that is raised
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._task.cancel()
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError as cancelled:
            self._task.cancel()
            await settle(self._task)
            self._note_on(cancelled)
            raise
        if error is not None:
            self._note_on(error)
        elif not self._told:
            self._task.result()

    def _note_on(self, error: BaseException) -> None:
        """Another error leaves the context: it takes with it how the migration ended."""
        failure = None if self._task.cancelled() else self._task.exception()
        if failure is None or failure is error:
            return
        error.add_note(str(failure))
        if isinstance(failure, OutcomeUnknown):
            log.warning("%s", failure)

    @property
    def id(self) -> str:
        """Its public name, 16 hexadecimal digits: what journals and logs call it.

        Both sides have the same one. A destination has one of its own until the source has named
        the migration, and keeps that towards a plain peer, which names none.
        """
        return self._attempt.id

    @property
    def progress(self) -> Progress:
        """What the migration does right now."""
        return self._attempt.tracker.snapshot()

    def account(self) -> Account:
        """What it did so far, with its course over time; after a failure, until then.

        Made anew each time, of up to a few hundred samples: not for each look at the progress.
        """
        return self._attempt.tracker.account()

    async def __aiter__(self) -> AsyncIterator[Progress]:
        while not self._task.done():
            yield self.progress
            await asyncio.wait([self._task], timeout=_PROGRESS_S)
        yield self.progress

    async def result(self) -> Report:
        """Wait for the end; cancelling only stops the waiting.

        Raises the MigrationError that it ended with; UsageError, and nothing was done, while
        another migration sends the same memory.
        """
        try:
            return await asyncio.shield(self._task)
        finally:
            self._told = self._task.done()

    def cancel(self) -> bool:
        """Cancel if the VM can still stay where it is; False if it is too late for that."""
        if self._attempt.committed:
            return False
        return self._task.cancel()


class Departure(Migration):
    """A migration at its source: it can be changed while it runs. Made by `send`, of its `source`,
    `address` and `options`.
    """

    _side = "source"
    _sending: Sending

    def __init__(self, source: Source, address: Address, options: SendOptions) -> None:
        self._arguments = source, address, options

    async def _begin(self) -> Attempt:
        source, address, options = self._arguments
        identity = await source_identity(options.tls_dir, address)
        self._sending = Sending(source, address, options, identity)
        return self._sending

    @property
    def options(self) -> SendOptions:
        """What it was begun with, and what `tune` has changed since."""
        return self._sending.tuning.options

    def tune(
        self,
        *,
        downtime_ms: int | None = None,
        rate_limit: int | None = None,
        throttle_cap_percent: int | None = None,
    ) -> None:
        """Change what `SendOptions` of the same names began with; None: as it is.

        `downtime_ms` (milliseconds) holds from the next decision on, when the current iteration
        ends. `rate_limit` (bytes a second, 0: none) holds at once, for what has not left yet, and
        not any more once the guest is paused. `throttle_cap_percent` (0 to 99) eases a guest that
        is throttled further at once; a higher one is used by the next decisions.
        Raises UsageError, and changes nothing, for a value that cannot be meant; MigrationError,
        with the VM's owner, if nothing can be changed any more.
        """
        self._require_changeable()
        self._sending.tuning.change(
            downtime_ms=downtime_ms,
            rate_limit=rate_limit,
            throttle_cap_percent=throttle_cap_percent,
        )

    def switch_over_now(self) -> None:
        """Pause the guest at once, and send what is left however long it takes.

        That is the rest of the current iteration and what the guest has written since it began:
        in iteration 0 nearly all of its memory. `timeout_s` still holds unless it is to be ignored.
        Before memory is sent it means: as soon as it is. Without effect once the guest is paused;
        raises MigrationError, with the VM's owner, from the commit point on and after a failure.
        """
        self._require_changeable()
        self._sending.tuning.ask_to_switch_over()

    def _require_changeable(self) -> None:
        """MigrationError from the commit point or a failure on."""
        if not self._task.done():
            if self._sending.committed:
                raise MigrationError("the VM is changing hands: too late for that", Owner.UNKNOWN)
            if self._sending.failing:
                raise MigrationError("the migration is failing: too late for that", Owner.SOURCE)
            return
        failure = self._task.exception()
        owner = failure.owner if isinstance(failure, MigrationError) else self._task.result().owner
        raise MigrationError("the migration is over: too late for that", owner)


class Reception(Migration):
    """A migration at its destination; listens as long as it lasts. Made by `receive`, of its
    `destination`, `options`, and an address or a `listener`.
    """

    _side = "destination"

    def __init__(
        self,
        destination: Destination,
        address: Address,
        options: ReceiveOptions,
        listener: Listener | None = None,
    ) -> None:
        self._destination = destination
        self._options = options
        self._listener = listener
        self.address = address
        """Where it listens: with the real port, once the context has been entered."""

    async def _begin(self) -> Attempt:
        if self._listener is not None:
            return Receiving(self._destination, self._listener.share(), self._options)
        identity = await destination_identity(self._options.tls_dir, self.address)
        try:
            listener = await self._listen(identity)
        except BaseException:
            if identity is not None:
                identity.close()
            raise
        self.address = listener.address
        return Receiving(self._destination, listener, self._options, identity)

    async def _listen(self, identity: Identity | None) -> Listener:
        within = self._options.deadlines.connect_s
        try:
            async with asyncio.timeout(within):  # a name may have to be looked up
                return await listen(self.address, quick_ack=True, identity=identity)
        except TimeoutError:
            raise MigrationFailed(f"{self.address}: not listening in {within:g} s") from None


def send(source: Source, address: str, options: SendOptions | None = None) -> Departure:
    """Migrate `source` to the destination that listens at `address` (`tcp:host:port`, `unix:path`).

    The migration begins when the context is entered; without `options` it has their defaults.
    UsageError for an address that cannot be
    meant, more than one connection over a unix socket, and memory by descriptor (`local`) over any
    other.
    """
    options = options or SendOptions()
    parsed = _parse(address)
    if isinstance(parsed, UnixAddress) and options.connections > 1:
        raise UsageError("more than one connection needs a tcp address, not a unix socket")
    if options.local and not isinstance(parsed, UnixAddress):
        raise UsageError("memory by descriptor (local) needs a unix socket, not a tcp address")
    return Departure(source, parsed, options)


def receive(
    destination: Destination, address: str | Listener, options: ReceiveOptions | None = None
) -> Reception:
    """Listen at `address` (port 0: any free one) and take the first migration that comes, into
    `destination`; without `options` it has their defaults.

    The listener is there once the context has been entered, and closes when the migration is
    over. A Listener in the place of the address stays open, for one VM after another: whoever
    connects between two of them waits. UsageError for an address that cannot be meant, and for a
    `tls_dir` with a listener.
    """
    if isinstance(address, Listener):
        if options is not None and options.tls_dir is not None:
            raise UsageError(f"{address.address}: tls_dir goes with an address, not a listener")
        return Reception(destination, address.address, options or ReceiveOptions(), address)
    return Reception(destination, _parse(address, listening=True), options or ReceiveOptions())


def _parse(address: str, *, listening: bool = False) -> Address:
    try:
        return parse_address(address, listening=listening)
    except AddressError as error:
        raise UsageError(str(error)) from None
