"""How long callbacks hold up an event loop, asyncio's own or uvloop: wall time and thread CPU time.

    python -m benchmarks.callbacks [--mib 512] [--rounds 4]

A guest of 4 TiB whose bitmap (128 MiB) marks every other page of `--mib` MiB of random memory, for
some iterations: it is counted and scanned while its pages are sent at full speed over 4
connections: a row for each end on each loop.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import uvloop

from benchmarks.results import Recording

LOOPS: dict[str, type[asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.Loop,
}


class CallbackMeter:
    """Measures every callback of the loops that it makes, while entered."""

    def __init__(self, loop: str = "asyncio") -> None:
        self._wall: list[float] = []
        self._cpu: list[float] = []
        self._base = LOOPS[loop]
        self._entered = False

    def __enter__(self) -> Self:
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered = False

    def measure(self, callback: Callable[..., object], *args: object) -> None:
        """Call it, and note how long that took."""
        whole = self._entered
        began, worked = time.perf_counter(), time.thread_time()
        try:
            callback(*args)
        finally:
            if whole and self._entered:  # else it makes memory, or gives it back, besides
                self._wall.append(time.perf_counter() - began)
                self._cpu.append(time.thread_time() - worked)

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """A loop whose callbacks are measured."""
        measure, base = self.measure, self._base
        # What call_at or call_later comes to in the end.
        timer = "call_later" if base is uvloop.Loop else "call_at"

        def wrapped(name: str, before: int) -> Callable[..., Any]:
            """`before` arguments come ahead of the callback."""

            def method(self: asyncio.AbstractEventLoop, *args: Any, **kwargs: Any) -> Any:
                leading, callback, rest = args[:before], args[before], args[before + 1 :]
                return getattr(base, name)(self, *leading, measure, callback, *rest, **kwargs)

            return method

        places = {"call_soon": 0, "call_soon_threadsafe": 0, timer: 1}
        places |= {"add_reader": 1, "add_writer": 1}
        methods = {name: wrapped(name, before) for name, before in places.items()}
        loop: asyncio.AbstractEventLoop = type("MeasuredLoop", (base,), methods)()
        return loop

    def figures(self) -> dict[str, float]:
        """Milliseconds."""
        result: dict[str, float] = {"callbacks": len(self._wall)}
        for name, values in (("wall", self._wall), ("cpu", self._cpu)):
            result[f"{name}_p99_ms"] = 1000 * float(np.percentile(values, 99))
            result[f"{name}_max_ms"] = 1000 * max(values)
        return result


def longest(figures: Mapping[str, float]) -> dict[str, float]:
    """Of a meter's figures what tables show."""
    return {key: figures[key] for key in ("wall_p99_ms", "cpu_p99_ms", "wall_max_ms", "cpu_max_ms")}


def main() -> None:
    """Measure and print."""
    from benchmarks.rig import MIB

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    with Recording("callbacks", "benchmarks.callbacks", vars(arguments)) as record:
        for loop in LOOPS:
            measure(record, loop, arguments.mib * MIB, arguments.rounds)


def measure(record: Recording, loop: str, data: int, rounds: int) -> None:
    """One loop, both ends."""
    from aiomigrate import SendOptions
    from benchmarks.rig import GIB, Receiver, run, scanned_source, timed_send

    size = 4096 * GIB
    meter = CallbackMeter(loop)

    async def sends() -> None:
        async with scanned_source(size, data, rounds) as source:
            options = SendOptions(connections=4, downtime_ms=1)
            with meter:
                _, report = await timed_send(source, receiver.address, options)
            assert report.bytes > data * rounds // 4

    with Receiver(size, meter=loop, fresh=True) as receiver:
        run(sends, meter)
        for end, figures in (("source", meter.figures()), ("destination", receiver.figures())):
            record.row(
                "callbacks",
                loop=loop,
                end=end,
                callbacks=figures["callbacks"],
                **longest(figures),
            )


if __name__ == "__main__":
    main()
