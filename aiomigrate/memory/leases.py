"""Mapped memory, and who may be touching it.

System calls and kernels work on bare host addresses, without the GIL and in other threads, so a
mapping must outlive them all: each of them runs under a *lease*, and memory is unmapped only when
no lease is held. `aclose` refuses new leases at once and unmaps when the last one ends, in a thread
of its own (unmapping much memory takes long), even if the waiting task is cancelled.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from aiomigrate.memory.errors import GuestMemoryBusyError, GuestMemoryClaimedError
from aiomigrate.memory.regions import Region, release

__all__ = ["Leased"]


class Leased:
    """Regions that stay mapped as long as a lease is held; closed by `close` or `aclose`."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self._regions = list(regions)
        self._changed = threading.Condition()
        self._leases = 0
        self.claimed = False
        """Whether a migration sends it away."""
        self._closing: Future[None] | None = None

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep the memory mapped for a system call or kernel, in any thread; ValueError once
        closing has begun.
        """
        with self._changed:
            if self._closing is not None:
                raise ValueError("guest memory is closed")
            self._leases += 1
        try:
            yield
        finally:
            with self._changed:
                self._leases -= 1
                self._changed.notify_all()

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Lease the memory to a migration that sends it away; GuestMemoryClaimedError while another
        one has it.
        """
        with self.lease():
            with self._changed:
                if self.claimed:
                    nbytes = sum(region.mapping.size for region in self._regions)
                    raise GuestMemoryClaimedError(nbytes)
                self.claimed = True
            try:
                yield
            finally:
                self.claimed = False

    def close(self) -> None:
        """Unmap; GuestMemoryBusyError if a lease is held. Does nothing when closed or closing."""
        with self._changed:
            if self._closing is not None:
                return
            if self._leases:
                raise GuestMemoryBusyError(self._leases)
            self._closing = Future()
        self._finish(self._closing)
        self._closing.result()

    async def aclose(self) -> None:
        """Refuse new leases, wait for those that are held, unmap.

        Idempotent; all calls wait for the same end.

        Cancelling ends the waiting only: the memory is unmapped all the same when the last lease
        ends.
        """
        with self._changed:
            starts = self._closing is None
            if self._closing is None:
                self._closing = Future()
                # So that a cancelled waiter cannot cancel it.
                self._closing.set_running_or_notify_cancel()
            closing = self._closing
        if starts:
            threading.Thread(target=self._finish, args=(closing,), name="aiomigrate-unmap").start()
        await asyncio.wrap_future(closing)

    def _finish(self, closing: Future[None]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._leases == 0)
        try:
            release(self._regions)
        except BaseException as error:
            closing.set_exception(error)
        else:
            closing.set_result(None)

    def __del__(self) -> None:
        if self._closing is None:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=1)
            release(self._regions)
