"""A plot over time in a few lines of block characters, filled, each column in its time's style.

A column shows what was there at its time: the newest point that is not later. Where many fall into
one column, the highest of them.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

__all__ = ["Plot", "Point", "level"]

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:+#"
_LABEL = 11
"""Columns for a label at the left, `999 MiB/s` and a blank at either side."""
_LEAST = 10
"""Columns of a plot at the least, however narrow the terminal is."""


class Point(NamedTuple):
    """A value, 0 or more, from `at` seconds on."""

    at: float
    value: float
    style: str


class Plot:
    """Draws `points`, which are in order of time, `rows` lines high. `top` labels the highest."""

    def __init__(self, points: Sequence[Point], *, rows: int, top: str) -> None:
        self._points = points
        self._rows = rows
        self._top = top

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        levels = _levels(options)
        columns = list(self._columns(max(_LEAST, options.max_width - _LABEL)))
        highest = max((value for value, _ in columns), default=0.0)
        full = self._rows * (len(levels) - 1)
        heights = [_height(value, highest, full) for value, _ in columns]
        for row in reversed(range(self._rows)):
            line = Text(no_wrap=True)
            label = self._top if row == self._rows - 1 else "0" if not row else ""
            line.append(f"{label:>{_LABEL - 1}} ", "dim")
            below = row * (len(levels) - 1)
            for height, (_, style) in zip(heights, columns, strict=True):
                line.append(levels[min(max(height - below, 0), len(levels) - 1)], style)
            yield line

    def _columns(self, count: int) -> Iterator[tuple[float, str]]:
        """(value, style) of each."""
        times = [point.at for point in self._points]
        begins, ends = times[0], times[-1]
        first = 0
        for column in range(count):
            # The last one exactly: nothing is left out by rounding.
            until = ends if column == count - 1 else begins + (ends - begins) * (column + 1) / count
            behind = max(bisect_right(times, until), 1)
            here = self._points[min(first, behind - 1) : behind]
            yield max(point.value for point in here), here[-1].style
            first = behind


def level(value: float, highest: float, options: ConsoleOptions) -> str:
    """One character for how high a value is."""
    levels = _levels(options)
    return levels[_height(value, highest, len(levels) - 1)]


def _levels(options: ConsoleOptions) -> str:
    return _ASCII if options.ascii_only else _EIGHTHS


def _height(value: float, highest: float, full: int) -> int:
    """What is not zero can be seen."""
    if not value > 0:
        return 0
    return max(1, round(min(value / highest, 1.0) * full))
