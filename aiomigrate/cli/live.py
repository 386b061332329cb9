"""The view of migrations that go on: what a person sees at a terminal.

A `Meter` keeps the newest progress event (the same objects that are printed as JSON) and a bar that
never runs backwards; a `Picture` makes lines of it, for one migration or for each of the demo's
two. It fits any width from 40 columns on. Where nothing can be drawn over, on a dumb terminal and
in the pipe of the demo, `Steps` tells the same by a few lines.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aiomigrate.cli.plot import Plot, Point, level
from aiomigrate.cli.sentences import (
    downtime_sentence,
    limit_sentence,
    report_sentence,
    trouble_sentence,
)
from aiomigrate.cli.status import ExitStatus
from aiomigrate.cli.text import one_line, rate_text, size_text, time_text

__all__ = ["LiveView", "Meter", "Picture", "PlainView", "Steps"]

_PHASES = {
    "connecting": "connecting",
    "waiting": "waiting for a source",
    "precopy": "moving memory",
    "switchover": "switching over, the guest is paused",
    "completing": "handing over",
    "serving": "serving its memory",
    "done": "done",
    "failed": "failed",
}
_CHAIN = ("precopy", "switchover", "completing", "done")
"""What every migration goes through, after it has connected."""
_CHAIN_COLUMNS = 76
_BAR_COLUMNS = 60
"""A longer bar says no more."""
_MAX_LANES = 16
_LOOKS = 200
"""Rates that are plotted, the newest: 20 s at ten looks a second."""
_ALMOST = 0.99
"""What the bar shows at the most before the end."""
_STEPS = 4
"""A plain view tells the progress this often."""


class Meter:
    """What one migration has told so far."""

    def __init__(self, expected_bytes: int | None = None) -> None:
        self.expected_bytes = expected_bytes
        self.fraction = 0.0
        """Of the memory, moved: never shrinks."""
        self.event: Mapping[str, Any] = {"phase": "connecting", "connections": ()}
        self.rates: deque[Point] = deque(maxlen=_LOOKS)
        """Of the newest looks."""
        self.cancelled = False

    def update(self, event: Mapping[str, Any]) -> None:
        """Take a progress event."""
        self.event = event
        fraction = event["fraction"]
        moved = event["bytes_done"]
        if self.expected_bytes is not None and moved:
            # A destination itself does not know how much will come.
            fraction = max(fraction, min(moved / (moved + self.remaining), _ALMOST))
        self.fraction = max(self.fraction, fraction)
        if moved:
            self.rates.append(Point(event["elapsed_s"], event["rate"], "cyan"))

    @property
    def remaining(self) -> int:
        """Bytes of this pass that have not been moved."""
        event = self.event
        expected: int = event["iteration_bytes"]
        if event["iteration"] == 0 and self.expected_bytes is not None:
            expected = min(expected, self.expected_bytes)
        return max(0, expected - int(event["iteration_bytes_done"]))


class Picture:
    """Lines that show where a migration is."""

    def __init__(self, title: str, meter: Meter) -> None:
        self._title = title
        self._meter = meter

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        event = self._meter.event
        head = Text(one_line(self._title), "bold", no_wrap=True, overflow="ellipsis")
        if event["phase"] in {"connecting", "waiting"}:
            head.append(f"  {_PHASES[event['phase']]}", "not bold cyan")
            yield head
            return
        head.append(f"  {time_text(event['elapsed_s'])}", "not bold dim")
        yield head
        for line in self._lines(options):
            yield Padding(line, (0, 0, 0, 2))

    def _lines(self, options: ConsoleOptions) -> Iterator[RenderableType]:
        event, meter = self._meter.event, self._meter
        yield self._phases(options)
        bar = Table.grid(padding=(0, 1))
        width = max(10, min(_BAR_COLUMNS, options.max_width - 8))
        bar.add_row(
            ProgressBar(
                total=1.0,
                completed=meter.fraction,
                width=width,
                complete_style="red" if event["phase"] == "failed" else "cyan",
                finished_style="green",
            ),
            Text(f"{meter.fraction:4.0%}"),
        )
        yield bar
        yield Text(_amounts(meter), no_wrap=True, overflow="ellipsis")
        over = event["phase"] in {"done", "failed"}
        highest = max((point.value for point in meter.rates), default=0.0)
        if highest and not over:
            plot = Plot(tuple(meter.rates), rows=2, top=rate_text(highest))
            yield Constrain(plot, _BAR_COLUMNS)
        if event["connections"] and not over:
            yield Columns(list(_lanes(event, options)), padding=(0, 3))
        if details := _details(event):
            yield Text(details, "dim")
        if event["trouble"] and event["phase"] == "precopy":
            yield Text(trouble_sentence(event), "yellow")

    def _phases(self, options: ConsoleOptions) -> Text:
        """All phases with the present one marked, or that alone where there is no room."""
        phase = self._meter.event["phase"]
        text = Text(no_wrap=True, overflow="ellipsis")
        if phase == "failed":
            return text.append("cancelled" if self._meter.cancelled else "failed", "bold red")
        label = _PHASES[phase]
        if phase in {"precopy", "switchover"} and (number := self._meter.event["iteration"]):
            label += f", iteration {number}"
        chain = _CHAIN if phase in _CHAIN and options.max_width >= _CHAIN_COLUMNS else (phase,)
        here = chain.index(phase)
        for at, one in enumerate(chain):
            if at:
                text.append(" > ", "dim")
            if at == here:
                text.append(label, "bold green" if one == "done" else "bold cyan")
            else:
                text.append(_PHASES[one].partition(",")[0], "green" if at < here else "dim")
        return text


def _lanes(event: Mapping[str, Any], options: ConsoleOptions) -> Iterator[Text]:
    lanes = [(_lane_name(lane["name"]), lane["rate"]) for lane in event["connections"]]
    lanes.sort(key=lambda lane: (len(lane[0]), lane[0]))  # lane 2 before lane 10
    quickest = max(rate for _, rate in lanes)
    for name, rate in lanes[:_MAX_LANES]:
        text = Text(f"{name} ", "dim", no_wrap=True)
        text.append(level(rate, quickest, options), "not dim cyan")
        yield text.append(f" {rate_text(rate)}")
    if len(lanes) > _MAX_LANES:
        yield Text(f"and {len(lanes) - _MAX_LANES} more", "dim")


def _lane_name(name: str) -> str:
    """A destination names lanes after the peer's address, of which the port differs."""
    _, colon, port = name.rpartition(":")
    return one_line(f"lane :{port}" if colon else name)


def _amounts(meter: Meter) -> str:
    event = meter.event
    text = f"{size_text(event['bytes_done'])} moved"
    # In the switchover a destination waits for nothing more, and a source for its last iteration.
    if event["phase"] == "precopy" or (event["phase"] == "switchover" and event["iteration"]):
        # A destination is not told how much will come, and expects all: holes never do.
        known = meter.expected_bytes is not None or event["iteration_bytes"] < event["total_bytes"]
        bound = "" if known or event["iteration"] else "at most "
        if meter.remaining:  # nor is it told what the source will send again
            text += f", {bound}{size_text(meter.remaining)} remain"
        if event["rate"]:
            text += f", {rate_text(event['rate'])}"
    return text


def _details(event: Mapping[str, Any]) -> str:
    """What only a running guest has."""
    parts = []
    if event["dirty_rate"]:
        parts.append(f"the guest writes {rate_text(event['dirty_rate'])}")
    if event["throttle_percent"]:
        parts.append(f"throttled by {event['throttle_percent']} %")
    if (downtime := event["expected_downtime_ms"]) and (bandwidth := event["bandwidth"]):
        dirty = bandwidth * downtime / 1000
        parts.append(
            f"expected downtime {time_text(downtime / 1000)}: {size_text(dirty)} were dirty, at "
            f"{rate_text(bandwidth)}"
        )
    elif event["bandwidth"]:
        parts.append(f"bandwidth {rate_text(event['bandwidth'])}")
    return ", ".join(parts)


class Steps:
    """Tells by lines: one for each quarter that is done, and one if it does not converge."""

    def __init__(self, expected_bytes: int | None = None) -> None:
        self._meter = Meter(expected_bytes)
        self._told = 0
        self._troubled = False

    def update(self, event: Mapping[str, Any]) -> Iterator[str]:
        """What there is to be told after a progress event."""
        self._meter.update(event)
        if event["trouble"] and not self._troubled:
            self._troubled = True
            yield trouble_sentence(event)
        step = int(self._meter.fraction * _STEPS)
        if step > self._told:
            self._told = step
            yield (
                f"{self._meter.fraction:.0%}, {size_text(event['bytes_done'])} moved, "
                f"{rate_text(event['rate'])}"
            )


def _ends(report: Mapping[str, Any]) -> Iterator[str]:
    """What is told when a migration has succeeded."""
    yield f"{report['summary']}: {report_sentence(report)}"
    if report["downtime"]:
        yield downtime_sentence(report["downtime"])
    if report["limited_by"]:
        yield limit_sentence(report["limited_by"])


class LiveView:
    """Draws on stdout, which is a terminal."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._meter = Meter()
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._live.start()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Draw progress anew; print what stays above it."""
        match event["event"]:
            case "progress":
                self._meter.update(event)
                self._draw()
            case "listening":
                self.say(f"listening on {event['address']}")
            case "error" if event["status"] == ExitStatus.CANCELLED:
                self._meter.cancelled = True
                self._draw()
            case "report":
                self._live.stop()
                for sentence in _ends(event):
                    self.say(sentence)

    def _draw(self) -> None:
        self._live.update(Picture(self._title, self._meter), refresh=True)

    def say(self, sentence: str) -> None:
        """A line above the display."""
        self._console.print(Text(one_line(sentence)))

    def close(self) -> None:
        """Leave the last picture."""
        self._live.stop()


class PlainView:
    """Lines on stdout, a terminal that cannot draw anything over."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._steps = Steps()

    def tell(self, event: Mapping[str, Any]) -> None:
        """A line now and then."""
        match event["event"]:
            case "progress":
                for line in self._steps.update(event):
                    self.say(f"{self._title}: {line}")
            case "listening":
                self.say(f"listening on {event['address']}")
            case "report":
                for line in _ends(event):
                    self.say(line)

    def say(self, sentence: str) -> None:
        """One line."""
        print(one_line(sentence), flush=True)

    def close(self) -> None:
        """Nothing to leave."""
