"""`aiomigrate offload snapshot`: VMs that come by descriptor, into directories."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiomigrate.cli.offload_socket import listening
from aiomigrate.cli.output import open_output
from aiomigrate.cli.receive import take
from aiomigrate.cli.running import Attempt, Settings, attempting, load_kernels, on_loop
from aiomigrate.cli.status import ExitStatus, sentence_of, status_of
from aiomigrate.cli.systemd import notify

if TYPE_CHECKING:
    from aiomigrate import ReceiveOptions, StoredDestination
    from aiomigrate.transport import Listener

__all__ = ["Snapshots", "run"]

_NAME = re.compile(r"vm-(\d+)")
_ALMOST = 0.99


@dataclass(frozen=True, slots=True)
class Snapshots:
    """What is asked for."""

    address: str
    into: str
    keep_serving: bool
    compressed: bool
    workers: int


def run(
    asked: Snapshots, options: Callable[[], "ReceiveOptions"], settings: Settings
) -> ExitStatus:
    """Take one VM, or one after the other. `options` may raise a UsageError."""
    settings.configure_logs()
    output = open_output(settings.progress, f"snapshot into {asked.into}")
    with attempting(output, settings) as attempt:
        chosen = options()
        load_kernels()
        on_loop(attempt, lambda: _serve(attempt, asked, chosen))
    return attempt.status


async def _serve(attempt: Attempt, asked: Snapshots, options: "ReceiveOptions") -> None:
    async with listening(asked.address) as listener:
        attempt.output.tell("listening", address=str(listener.address))
        notify("READY=1")
        try:
            if not asked.keep_serving:
                await _take(attempt, asked, asked.into, listener, options)
                return
            os.makedirs(asked.into, mode=0o700, exist_ok=True)
            while await _take_next(attempt, asked, listener, options):
                pass
        finally:
            notify("STOPPING=1")


async def _take_next(
    attempt: Attempt, asked: Snapshots, listener: "Listener", options: "ReceiveOptions"
) -> bool:
    """Take a VM into a directory of its own; what goes wrong with it does not end the service.
    Whether to go on.
    """
    from aiomigrate import MigrationCancelled, MigrationError

    into = os.path.join(asked.into, f"vm-{_last(asked.into) + 1}")
    try:
        await _take(attempt, asked, into, listener, options)
    except MigrationCancelled:
        if attempt.idle:  # nobody has lost anything
            return False
        raise
    except MigrationError as error:
        attempt.output.tell(
            "error",
            error=sentence_of(error),
            owner=str(error.owner),
            status=int(status_of(error, begun=True)),
        )
        attempt.output.say(sentence_of(error))
    attempt.rest()
    return not attempt.interrupted


def _last(directory: str) -> int:
    """The highest number of a VM there."""
    found = (_NAME.fullmatch(name) for name in os.listdir(directory))
    return max((int(match[1]) for match in found if match), default=0)


async def _take(
    attempt: Attempt,
    asked: Snapshots,
    into: str,
    listener: "Listener",
    options: "ReceiveOptions",
) -> None:
    from aiomigrate import StoredDestination

    notify(f"STATUS=waiting for a VM, which goes into {into}")
    destination = StoredDestination(into, compressed=asked.compressed, workers=asked.workers)
    await take(attempt, listener, destination, into, options, lambda event: _of(destination, event))


def _of(destination: "StoredDestination", event: dict[str, Any]) -> dict[str, Any]:
    """Progress with what the directory got: the engine moves no memory that is by descriptor."""
    done = destination.copied_bytes
    expected = max(done, destination.expected_bytes)
    amended: dict[str, Any] = {
        "bytes_done": done,
        "iteration_bytes_done": done,
        "iteration_bytes": expected,
    }
    if expected and event["phase"] != "done":
        amended["fraction"] = min(_ALMOST, done / expected)
    return event | amended if expected else event
