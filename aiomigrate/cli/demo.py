"""`aiomigrate demo`: a running guest moves between two real processes while a person watches.

Each process is a tiny VMM (`demo_machine`); they talk over the loopback interface, and all that the
demo knows of them are the JSON lines that they print. The guest runs on /dev/kvm where that can be
used, else as a thread. It checks its own memory all the time: after the migration the demo waits
until it has looked at every page, and tells what it says.
"""

import asyncio
import json
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

from aiomigrate.cli.demo_view import DemoView, JsonDemo, open_view
from aiomigrate.cli.sentences import downtime_sentence, limit_sentence, report_sentence
from aiomigrate.cli.status import ExitStatus
from aiomigrate.cli.text import parse_size, rate_text, size_text, time_text
from aiomigrate.tasks import root_cause

__all__ = ["run"]

_MIB = 1 << 20
_MIN_BYTES = 16 * _MIB
_MAX_BYTES = 1024 * _MIB
"""What a tiny VMM has a place for."""
_SPARE_BYTES = 512 * _MIB
"""For two interpreters, and for whoever else is there."""
_MACHINE = (sys.executable, "-m", "aiomigrate.cli.demo_machine")
_WARM_UP = (sys.executable, "-m", "aiomigrate.cli", "warm-up")
_LINE_BYTES = 2 << 20
"""The longest JSON line: a report whose history has the rates of 128 connections."""


class _DemoFailed(Exception):
    """One sentence for the person who watches."""


def run(
    size_option: str, connections: int, rate_limit_option: str = "0", *, as_json: bool = False
) -> ExitStatus:
    """Boot, move, and have the guest judge."""
    from aiomigrate.errors import UsageError
    from aiomigrate.options import SendOptions

    try:
        size = parse_size(size_option)
    except ValueError as error:
        return _complain(f"--size: {error}", ExitStatus.USAGE)
    try:
        rate_limit = SendOptions(rate_limit=parse_size(rate_limit_option)).rate_limit
    except (ValueError, UsageError) as error:
        return _complain(f"--rate-limit: {error}", ExitStatus.USAGE)
    if not _MIN_BYTES <= size <= _MAX_BYTES or size % _MIB:
        bounds = f"{size_text(_MIN_BYTES)} to {size_text(_MAX_BYTES)}"
        return _complain(f"--size must be {bounds}, in whole MiB", ExitStatus.USAGE)
    # The same way as for SIGINT: whatever ends the demo, it ends its processes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sides = {"source": "source", "destination": "destination"}
    view = JsonDemo() if as_json else open_view(sides, size)
    try:
        _expect_room(size)
        asyncio.run(_demonstrate(view, size, connections, rate_limit))
    except KeyboardInterrupt:
        return _complain("the demo was cancelled, and has cleaned up", ExitStatus.CANCELLED)
    except (_DemoFailed, OSError) as error:
        return _complain(f"the demo failed: {error}", ExitStatus.FAILED)
    return ExitStatus.DONE


def _complain(sentence: str, status: ExitStatus) -> ExitStatus:
    print(f"aiomigrate: {sentence}", file=sys.stderr)
    return status


def _available_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return sys.maxsize


def _expect_room(size: int) -> None:
    needed, available = 2 * size + _SPARE_BYTES, _available_bytes()
    if available < needed:
        raise _DemoFailed(
            f"{size_text(available)} of memory are available and {size_text(needed)} are needed: "
            "choose a smaller --size"
        )


async def _demonstrate(view: DemoView, size: int, connections: int, rate_limit: int) -> None:
    from aiomigrate.cli.demo_machine import BATCH_PAGES, FIRST_BYTE, TICK_S
    from aiomigrate.tiny_vmm.guest import PAGE
    from aiomigrate.tiny_vmm.kvm import why_unusable

    no_kvm = why_unusable()
    pages = (size - FIRST_BYTE) // PAGE
    whole_pass = -(-pages // BATCH_PAGES) + 1
    view.say(f"A running guest of {size_text(size)} moves between two processes.", "bold")
    view.say()
    began = time.monotonic()
    async with _started(*_WARM_UP) as warming:
        await warming.communicate()
    view.say(f"1. Kernels are compiled and cached; {time_text(time.monotonic() - began)}")
    async with (
        _started(*_MACHINE, "boot", str(size), "thread" if no_kvm else "kvm") as source,
        _started(*_MACHINE, "receive", "tcp:127.0.0.1:0") as destination,
    ):
        here, there = _Side(view, "source", source), _Side(view, "destination", destination)
        running = await here.until("running")
        how = f"as a thread, without KVM ({no_kvm})" if no_kvm else "on /dev/kvm"
        view.say(f"2. Process {running['pid']} runs the guest, {how}. It writes up to")
        view.say(
            f"   {rate_text(BATCH_PAGES * PAGE / TICK_S)}, checks what it wrote before, and counts"
        )
        await here.count(whole_pass)
        listening = await there.until("listening")
        view.say(f"3. Process {listening['pid']} waits for it at {listening['address']}")
        here.tell(f"{listening['address']} {connections} {rate_limit}")
        with view:
            sent, _ = await _both(here.until("report"), there.until("report"))
            view.say("4. It runs there: until it has looked at each of its pages, it may complain")
            await there.count(whole_pass)
    if there.first != here.last + 1:
        raise _DemoFailed(
            f"the guest counted to {here.last} at the source and went on with {there.first}"
        )
    view.say()
    view.say(f"Moved {report_sentence(sent)}.", "bold green")
    view.say(f"   {downtime_sentence(sent['downtime'])}.")
    if sent["limited_by"]:
        view.say(f"   {limit_sentence(sent['limited_by'])}.")
    view.say(f"   Process {listening['pid']} has the guest, which has run there ever since.")
    view.say(f"   It had counted to {here.last:,}, and went on with {there.first:,}.")
    view.say(
        f"   It has looked at each of its {pages:,} pages there, and all are as they were left."
    )
    view.report({"summary": "the demo's guest, which runs there", "status": 0, **sent})


class _Side:
    """One of the processes, as its JSON lines tell of it."""

    def __init__(self, view: DemoView, name: str, process: Process) -> None:
        self._view = view
        self._name = name
        self._process = process
        self.first = self.last = 0
        """What its guest has counted from and to."""

    def tell(self, command: str) -> None:
        """A line for its input."""
        # PIPE was asked for.
        cast("asyncio.StreamWriter", self._process.stdin).write(f"{command}\n".encode())

    async def until(self, name: str) -> Mapping[str, Any]:
        """Wait for an event of this name."""
        while (event := await self._next())["event"] != name:
            pass
        return event

    async def count(self, ticks: int) -> None:
        """Wait until its guest has counted so far from where it began here."""
        while not self.first or self.last < self.first + ticks:
            await self._next()

    async def _next(self) -> Mapping[str, Any]:
        line = await cast("asyncio.StreamReader", self._process.stdout).readline()
        if not line:
            raise _DemoFailed(f"the {self._name}'s process ended with {await self._process.wait()}")
        event: Mapping[str, Any] = json.loads(line)
        match event:
            case {"event": "error", "error": error}:
                raise _DemoFailed(f"the {self._name}: {error}")
            case {"event": "ended", "how": how}:
                raise _DemoFailed(f"the guest has ended at the {self._name}: {how}")
            case {"event": "progress"}:
                self._view.progress(self._name, event)
            case {"event": "serial", "line": line}:
                self._hear(line)
        return event

    def _hear(self, line: str) -> None:
        """What the guest writes: once that it has booted, and then a number a tick."""
        if line == "booted":
            return
        try:
            number = int(line, 16)
        except ValueError:
            raise _DemoFailed(f"the guest says at the {self._name}: {line}") from None
        if self.last and number != self.last + 1:
            raise _DemoFailed(f"the guest at the {self._name} counted {self.last}, then {number}")
        self.first = self.first or number
        self.last = number
        self._view.count(self._name, number)


async def _both(
    *waits: Coroutine[Any, Any, Mapping[str, Any]],
) -> list[Mapping[str, Any]]:
    """What they give; the first error of any."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(wait) for wait in waits]
    except BaseExceptionGroup as errors:
        raise root_cause(errors) from None
    return [task.result() for task in tasks]


@asynccontextmanager
async def _started(*command: str) -> AsyncIterator[Process]:
    """A process; leaving the context ends it, in good order if it can be."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=_LINE_BYTES
    )
    try:
        yield process
    except BaseException:
        if process.returncode is None:
            process.terminate()
        raise
    finally:
        # PIPE was asked for. The end of its input ends it.
        cast("asyncio.StreamWriter", process.stdin).close()
        # Reads what is left: a process that cannot print does not end.
        await process.communicate()
