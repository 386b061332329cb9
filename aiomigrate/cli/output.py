"""What a migration tells the outside while it lasts: a live view, JSON lines, or nothing.

All of it happens in a thread: a terminal that is stopped and a pipe that nobody reads must not
hold up a migration. Of progress that finds the thread busy only the latest is kept.
"""

import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from types import TracebackType
from typing import Any, Protocol, Self

__all__ = ["JsonLines", "Output", "ProgressMode", "Silence", "View", "open_output"]


class ProgressMode(StrEnum):
    """How progress is shown."""

    AUTO = "auto"
    JSON = "json"
    NONE = "none"


class View(Protocol):
    """One way of telling. Called by one thread."""

    def tell(self, event: Mapping[str, Any]) -> None:
        """Show one event: `event["event"]` is its name."""
        ...

    def say(self, sentence: str) -> None:
        """Tell a person something that is no event."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class Silence:
    """Nothing on stdout; what a person must know goes to stderr."""

    def tell(self, event: Mapping[str, Any]) -> None:
        """The address alone is told: without it nobody could connect."""
        if event["event"] == "listening":
            self.say(f"listening on {event['address']}")

    def say(self, sentence: str) -> None:
        """One line on stderr."""
        print(f"aiomigrate: {sentence}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to leave."""


class JsonLines(Silence):
    """An object a line, on stdout. Whoever does not read any more misses the rest."""

    def __init__(self) -> None:
        self._broken = False

    def tell(self, event: Mapping[str, Any]) -> None:
        """One line."""
        if self._broken:
            return
        try:
            print(json.dumps(event), flush=True)
        except OSError:
            self._broken = True
            # What is left in the buffer must not fail again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Output:
    """A view with its thread. Use as a context manager."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._thread = ThreadPoolExecutor(1, "aiomigrate-output")
        self._telling: Future[None] | None = None
        self._latest: Mapping[str, Any] | None = None

    def progress(self, event: Mapping[str, Any]) -> None:
        """Tell how far it is, once the last telling is over."""
        self._latest = {"event": "progress", **event}
        if self._telling is None or self._telling.done():
            self._flush()

    def tell(self, name: str, **members: Any) -> None:
        """Tell an event."""
        self._flush()
        self._thread.submit(self._view.tell, {"event": name, **members})

    def say(self, sentence: str) -> None:
        """Tell a person a sentence."""
        self._flush()
        self._thread.submit(self._view.say, sentence)

    def _flush(self) -> None:
        if self._latest is not None:
            self._telling = self._thread.submit(self._view.tell, self._latest)
            self._latest = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._flush()
        self._thread.submit(self._view.close)
        self._thread.shutdown(wait=True)


def open_output(mode: ProgressMode, title: str) -> Output:
    """The output that `mode` asks for: with `auto` a terminal gets a live view, a pipe JSON.

    A terminal that is dumb, or does not say what it is, gets lines.
    """
    if mode is ProgressMode.NONE:
        return Output(Silence())
    if mode is ProgressMode.AUTO and sys.stdout.isatty():
        from aiomigrate.cli.live import LiveView, PlainView

        dumb = os.environ.get("TERM", "") in {"", "dumb"}
        return Output(PlainView(title) if dumb else LiveView(title))
    return Output(JsonLines())
