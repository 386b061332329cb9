"""The receiver's process: who starts it, and what its processes do with their time.

A receiver takes one migration and then listens no more, so that most checks need a fresh one.
`ShellCommand` starts it anew for each check and ends it, with all that it started, before the next.
`Waiting` is a receiver that somebody else started, or keeps starting.
"""

import asyncio
import os
import signal
import tempfile
from contextlib import suppress
from types import TracebackType
from typing import IO, Protocol, Self

from aiomigrate.tasks import outlive

__all__ = ["Launch", "ShellCommand", "Waiting", "cpu_seconds"]

_POLL_S = 0.02
"""Between looks at another program's processes, of whose end no event tells."""
_TERMINATE_S = 5.0
"""For a receiver to end by itself after SIGTERM."""
_LAST_WORDS = 4096
_TICKS = os.sysconf("SC_CLK_TCK")


class Launch(Protocol):
    """Makes a receiver listen."""

    @property
    def fresh(self) -> bool:
        """Whether `start` gives a receiver that nothing has happened to."""
        ...

    async def start(self) -> None:
        """Make it listen, soon; whoever connects waits for that."""
        ...

    def failure(self) -> str:
        """Why it will not listen, if that is known; else nothing. Not on an event loop."""
        ...

    def processes(self) -> list[int]:
        """The receiver's processes, as far as they are known. Reads /proc: not on an event loop."""
        ...


class Waiting:
    """A receiver that listens already; `pid` is its process, if it is on this machine."""

    fresh = False

    def __init__(self, pid: int | None = None) -> None:
        self._pid = pid

    async def start(self) -> None:
        """It is up to somebody else."""

    def failure(self) -> str:
        """Nothing is known of it."""
        return ""

    def processes(self) -> list[int]:
        """The one that was named."""
        return [] if self._pid is None else [self._pid]


class ShellCommand:
    """A receiver that a shell command starts. An async context manager: it ends the last one.

    The command is to stay as long as the receiver lives: it becomes a process group, which is
    ended (SIGTERM, after 5 s SIGKILL) before it runs again. Its output goes to a file without a
    name; the last line is told if it fails.
    """

    fresh = True

    def __init__(self, command: str) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._output: IO[bytes] | None = None

    async def start(self) -> None:
        """End what ran before, and run the command."""
        await self.stop()
        self._output = await asyncio.to_thread(tempfile.TemporaryFile)
        self._process = await asyncio.create_subprocess_shell(
            self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )

    def failure(self) -> str:
        """How the command ended, if it did, and its last line."""
        if self._process is None or self._process.returncode is None or self._output is None:
            return ""
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - _LAST_WORDS))
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        ended = f"the command ended with status {self._process.returncode}"
        return f"{ended}: {lines[-1]}" if lines else ended

    def processes(self) -> list[int]:
        """The process group of the command."""
        return [] if self._process is None else _members(self._process.pid)

    async def stop(self) -> None:
        """End the command with all that it started, also if cancelled meanwhile; idempotent."""
        process, self._process = self._process, None
        output, self._output = self._output, None
        try:
            if process is not None:
                await outlive(self._end(process))
        finally:
            if output is not None:
                output.close()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if not await self._signal(process, signal.SIGTERM):
            await self._signal(process, signal.SIGKILL)

    async def _signal(self, process: asyncio.subprocess.Process, number: int) -> bool:
        """Signal the group; whether all of it has ended in time."""
        try:
            async with asyncio.timeout(_TERMINATE_S):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                await process.wait()
                while await asyncio.to_thread(_members, process.pid):  # noqa: ASYNC110  # see _POLL_S
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            return False
        return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()


def cpu_seconds(processes: list[int]) -> float:
    """User and system time of processes, all threads (proc(5), stat, fields 14 and 15)."""
    ticks = 0
    for pid in processes:
        with suppress(OSError):
            fields = _stat(pid)
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def _members(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                state, _, its_group = _stat(int(name))[:3]
                if state not in "XZ" and int(its_group) == group:
                    found.append(int(name))
    return found


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from its third field on: the second, a name, may hold spaces."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].decode().split()
