"""What a test may leave behind: nothing. A snapshot of descriptors, mappings, threads and tasks,
and what two of them differ in.
"""

import asyncio
import contextlib
import gc
import os
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["Resources"]

# asyncio's default executor, which asyncio.to_thread uses: its idle threads end with the loop.
_POOL = "asyncio_"


@dataclass(frozen=True)
class Resources:
    """What this process holds at a moment."""

    descriptors: Counter[str]
    mappings: Counter[str]
    threads: frozenset[threading.Thread]
    tasks: frozenset[asyncio.Task[object]]

    @classmethod
    def now(cls) -> Self:
        """Take a snapshot; tasks are those of the running loop, if there is one."""
        gc.collect()
        try:
            tasks = frozenset(asyncio.all_tasks()) - {asyncio.current_task()}
        except RuntimeError:
            tasks = frozenset()
        return cls(
            Counter(_descriptors()), Counter(_mappings()), frozenset(threading.enumerate()), tasks
        )

    @classmethod
    def left_since(cls, before: "Resources") -> list[str]:
        """What is there now and was not there at `before`, a line each. Threads get 5 s to end."""
        for thread in set(threading.enumerate()) - before.threads:
            if not thread.name.startswith(_POOL) and thread is not threading.current_thread():
                thread.join(5.0)
        now = cls.now()
        found = [f"descriptor: {name}" for name in now.descriptors - before.descriptors]
        found += [f"mapping: {name}" for name in now.mappings - before.mappings]
        found += [
            f"thread: {thread.name}"
            for thread in now.threads - before.threads
            if not thread.name.startswith(_POOL)
        ]
        return found + [f"task: {task!r}" for task in now.tasks - before.tasks]


def _descriptors() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor that listed the directory
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found


def _mappings() -> list[str]:
    """Of the files that hold guest memory (proc(5): the last of six fields)."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split(maxsplit=5)[5] for line in lines if _is_of_guest_memory(line)]


def _is_of_guest_memory(line: str) -> bool:
    """Memfds and unlinked files, stored VMs, and those that are being written. Asked of a thousand
    lines twice a test.
    """
    return " (deleted)" in line or "/memory-" in line or ".partial-" in line
