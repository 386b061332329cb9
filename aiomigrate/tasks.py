"""Structured concurrency where cancellation must wait for something."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["cause_of", "outlive", "root_cause", "settle"]

T = TypeVar("T")


async def settle(future: asyncio.Future[Any]) -> bool:
    """Wait until `future` is done, however often the caller is cancelled; whether it was."""
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
    return cancelled


async def outlive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` to its end even if the caller is cancelled, which is then raised.

    Its own exception comes first. The coroutine must end by itself: it carries deadlines.
    """
    task = asyncio.create_task(coroutine)
    cancelled = await settle(task)
    result = task.result()
    if cancelled:
        raise asyncio.CancelledError
    return result


def root_cause(error: BaseException) -> BaseException:
    """The first error in nested groups: what made the others end."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def cause_of(failure: BaseException, error: BaseException) -> BaseException | None:
    """What to raise `failure` from after `error`: nothing is the cause of itself."""
    return failure.__cause__ if failure is error else error
