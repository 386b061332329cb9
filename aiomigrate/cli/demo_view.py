"""What a person sees of the demo: one live picture of both processes, or plain lines in a pipe."""

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from aiomigrate.cli.live import Meter, Picture, Steps

__all__ = ["DemoView", "JsonDemo", "LiveDemo", "PlainDemo", "open_view"]

_TICKS = 8
"""A live view shows each eighth number: ten a second."""


class DemoView(Protocol):
    """How the demo talks. A context manager around the migration itself."""

    def say(self, text: str = "", style: str = "") -> None:
        """One line."""
        ...

    def progress(self, side: str, event: Mapping[str, Any]) -> None:
        """A progress event of the process `side`."""
        ...

    def count(self, side: str, number: int) -> None:
        """The guest of the process `side` has counted to `number`."""
        ...

    def report(self, event: Mapping[str, Any]) -> None:
        """The source's report, once the guest has judged: for programs."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class LiveDemo:
    """Both sides in one picture that changes in place."""

    def __init__(self, console: Console, sides: Mapping[str, str], expected_bytes: int) -> None:
        self._console = console
        self._titles = sides
        self._meters = {side: Meter(expected_bytes) for side in sides}
        self._counts: dict[str, int] = {}
        self._live = Live(console=console, auto_refresh=False)

    def say(self, text: str = "", style: str = "") -> None:
        """One line, above the picture."""
        indent = len(text) - len(text.lstrip())  # for what is wrapped, too
        self._console.print(Padding(Text(text.lstrip(), style), (0, 0, 0, indent)))

    def progress(self, side: str, event: Mapping[str, Any]) -> None:
        """Draw both sides anew."""
        self._meters[side].update(event)
        self._draw()

    def count(self, side: str, number: int) -> None:
        """Draw it where the guest runs."""
        self._counts = {side: number}
        if self._live.is_started and number % _TICKS == 0:
            self._draw()

    def report(self, event: Mapping[str, Any]) -> None:
        """It was told in sentences."""

    def _draw(self) -> None:
        pictures = []
        for side, meter in self._meters.items():
            title = self._titles[side]
            if side in self._counts:
                title += f", the guest counts {self._counts[side]:,}"
            pictures.append(Picture(title, meter))
        self._live.update(Padding(Group(*pictures), (0, 0, 0, 3)), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()


class _Lines:
    """What all that only prints lines has in common."""

    def count(self, side: str, number: int) -> None:
        """A pipe wants no line for each tick."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing to leave."""


class JsonDemo(_Lines):
    """Events as JSON lines, for a program: the progress of both sides, and the source's report."""

    def say(self, text: str = "", style: str = "") -> None:
        """There is no person."""

    def progress(self, side: str, event: Mapping[str, Any]) -> None:
        """A line."""
        print(json.dumps({**event, "side": side}), flush=True)

    def report(self, event: Mapping[str, Any]) -> None:
        """The last line."""
        print(json.dumps(event), flush=True)


class PlainDemo(_Lines):
    """Lines, of which none is changed: for a pipe or a log."""

    def __init__(self, sides: Mapping[str, str], expected_bytes: int) -> None:
        self._titles = sides
        self._steps = {side: Steps(expected_bytes) for side in sides}

    def say(self, text: str = "", style: str = "") -> None:  # noqa: ARG002 (a pipe has no styles)
        """One line."""
        print(text, flush=True)

    def progress(self, side: str, event: Mapping[str, Any]) -> None:
        """A line for each quarter that is done, and one if it does not converge."""
        for line in self._steps[side].update(event):
            self.say(f"   {self._titles[side]}: {line}")

    def report(self, event: Mapping[str, Any]) -> None:
        """It was told in sentences."""


def open_view(sides: Mapping[str, str], expected_bytes: int) -> DemoView:
    """The view that stdout can show; `sides` are the titles of the processes, by name."""
    console = Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDemo(console, sides, expected_bytes)
    return PlainDemo(sides, expected_bytes)
