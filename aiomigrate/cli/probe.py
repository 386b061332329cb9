"""`aiomigrate probe`: what a receiver does with everything that a sender can do, as a table."""

import asyncio
import json
import signal
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Self, cast

from rich.console import Console
from rich.text import Text

from aiomigrate.cli.status import ExitStatus
from aiomigrate.cli.text import one_line, time_text
from aiomigrate.credentials import source_identity
from aiomigrate.errors import UsageError
from aiomigrate.probing import (
    CannotProbe,
    Check,
    ProbeVm,
    Result,
    ShellCommand,
    Verdict,
    Waiting,
    plan,
    probe,
)
from aiomigrate.transport import Address, AddressError, parse_address

__all__ = ["WARNING", "Probing", "run"]

WARNING = (
    "Point it only at a receiver that may be lost. It never sends Complete, but it breaks "
    "off every migration that it begins, and the receiver may hang, crash or keep a paused VM."
)
_STYLES = {
    Verdict.OK: "green",
    Verdict.FINDING: "bold red",
    Verdict.NOTE: "cyan",
    Verdict.NOT_RUN: "yellow",
}


@dataclass(frozen=True, slots=True)
class Probing:
    """What the command was told."""

    address: str
    command: str | None
    pid: int | None
    vm: str | None
    only: Sequence[str]
    patience_s: float
    as_json: bool
    tls_dir: str | None = None


def run(told: Probing) -> ExitStatus:
    """Run all checks and print what came of them."""
    import uvloop

    try:
        address = parse_address(told.address)
        if told.command is not None and told.pid is not None:
            raise UsageError("--pid is for a receiver that --command does not start")
        checks = plan(address, told.only)
        if not checks:
            raise UsageError(f"no check begins with {' or '.join(told.only)}")
        vm = ProbeVm.built_in() if told.vm is None else ProbeVm.stored(told.vm)
        print(f"aiomigrate: probing {address}. {WARNING}", file=sys.stderr, flush=True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            results = runner.run(_probe(told, address, checks, vm))
    except (AddressError, UsageError, CannotProbe) as error:
        print(f"aiomigrate: {one_line(str(error))}", file=sys.stderr)
        return ExitStatus.USAGE
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("aiomigrate: cancelled", file=sys.stderr)
        return ExitStatus.CANCELLED
    counts = Counter(result.seen.verdict for result in results)
    if told.as_json:
        print(json.dumps(_document(told, results, counts), indent=2))
    else:
        _sum_up(told, counts)
    good = not counts[Verdict.FINDING] and not counts[Verdict.NOT_RUN]
    return ExitStatus.DONE if good else ExitStatus.FAILED


async def _probe(
    told: Probing, address: Address, checks: Sequence[Check], vm: ProbeVm
) -> list[Result]:
    loop = asyncio.get_running_loop()
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    # SIGINT too: Runner leaves one alone that was ignored when we were started.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    table = None if told.as_json else _Table(checks)
    results = []
    identity = await source_identity(told.tls_dir, address)
    async with AsyncExitStack() as stack:
        if identity is not None:
            stack.callback(identity.close)
        if table is not None:
            stack.enter_context(table)
        launch: ShellCommand | Waiting = Waiting(told.pid)
        if told.command is not None:
            launch = await stack.enter_async_context(ShellCommand(told.command))
        running = cast(
            "AsyncIterator[Result]",
            await stack.enter_async_context(
                aclosing(probe(address, checks, vm, launch, told.patience_s, identity))
            ),
        )
        async for result in running:
            results.append(result)
            if table is not None:
                table.add(result)
    return results


class _Table:
    """A line a check as it comes: some take a minute. Not run for one reason: told once."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._width = max(len(check.name) for check in checks)
        self._left = deque(check.name for check in checks)
        self._last = ""
        self._status = self._console.status(self._left.popleft())

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def add(self, result: Result) -> None:
        """Print it, and say what comes next."""
        check, seen = result.check, result.seen
        text = one_line(seen.text)
        line = Text(f"{seen.verdict.value:9}", _STYLES[seen.verdict])
        line.append(f"{check.name:{self._width}}  ", "bold")
        line.append(f"{time_text(result.seconds):>7}  ", "dim")
        line.append(
            '"' if text == self._last and seen.verdict is Verdict.NOT_RUN else text, "default"
        )
        self._console.print(line)
        if seen.verdict is Verdict.FINDING:
            indent = " " * (9 + self._width + 2 + 7 + 2)
            self._console.print(Text(f"{indent}→ wanted: {check.wants}", "dim"))
        self._last = text
        if self._left:
            self._status.update(self._left.popleft())


def _sum_up(told: Probing, counts: Counter[Verdict]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    said = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
    bad = counts[Verdict.FINDING] or counts[Verdict.NOT_RUN]
    console.print()
    console.print(Text(said, "bold red" if bad else "green"))
    if counts[Verdict.NOT_RUN] and told.command is None:
        console.print(Text("→ --command starts a fresh receiver for each check"))


def _document(told: Probing, results: list[Result], counts: Counter[Verdict]) -> dict[str, Any]:
    return {
        "address": told.address,
        "patience_s": told.patience_s,
        "counts": {verdict.value: counts[verdict] for verdict in Verdict},
        "checks": [
            {
                "name": result.check.name,
                "wants": result.check.wants,
                "source": result.check.source,
                "verdict": result.seen.verdict.value,
                "seen": result.seen.text,
                "seconds": round(result.seconds, 3),
            }
            for result in results
        ],
    }
