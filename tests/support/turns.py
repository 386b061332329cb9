"""Waiting in turns of the loop: no time passes, on whichever clock it runs."""

import asyncio
from collections.abc import Callable

__all__ = ["turns", "until"]


async def turns(count: int = 50) -> None:
    """Let everything go on that can without a timer; `count` is far more than any of it takes."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Let others run until this holds: for what nobody tells of. The test's limit ends it."""
    while not condition():
        await asyncio.sleep(0)
