"""`aiomigrate demo`: a VM moves between two real processes while a person watches.

The two are `aiomigrate receive` and `aiomigrate send`, talking over the loopback interface; all
that the demo knows of them are the JSON lines that they print. At the end it compares what the
disk holds on both sides, and leaves nothing behind.
"""

import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from aiomigrate.cli import demo_vm
from aiomigrate.cli.demo_view import DemoView, open_view
from aiomigrate.cli.live import report_sentence
from aiomigrate.cli.status import ExitStatus
from aiomigrate.cli.text import parse_size, size_text, time_text
from aiomigrate.tasks import root_cause

__all__ = ["run"]

_PROGRAM = (sys.executable, "-m", "aiomigrate.cli")
_LINE_BYTES = 1 << 20
"""The longest JSON line: 128 connections take about 10 KiB."""
_SIDES = {"source": "source: aiomigrate send", "destination": "destination: aiomigrate receive"}


class _DemoFailed(Exception):
    """One sentence for the person who watches."""


def run(size_option: str, connections: int) -> ExitStatus:
    """Make, move, compare, clean up."""
    try:
        size = parse_size(size_option)
    except ValueError as error:
        return _complain(f"--size: {error}", ExitStatus.USAGE)
    if size < demo_vm.MIN_BYTES or size % demo_vm.MIN_BYTES:
        unit = size_text(demo_vm.MIN_BYTES)
        return _complain(f"--size must be a multiple of {unit}", ExitStatus.USAGE)
    # The same way as for SIGINT: whatever ends the demo, it cleans up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    view = open_view(_SIDES, demo_vm.content_bytes(size))
    try:
        _expect_room(size)
        with tempfile.TemporaryDirectory(prefix="aiomigrate-demo-") as directory:
            equal = _demonstrate(view, Path(directory), size, connections)
    except KeyboardInterrupt:
        return _complain("the demo was cancelled, and has cleaned up", ExitStatus.CANCELLED)
    except _DemoFailed as error:
        return _complain(f"the demo failed: {error}", ExitStatus.FAILED)
    except OSError as error:
        return _complain(f"the demo failed: {error}", ExitStatus.FAILED)
    view.say(f"   {directory} is removed again.", "dim")
    return ExitStatus.DONE if equal else ExitStatus.FAILED


def _complain(sentence: str, status: ExitStatus) -> ExitStatus:
    print(f"aiomigrate: {sentence}", file=sys.stderr)
    return status


def _expect_room(size: int) -> None:
    """Both sides' content, and a little for the rest."""
    where = tempfile.gettempdir()
    needed = 2 * demo_vm.content_bytes(size) + (64 << 20)
    free = shutil.disk_usage(where).free
    if free < needed:
        raise _DemoFailed(
            f"{where} has {size_text(free)} free and {size_text(needed)} are needed: set TMPDIR to "
            "a directory with more room, or choose a smaller --size"
        )


def _demonstrate(view: DemoView, directory: Path, size: int, connections: int) -> bool:
    content = demo_vm.content_bytes(size)
    view.say(f"A virtual machine of {size_text(size)} moves between two processes.", "bold")
    view.say()
    source, destination = directory / "source", directory / "destination"
    began = time.monotonic()
    demo_vm.make(source, size)
    view.say(
        f"1. Made a stored VM in {source}: {size_text(size - content)} zeros (as holes), "
        f"{size_text(content / 2)} random, {size_text(content / 2)} compressible; "
        f"{time_text(time.monotonic() - began)}"
    )
    reports = asyncio.run(_move(view, source, destination, connections))
    view.say(f"4. Comparing checksums of the memory in {source.name}/ and {destination.name}/")
    before, after = demo_vm.checksums(source, size), demo_vm.checksums(destination, size)
    for name, value in before.items():
        equal = value == after[name]
        view.say(f"   {name}  {value}  {'equal' if equal else f'DIFFERENT: {after[name]}'}")
    view.say()
    if before != after:
        view.say("The memory differs: that must not happen.", "bold red")
        return False
    sent = reports["source"]
    view.say(f"Moved {report_sentence(sent)}.", "bold green")
    view.say(
        f"   The memory is the same on both sides; of {size_text(size)}, "
        f"{size_text(size - sent['bytes'])} were holes and did not travel."
    )
    view.say(f"   The VM is now in {destination}, paused and durable on disk.")
    view.say(f"   {source} has noted that it was given away: it would not be sent twice.")
    return True


async def _move(
    view: DemoView, source: Path, destination: Path, connections: int
) -> Mapping[str, Mapping[str, Any]]:
    """The reports of both processes, by side."""
    began = time.monotonic()
    async with _started("warm-up") as warming:
        await warming.communicate()
    view.say(f"2. Kernels are compiled and cached; {time_text(time.monotonic() - began)}")
    receiving = _started("receive", "tcp:127.0.0.1:0", "--into", str(destination))
    async with receiving as receiver:
        address = await _address(receiver)
        view.say(f"3. aiomigrate receive listens on {address}; aiomigrate send connects to it")
        sending = _started("send", str(source), address, "--connections", str(connections))
        async with sending as sender:
            with view:
                return await _watch_both(view, {"source": sender, "destination": receiver})


async def _watch_both(
    view: DemoView, processes: Mapping[str, Process]
) -> Mapping[str, Mapping[str, Any]]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {
                side: group.create_task(_watch(view, side, process))
                for side, process in processes.items()
            }
    except BaseExceptionGroup as errors:
        raise root_cause(errors) from None
    return {side: task.result() for side, task in tasks.items()}


@asynccontextmanager
async def _started(command: str, *arguments: str) -> AsyncIterator[Process]:
    """A process of the command line; leaving the context ends it, in good order if it can be."""
    progress = () if command == "warm-up" else ("--progress", "json")
    # What they tell people is in the JSON lines, too; twice would be too much.
    process = await asyncio.create_subprocess_exec(
        *_PROGRAM, command, *arguments, *progress, stdout=PIPE, stderr=DEVNULL, limit=_LINE_BYTES
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        # Reads what is left: a process that cannot print does not end.
        await process.communicate()


async def _events(process: Process) -> AsyncIterator[Mapping[str, Any]]:
    # PIPE was asked for.
    async for line in cast("asyncio.StreamReader", process.stdout):
        event: Mapping[str, Any] = json.loads(line)
        if event["event"] == "error":
            raise _DemoFailed(event["error"])
        yield event


async def _address(process: Process) -> str:
    async for event in _events(process):
        if event["event"] == "listening":
            return str(event["address"])
    raise _DemoFailed("the receiving process ended before it listened")


async def _watch(view: DemoView, side: str, process: Process) -> Mapping[str, Any]:
    """Show the progress of one process until it ends; its report."""
    report: Mapping[str, Any] | None = None
    async for event in _events(process):
        if event["event"] == "progress":
            view.progress(side, event)
        elif event["event"] == "report":
            report = event
    status = await process.wait()
    if report is None or status:
        raise _DemoFailed(
            f"the {side} ended with status {status} and without a report; try them by hand"
        )
    return report
