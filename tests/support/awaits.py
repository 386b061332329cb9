"""Does something to a program at each of its suspensions, one a run.

`Awaits` counts how often any task that was made under it gives control back to the event loop, and
at the chosen count calls `act`, while that task is being suspended. Run a program again and again
with 0, 1, 2, ... until `reached` stays False: then every await of the program, in every task of
it, has been the one. Executors and sockets are real, so that two runs may differ by a few steps:
what is asserted must hold at every one.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Self

__all__ = ["Awaits"]


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine that says when it is suspended."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], suspended: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._suspended = suspended

    def send(self, value: Any) -> Any:
        awaited = self._coroutine.send(value)
        self._suspended()
        return awaited

    def throw(self, *error: Any) -> Any:
        awaited = self._coroutine.throw(*error)
        self._suspended()
        return awaited

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise AssertionError("tasks send to their coroutine, nobody awaits it")

    def __repr__(self) -> str:
        return repr(self._coroutine)


class Awaits:
    """Calls `act` once, at suspension number `at` of the tasks made while it is entered."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        self._at = at
        self._act = act
        self.count = 0
        """Suspensions so far."""

    @property
    def reached(self) -> bool:
        """Whether `act` was called."""
        return self.count > self._at

    def _suspended(self) -> None:
        self.count += 1
        if self.count == self._at + 1:
            self._act()

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Task[Any]:
        return asyncio.Task(_Counted(coroutine, self._suspended), loop=loop, **options)

    def __enter__(self) -> Self:
        asyncio.get_running_loop().set_task_factory(self._make_task)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.get_running_loop().set_task_factory(None)
