"""A process that takes a VM into a directory, and is killed at a chosen moment of that."""

import asyncio
import os
import signal
from collections.abc import Callable
from multiprocessing.synchronize import Event
from typing import Any

import aiomigrate
from aiomigrate import Extension, ReceiveOptions, StoredDestination
from aiomigrate.memory import directory

__all__ = ["take_and_die"]


def take_and_die(left: int, into: str, address: str, listening: Event) -> None:
    """Take a VM, and be killed before the `left`-th thing that is written, synced or renamed."""

    def strikes(call: Callable[..., Any]) -> Callable[..., Any]:
        def struck(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        return struck

    os.fsync = strikes(os.fsync)
    directory.rename_new = strikes(directory.rename_new)
    directory.write_all = strikes(directory.write_all)
    asyncio.run(_take(into, address, listening))


async def _take(into: str, address: str, listening: Event) -> None:
    options = ReceiveOptions(extensions=Extension.NONE)
    async with (
        StoredDestination(into) as destination,
        aiomigrate.receive(destination, address, options) as reception,
    ):
        listening.set()
        await reception.result()
