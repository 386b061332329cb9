"""Jobs on guest memory, off the event loop.

A pool of threads of a migration's own, never the loop's default one. A job is a call that
releases the GIL and touches guest memory or disk. Whoever is cancelled while it waits for a job
waits for the job's end all the same: memory is not unmapped under it.
"""

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from aiomigrate.tasks import settle

__all__ = ["WORKERS", "JobExecutor"]

T = TypeVar("T")

WORKERS = 4
"""Populating waits for the kernel's page clearing: a few threads overlap it with the copying."""


class JobExecutor:
    """An executor whose jobs are joined, not cancelled. Use as a context manager.

    `workers` is the number of its threads.
    """

    def __init__(self, workers: int = WORKERS) -> None:
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="aiomigrate-job")

    def start(self, job: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Begin `job(*arguments)`; whoever starts it joins it, however it ends."""
        return asyncio.get_running_loop().run_in_executor(self._pool, job, *arguments)

    async def join(self, future: asyncio.Future[T]) -> T:
        """Wait for a job, `future`; a cancellation is passed on once the job has ended."""
        if await settle(future):
            if not future.cancelled():
                future.exception()  # it is the cancellation that is reported
            raise asyncio.CancelledError
        return future.result()

    async def run(self, job: Callable[..., T], *arguments: object) -> T:
        """Run `job(*arguments)`; a cancellation is passed on once the job has ended."""
        return await self.join(self.start(job, *arguments))

    async def drive(self, steps: Generator[None, None, T]) -> T:
        """Run `steps` to their end, each as a job of its own; what they return. A cancellation is
        passed on after the step at hand.
        """
        ended: tuple[T] | None = None
        while ended is None:
            ended = await self.run(_step, steps)
        return ended[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Every job has been joined by whoever waited for it: the threads have nothing to do and end
        # by themselves. Waiting for that would block the event loop.
        self._pool.shutdown(wait=False)


def _step(steps: Generator[None, None, T]) -> tuple[T] | None:
    """Make one; what they return, once they have ended."""
    try:
        next(steps)
    except StopIteration as end:
        return (end.value,)
    return None
