"""How long callbacks hold up an asyncio event loop: wall time and thread CPU time of each.

asyncio's own loop runs each callback through `Handle._run`; this wraps it. uvloop has no such
place, but runs the same callbacks.
"""

import asyncio
import time
from types import TracebackType
from typing import Self

import numpy as np


class CallbackMeter:
    """Measures every callback of every asyncio loop of this process while entered."""

    def __init__(self) -> None:
        self._wall: list[float] = []
        self._cpu: list[float] = []

    def __enter__(self) -> Self:
        original = self._original = asyncio.Handle._run  # noqa: SLF001  # the one place there is
        wall, cpu = self._wall, self._cpu

        def measured(self: asyncio.Handle) -> None:
            began, worked = time.perf_counter(), time.thread_time()
            original(self)
            wall.append(time.perf_counter() - began)
            cpu.append(time.thread_time() - worked)

        asyncio.Handle._run = measured  # type: ignore[method-assign]  # noqa: SLF001  # see above
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.Handle._run = self._original  # type: ignore[method-assign]  # noqa: SLF001  # undone

    def figures(self) -> dict[str, float]:
        """Milliseconds."""
        result: dict[str, float] = {"callbacks": len(self._wall)}
        for name, values in (("wall", self._wall), ("cpu", self._cpu)):
            result[f"{name}_p99_ms"] = 1000 * float(np.percentile(values, 99))
            result[f"{name}_max_ms"] = 1000 * max(values)
        return result
