"""The live view of one migration: what a person sees at a terminal.

A `Meter` keeps the newest progress event (the same objects that are printed as JSON) and a bar that
never runs backwards; `drawn` makes lines of it, for one migration or for the demo's two.
"""

from collections.abc import Mapping
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aiomigrate.cli.text import one_line, rate_text, size_text, time_text

__all__ = [
    "LiveView",
    "Meter",
    "downtime_sentence",
    "drawn",
    "report_sentence",
    "trouble_sentence",
]

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
_MAX_LANES = 16
_ALMOST = 0.99
"""What the bar shows at the most before the end."""


class Meter:
    """What one migration has told so far."""

    def __init__(self, expected_bytes: int | None = None) -> None:
        self.expected_bytes = expected_bytes
        self.fraction = 0.0
        """Of the memory, moved: never shrinks."""
        self.event: Mapping[str, Any] = {"phase": "connecting", "connections": ()}

    def update(self, event: Mapping[str, Any]) -> None:
        """Take a progress event."""
        self.event = event
        fraction = event["fraction"]
        moved = event["bytes_done"]
        if self.expected_bytes is not None and moved:
            # A destination itself does not know how much will come.
            fraction = max(fraction, min(moved / (moved + self.remaining), _ALMOST))
        self.fraction = max(self.fraction, fraction)

    @property
    def remaining(self) -> int:
        """Bytes of this pass that have not been moved."""
        event = self.event
        expected: int = event["iteration_bytes"]
        if event["iteration"] == 0 and self.expected_bytes is not None:
            expected = min(expected, self.expected_bytes)
        return max(0, expected - int(event["iteration_bytes_done"]))


def drawn(title: str, meter: Meter) -> RenderableType:
    """Lines that show where a migration is."""
    event = meter.event
    phase = event["phase"]
    failed = phase == "failed"
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append(one_line(title), "bold")
    head.append("  ")
    head.append(_PHASES[phase], "red" if failed else "green" if phase == "done" else "cyan")
    if phase in {"precopy", "switchover"} and event["iteration"]:
        head.append(f", iteration {event['iteration']}: what was written meanwhile", "cyan")
    if phase in {"connecting", "waiting"}:
        return head
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=1.0, completed=meter.fraction, width=40),
        Text(f"{meter.fraction:4.0%}"),
        Text(_amounts(meter), no_wrap=True, overflow="ellipsis"),
    )
    lines: list[RenderableType] = [head, Padding(bar, (0, 0, 0, 2))]
    if details := _details(event):
        lines.append(Padding(Text(details, "dim"), (0, 0, 0, 2)))
    if event["trouble"] and phase == "precopy":
        lines.append(Padding(Text(trouble_sentence(event), "yellow"), (0, 0, 0, 2)))
    lanes = [(_lane_name(lane["name"]), lane["rate"]) for lane in event["connections"]]
    lanes.sort(key=lambda lane: (len(lane[0]), lane[0]))  # lane 2 before lane 10
    cells = [Text(f"{name} {rate_text(rate)}") for name, rate in lanes[:_MAX_LANES]]
    if len(lanes) > len(cells):
        cells.append(Text(f"and {len(lanes) - len(cells)} more"))
    if phase != "done" and any(rate for _, rate in lanes):
        lines.append(Padding(Columns(cells, padding=(0, 3)), (0, 0, 0, 2), style="dim"))
    return Group(*lines)


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
    if event["bandwidth"]:
        parts.append(f"bandwidth {rate_text(event['bandwidth'])}")
    if event["throttle_percent"]:
        parts.append(f"throttled by {event['throttle_percent']} %")
    if event["expected_downtime_ms"]:
        parts.append(f"expected downtime {time_text(event['expected_downtime_ms'] / 1000)}")
    return ", ".join(parts)


def trouble_sentence(event: Mapping[str, Any]) -> str:
    """That pre-copy does not converge, why, and what would help."""
    return f"It does not converge: {event['trouble']}."


def downtime_sentence(downtime: Mapping[str, float]) -> str:
    """Where the downtime went, stage by stage, in the order of the switchover."""
    stages = [
        f"{name.removesuffix('_ms').replace('_', ' ')} {spent:.1f}"
        for name, spent in downtime.items()
    ]
    return f"Of the downtime, in ms: {', '.join(stages)}"


def report_sentence(report: Mapping[str, Any]) -> str:
    """What a migration did, for a person."""
    connections = report["connections"]
    rate = report["bytes"] / report["duration_s"] if report["duration_s"] else 0.0
    return (
        f"{size_text(report['bytes'])} in {time_text(report['duration_s'])} "
        f"({rate_text(rate)}) over {connections} connection{'s' * (connections != 1)}, "
        f"downtime {time_text(report['downtime_ms'] / 1000)}"
    )


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
                self._live.update(drawn(self._title, self._meter), refresh=True)
            case "listening":
                self.say(f"listening on {event['address']}")
            case "report":
                self._live.stop()
                self.say(f"{event['summary']}: {report_sentence(event)}")
                if event["downtime"]:
                    self.say(downtime_sentence(event["downtime"]))

    def say(self, sentence: str) -> None:
        """A line above the display."""
        self._console.print(Text(one_line(sentence)), soft_wrap=True)

    def close(self) -> None:
        """Leave the last picture."""
        self._live.stop()
