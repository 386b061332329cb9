"""An event loop whose clock moves only when nothing else can happen.

Deadlines of 30 or 300 seconds pass at once, while sockets, pipes and executors stay real. When a
timer is the only thing left to wait for, the loop first waits a short real time (`patience`) for a
descriptor; if none becomes ready, no job of `run_in_executor` and no unmapping of guest memory runs
and nobody that `watch` was told about is busy, `time()` jumps to that timer. A test that takes part
from another thread has to be watched, else the clock can jump while that thread works.
"""

import asyncio
import selectors
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar, TypeVarTuple

__all__ = ["VirtualClockLoop"]

# A thread of guest memory that is being closed; the loop learns of its end as of a job's.
_UNMAPPING = "aiomigrate-unmap"
_Ts = TypeVarTuple("_Ts")
_T = TypeVar("_T")


class _Selector(selectors.DefaultSelector):
    """Asks the loop whether it may skip the wait for a timer."""

    loop: "VirtualClockLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        while not (ready := super().select(self.loop.patience)):
            if not self.loop.busy():
                # Who was busy, and ended after the first look, has woken the loop by then.
                if not (ready := super().select(0)):
                    self.loop.skip(timeout)
                break
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop with a virtual `time()` that begins at 1,000 s.

    `patience` is the real time in seconds that a descriptor gets before the clock may jump.
    """

    def __init__(self, patience: float = 0.02) -> None:
        selector = _Selector()
        selector.loop = self
        self.patience = patience
        self._now = 1000.0
        self._jobs: list[tuple[asyncio.Future[object], _Job[object]]] = []
        self.stuck: set[Executor | None] = set()
        """Executors whose jobs wait for what does not come: the clock does not wait for them."""
        self._watched: list[Callable[[], bool]] = []
        super().__init__(selector)
        # A jump must reach its timer in spite of rounding.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._now

    def skip(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        self._now += seconds

    def watch(self, busy: Callable[[], bool]) -> None:
        """Ask `busy()` before each jump, in the loop's thread: True keeps the clock where it is."""
        self._watched.append(busy)

    def busy(self) -> bool:
        """Whether a job of an executor, or something that is watched, can still go on by itself."""
        # A cancelled future is done at once; its job may run on.
        self._jobs = [(done, job) for done, job in self._jobs if job.running or not done.done()]
        jobs = any(job.executor not in self.stuck for _, job in self._jobs)
        if jobs or any(thread.name == _UNMAPPING for thread in threading.enumerate()):
            return True
        return any(busy() for busy in self._watched)

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*_Ts], _T],
        *args: *_Ts,
    ) -> "asyncio.Future[_T]":
        job = _Job(executor, lambda: func(*args))
        done = super().run_in_executor(executor, job)
        self._jobs.append((done, job))  # type: ignore[arg-type]
        return done


class _Job(Generic[_T]):
    """A call in an executor that knows whether it runs."""

    def __init__(self, executor: Executor | None, call: Callable[[], _T]) -> None:
        self.executor = executor
        self._call = call
        self.running = False

    def __call__(self) -> _T:
        self.running = True
        try:
            return self._call()
        finally:
            self.running = False
