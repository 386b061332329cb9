"""`aiomigrate offload snapshot`: VMs that come by descriptor, into directories."""

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiomigrate.cli.offload_socket import listening
from aiomigrate.cli.output import Output, open_output
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
        _check(asked)
        chosen = options()
        load_kernels()
        on_loop(attempt, lambda: _serve(attempt, asked, chosen))
    return attempt.status


def _check(asked: Snapshots) -> None:
    from aiomigrate import UsageError

    parent = os.path.dirname(os.path.abspath(asked.into))
    if not (asked.keep_serving or os.path.isdir(parent)):
        raise UsageError(f"{asked.into}: there is no directory {parent}")


async def _serve(attempt: Attempt, asked: Snapshots, options: "ReceiveOptions") -> None:
    async with listening(asked.address) as listener:
        attempt.output.tell("listening", address=str(listener.address))
        notify("READY=1")
        try:
            if not asked.keep_serving:
                await _take(attempt, asked, asked.into, listener, options)
                return
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
    from aiomigrate.executor import JobExecutor

    try:
        with JobExecutor(1) as jobs:
            into = await jobs.run(_next, attempt.output, asked.into)
        await _take(attempt, asked, into, listener, options)
    except (MigrationCancelled, asyncio.CancelledError):
        if attempt.interrupted and attempt.idle:  # nobody has lost anything
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


def _next(output: Output, directory: str) -> str:
    """Where the next VM goes. A disk that does not let us do that is for who brings one to know:
    then, too, there is an answer, and it may have been mended until then.
    """
    numbers = [0]
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        found = (_NAME.fullmatch(name) for name in os.listdir(directory))
        numbers += [int(match[1]) for match in found if match]
    except OSError as error:
        output.say(f"{directory}: {error.strerror}; who brings a VM will be refused")
    return os.path.join(directory, f"vm-{max(numbers) + 1}")


async def _take(
    attempt: Attempt,
    asked: Snapshots,
    into: str,
    listener: "Listener",
    options: "ReceiveOptions",
) -> None:
    from aiomigrate import StoredDestination

    notify(f"STATUS=waiting for a VM, which goes into {into}")
    destination = StoredDestination(
        into, compressed=asked.compressed, workers=asked.workers, when_it_comes=True
    )
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
