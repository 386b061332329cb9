"""Running one migration for a person or a script: the loop, the signals, the end.

The kernels are there before the loop starts (compiling them takes seconds and holds the GIL). The
first SIGINT or SIGTERM cancels where the VM can stay where it is; later ones, and those that come
when it is too late, are explained and change nothing.
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from aiomigrate.cli.logs import LogFormat, configure
from aiomigrate.cli.output import Output, ProgressMode
from aiomigrate.cli.status import ExitStatus, complain, sentence_of, status_of

if TYPE_CHECKING:
    from aiomigrate.migration import Migration
    from aiomigrate.progress import Report

__all__ = ["Attempt", "Settings", "attempting", "follow", "load_kernels", "on_loop"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Settings:
    """The options that all commands have."""

    progress: ProgressMode
    log_format: LogFormat
    verbosity: int

    def configure_logs(self) -> None:
        """Set up logging as told."""
        configure(self.log_format, self.verbosity)


class Attempt:
    """What a command tries: how far it is, and what its end means."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.begun = False
        """Whether there is anything that an error would end."""
        self.status = ExitStatus.DONE
        self.interrupted = False
        """Whether a signal came, heeded or not: nothing more is to be begun."""
        self._migration: Migration | None = None
        self._cancelled = False

    def watch(self, migration: "Migration") -> None:
        """From here on signals are about `migration`."""
        self._migration = migration
        self.begun = True

    def rest(self) -> None:
        """That migration is over, and another one may follow."""
        self._migration = None

    @property
    def account(self) -> dict[str, Any]:
        """What the migration that is watched did; empty without one."""
        return {} if self._migration is None else self._migration.account().as_dict()

    @property
    def idle(self) -> bool:
        """Whether no VM has come yet in the migration that is watched, or none is."""
        return self._migration is None or not self._migration.progress.total_bytes

    def interrupt(self, task: asyncio.Task[Any]) -> None:
        """A signal came. `task` is what there is to cancel before a migration has begun."""
        self.interrupted = True
        if self._cancelled:
            self.output.say("it is being cancelled already")
        elif self._migration is None:
            self._cancelled = task.cancel()
        elif self._migration.cancel():
            self._cancelled = True
            self.output.say("cancelling: the VM stays with the source")
        else:
            self.output.say(
                "too late to cancel: the VM is changing hands or has done so, and ending now could "
                "lose it; the outcome follows"
            )


@contextmanager
def attempting(output: Output, settings: Settings) -> Iterator[Attempt]:
    """A context whose errors are told, in one sentence; `Attempt.status` says how it ended."""
    attempt = Attempt(output)
    failure: BaseException | None = None
    with output:
        try:
            yield attempt
        except (Exception, asyncio.CancelledError, KeyboardInterrupt) as error:
            failure = error
            attempt.status = status_of(error, begun=attempt.begun)
            owner = getattr(error, "owner", "source")
            output.tell(
                "error",
                error=sentence_of(error),
                owner=str(owner),
                status=int(attempt.status),
                **attempt.account,
            )
    if failure is not None:
        complain(failure, verbosity=settings.verbosity)


def on_loop(attempt: Attempt, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `body` on uvloop, with signals; its error is raised."""
    import uvloop

    async def run() -> None:
        loop = asyncio.get_running_loop()
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        for number in _SIGNALS:
            loop.add_signal_handler(number, attempt.interrupt, task)
        try:
            await body()
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def follow(
    migration: "Migration",
    output: Output,
    amended: Callable[[dict[str, Any]], dict[str, Any]] = lambda event: event,
) -> "Report":
    """Tell the progress of a migration until its end; its report, or its error raised.

    `amended` makes of the engine's progress what is told. Waiting for a source is told once,
    however long it takes.
    """
    last = None
    async for progress in migration:
        if not progress.phase == last == "waiting":
            output.progress(amended(progress.as_dict()))
        last = progress.phase
    return await migration.result()


def load_kernels() -> None:
    """Compile or load the kernels, and say so where that will take long."""
    from aiomigrate.cli.kernels import are_warm, load

    if sys.stderr.isatty() and not are_warm():
        print("aiomigrate: compiling kernels, this takes a moment", file=sys.stderr)
    load()
