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
        try:
            async with asyncio.timeout(self._within):
                return await hook
        except (GuestNotStarted, MigrationError):
            raise
        except TimeoutError as error:
            reason = f"{what} did not return in {self._within:g} s"
            raise MigrationFailed(f"{self._side}: {reason}") from error
        except Exception as error:
            raise MigrationFailed(f"{self._side}: {what} failed: {error!r}") from error

    async def attempt(self, what: str, hook: Awaitable[None]) -> None:
        """Wait for a hook that must not change the outcome: its failure is a warning."""
        try:
            await self.call(what, hook)
        except (MigrationError, GuestNotStarted) as error:
            self._log.warning("%s failed: %s", what, error, exc_info=error)
            self._warnings.append(f"{what} failed: {error}")
