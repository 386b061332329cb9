"""Calls into the embedder's VMM: each with a deadline, each error named."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import TypeVar

from aiomigrate.errors import GuestNotStarted, MigrationError, MigrationFailed

__all__ = ["Hooks"]

T = TypeVar("T")


class Hooks:
    """Calls the hooks of one side, `source` or `destination`."""

    def __init__(self, side: str, within: float, warnings: list[str]) -> None:
        self._side = side
        self._within = within
        self._warnings = warnings
        self._log = logging.getLogger(f"aiomigrate.{side}")

    async def call(self, what: str, hook: Awaitable[T]) -> T:
        """Wait for a hook. MigrationFailed if it fails or does not return in time."""
        limit = asyncio.timeout(self._within)
        try:
            async with limit:
                return await hook
        except (GuestNotStarted, MigrationError):
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled us: a task that the hook waited for was.
            raise MigrationFailed(f"{self._side}: {what} was cancelled from within") from error
        except Exception as error:
            # Not every TimeoutError is ours: the hook may have met one of its own.
            late = f"did not return in {self._within:g} s" if limit.expired() else ""
            why = late or f"failed: {error!r}"
            raise MigrationFailed(f"{self._side}: {what} {why}") from error

    async def attempt(self, what: str, hook: Awaitable[None]) -> str:
        """Wait for a hook that must not raise: what went wrong, or nothing; a warning, too."""
        try:
            await self.call(what, hook)
        except (MigrationError, GuestNotStarted) as error:
            self._log.warning("%s failed: %s", what, error, exc_info=error)
            why = (
                error.what
                if isinstance(error, MigrationError)
                else f"{self._side}: {what} failed: {error}"
            )
            self._warnings.append(why)
            return why
        return ""
