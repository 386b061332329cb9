"""`aiomigrate receive`: a VM from Cloud Hypervisor or aiomigrate, into a directory."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiomigrate.cli.output import open_output
from aiomigrate.cli.running import Attempt, Settings, attempting, follow, load_kernels, on_loop
from aiomigrate.cli.status import ExitStatus
from aiomigrate.cli.text import one_line

if TYPE_CHECKING:
    from aiomigrate import ReceiveOptions, StoredDestination
    from aiomigrate.transport import Listener

__all__ = ["DISK_S", "run", "take"]

DISK_S = 86400.0
"""For a disk to take a VM: the source waits, and whoever watches can cancel until Complete."""


def run(
    address: str, into: str, options: Callable[[], "ReceiveOptions"], settings: Settings
) -> ExitStatus:
    """Receive one VM. `options` may raise a UsageError."""
    settings.configure_logs()
    output = open_output(settings.progress, f"receive into {into}")
    with attempting(output, settings) as attempt:
        chosen = options()
        load_kernels()
        on_loop(attempt, lambda: _receive(attempt, address, into, chosen))
    return attempt.status


async def _receive(attempt: Attempt, address: str, into: str, options: "ReceiveOptions") -> None:
    from aiomigrate import StoredDestination

    await take(attempt, address, StoredDestination(into), into, options)


async def take(
    attempt: Attempt,
    address: "str | Listener",
    destination: "StoredDestination",
    into: str,
    options: "ReceiveOptions",
    amended: Callable[[dict[str, Any]], dict[str, Any]] = lambda event: event,
) -> None:
    """Take a VM into a directory, and tell how it went; `amended` as in `follow`."""
    from aiomigrate import StoredVmError, receive

    output = attempt.output
    report = None
    try:
        async with destination, receive(destination, address, options) as migration:
            attempt.watch(migration)
            if isinstance(address, str):
                output.tell("listening", address=str(migration.address))
            report = await follow(migration, output, amended)
    except (StoredVmError, asyncio.CancelledError) as error:
        # The VM is here, whatever its checksums met.
        if report is None:
            raise
        output.say(one_line(f"stored without checksums: {error!r}"))
    if not report.confirmed:
        attempt.status = ExitStatus.UNKNOWN
        output.say(
            f"the VM is in {into}, but its source did not confirm that it knows: see that it does "
            "not run there before sending it on with --force"
        )
    output.tell(
        "report",
        summary=f"received into {into}, {'it ran' if report.running else 'paused'}",
        path=into,
        status=int(attempt.status),
        **(report.as_dict() | {"bytes": report.bytes + destination.copied_bytes}),
    )
