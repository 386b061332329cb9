"""A program: a conversion, killed at each of its steps in turn.

`python -m tests.engine.converting_killed SRC DIR`: SRC is converted to DIR/<n>/made by one child
process after another, and the n-th ends by SIGKILL before its n-th step: a system call that makes,
fills, syncs or renames something, or a block written. Prints the number of the child that met no
more steps and converted.
"""

import asyncio
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from aiomigrate import convert
from aiomigrate.memory import directory
from aiomigrate.memory.blocks import FilePart

_STEPS: tuple[tuple[Any, str], ...] = (
    (os, "mkdir"),
    (os, "ftruncate"),
    (os, "pwrite"),
    (os, "fsync"),
    (directory, "new_file"),
    (directory, "rename_new"),
    (FilePart, "write"),
)


def kill_at(step: int) -> None:
    """Have this process end by SIGKILL when it comes to its `step`-th step."""
    left = itertools.count(step - 1, -1)
    one_at_a_time = threading.Lock()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any, **options: Any) -> Any:
            with one_at_a_time:
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return count

    for place, name in _STEPS:
        setattr(place, name, counted(getattr(place, name)))


def run(source: str, where: str) -> int:
    """Convert until no step is left; how many children that took."""
    for child in itertools.count(1):
        place = os.path.join(where, str(child))
        os.mkdir(place)
        process = os.fork()
        if process == 0:
            kill_at(child)
            asyncio.run(convert(source, os.path.join(place, "made")))
            os._exit(0)
        _, status = os.waitpid(process, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            return child
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise RuntimeError(f"child {child} ended with {status}")
    raise AssertionError


if __name__ == "__main__":
    print(run(sys.argv[1], sys.argv[2]))  # noqa: T201  # its result
