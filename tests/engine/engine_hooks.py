"""What hooks do in tests (`Guest.script`, `Landing.script`), and options for what then fails."""

import asyncio
from collections.abc import Callable

from aiomigrate import Deadlines, ReceiveOptions, SendOptions

__all__ = ["BRIEF", "HASTY", "cancelled_from_within", "fails"]

# Where nobody will ask who owns the VM.
BRIEF = ReceiveOptions(linger_s=0.05)
# Where nobody will answer that.
HASTY = SendOptions(deadlines=Deadlines(settle_s=0.05))


def fails(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


async def cancelled_from_within() -> None:
    """As a hook meets it whose own machinery was shut down: nobody cancels the migration."""
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()
    await task
