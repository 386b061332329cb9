"""A process of examples/tiny_vmm, and who reads and types."""

import asyncio
import re
import sys
from pathlib import Path
from typing import Self

__all__ = ["GUEST", "PASS", "Terminal"]

ROOT = Path(__file__).resolve().parents[2]
PASS = 28
"""Ticks for all of the guest's 7 MiB, at 64 pages each."""
GUEST = ("run", "--memory-mib", "8", "--batch", "64", "--tick-ms", "1")


class Terminal:
    """A context manager."""

    def __init__(self, *arguments: str) -> None:
        self.lines: list[str] = []
        self._arguments = arguments
        self._changed = asyncio.Condition()
        self._ended = False

    @property
    def pid(self) -> int:
        return self._process.pid

    async def kill(self) -> None:
        """SIGKILL: returns once it is gone, and all that it wrote is here."""
        self._process.kill()
        await self._process.wait()
        await self._reading

    async def end(self) -> None:
        """End of its input: it ends in good order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._reading
        assert await self._process.wait() == 0

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "examples.tiny_vmm", *self._arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._reading
        await self._process.wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            async with self._changed:
                self.lines.append(line.decode().rstrip("\n"))
                self._changed.notify_all()
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    def type(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())

    async def expect(self, pattern: str, begin: int = 0, count: int = 1) -> re.Match[str]:
        """Wait for the `count`th line that matches, from line number `begin` on."""
        at = begin
        async with self._changed:
            while True:
                for line in self.lines[at:]:
                    at += 1
                    if match := re.match(pattern, line):
                        count -= 1
                        if not count:
                            return match
                assert not self._ended, self.lines[-20:]
                await self._changed.wait()

    def serial(self, begin: int = 0) -> list[str]:
        """What the guest wrote, from line number `begin` on."""
        return [line[2:] for line in self.lines[begin:] if line.startswith("| ")]
