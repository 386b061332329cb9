"""What tests of stalled peers have in common: the limits of `Deadlines`' defaults, in seconds."""

import asyncio
import contextlib
from pathlib import Path

from tests.support.hostile import Raw

__all__ = [
    "ANSWER",
    "HEADER",
    "IDLE",
    "LOCAL",
    "NO_MEMORY_ANSWER",
    "PACE",
    "Watch",
    "drip",
    "exactly",
    "files_in",
]

LOCAL = "tcp:127.0.0.1:0"
HEADER, PACE, ANSWER = 10, 30, 300
# Silence is looked for four times in its limit: it is known to a quarter.
IDLE = (300, 375)
NO_MEMORY_ANSWER = (30, 37.5)


def exactly(seconds: float) -> tuple[float, float]:
    return (seconds, seconds + 0.001)


class Watch:
    """Seconds of the loop's clock."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    @property
    def seconds(self) -> float:
        return self._loop.time() - self._began

    def restart(self) -> None:
        self._began = self._loop.time()

    def took(self, limits: tuple[float, float]) -> None:
        assert limits[0] - 1e-6 <= self.seconds <= limits[1] + 1e-3, self.seconds


async def drip(raw: Raw, data: bytes, every: float) -> None:
    with contextlib.suppress(OSError):
        for byte in data:
            await raw.send(bytes([byte]))
            await asyncio.sleep(every)


def files_in(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}
