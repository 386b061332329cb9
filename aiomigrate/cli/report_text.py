"""The page that a terminal shows of a migration that has ended: `aiomigrate report --text`.

Everything in it comes from a file and may quote a peer: it is shown as text, a line at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aiomigrate.cli.plot import Plot, Point
from aiomigrate.cli.reports import Ended
from aiomigrate.cli.sentences import LIMITS, decision_sentence, limit_sentence, report_sentence
from aiomigrate.cli.text import one_line, rate_text, size_text, time_text
from aiomigrate.downtime import Downtime
from aiomigrate.errors import Owner
from aiomigrate.history import Iteration, Sample
from aiomigrate.limiting import LimitedBy
from aiomigrate.progress import Account

__all__ = ["page"]

_STYLES = {"precopy": "cyan", "switchover": "yellow", "completing": "yellow", "failed": "red"}
"""Of a phase; others are green."""
_FIRST_SHOWN = 3
_LAST_SHOWN = 7
"""Of more iterations those in the middle are left out."""
_BAR = 30


def page(ended: Ended) -> RenderableType:
    """All of it, one part below the other."""
    return Group(*_parts(ended))


def _parts(ended: Ended) -> Iterator[RenderableType]:
    account = ended.account
    if ended.title:
        yield Text(one_line(ended.title), "bold")
    yield from _owner(ended)
    yield Text(f"{_amounts(ended)}.")
    yield from _plots(account.history.samples)
    if account.history.iterations:
        yield _heading("Iterations")
        yield _indented(_iterations(account.history.iterations))
    if account.decisions:
        yield _heading("Decisions of the policy")
        yield from _decisions(account)
    if ended.report is not None and ended.report.downtime is not None:
        yield _heading(f"Downtime: {time_text(ended.report.downtime_ms / 1000)}")
        yield _indented(_downtime(ended.report.downtime))
    if account.limited_by is not None:
        yield _heading(limit_sentence(asdict(account.limited_by)))
        yield _indented(_limits(account.limited_by))
    if account.warnings:
        yield _heading("Warnings")
        yield from (_bullet(warning, "yellow") for warning in account.warnings)


def _heading(text: str) -> RenderableType:
    return Padding(Text(text, "bold"), (1, 0, 0, 0))


def _indented(what: RenderableType) -> RenderableType:
    return Padding(what, (0, 0, 0, 2))


def _bullet(text: str, style: str = "") -> RenderableType:
    return _indented(Text(one_line(text), style))


def _owner(ended: Ended) -> Iterator[RenderableType]:
    if ended.error:
        yield Text(f"It failed: {one_line(ended.error)}", "red")
    report = ended.report
    match ended.owner:
        case Owner.DESTINATION if report is not None:
            how = "and runs there" if report.running else "and is paused"
            yield Text(f"The VM is with the destination, {how}.", "green")
            if not report.confirmed:
                yield Text("Its source has not confirmed that it knows.", "yellow")
        case Owner.UNKNOWN:
            yield Text(
                "It is unknown who has the VM: it is paused at the source, and may be running at "
                "the destination. `aiomigrate outcome` may know by now.",
                "yellow",
            )
        case None:
            yield Text("It had not ended when this was saved.", "yellow")
        case owner:
            yield Text(f"The VM is with the {owner}.")


def _amounts(ended: Ended) -> str:
    account = ended.account
    if ended.report is None:
        connections = account.connections
        text = f"{size_text(account.bytes)} were moved in {time_text(account.duration_s)}"
        text += f" over {connections} connection{'s' * (connections != 1)}"
    else:
        text = f"Moved {report_sentence(asdict(ended.report))}"
    if account.zero_bytes:
        text += f"; {size_text(account.zero_bytes)} were zero and not sent"
    if account.lanes_lost:
        text += f"; of the connections {account.lanes_lost} were lost on the way"
    return text


def _plots(samples: Sequence[Sample]) -> Iterator[RenderableType]:
    """Of what is left, and the rates. None where nothing moved."""
    if len(samples) < 2 or not samples[-1].bytes_done:
        return
    length = time_text(samples[-1].at_s)
    left = [Point(one.at_s, one.left_bytes, _style(one)) for one in samples]
    most = max(one.left_bytes for one in samples)
    yield _heading(f"Memory left to be moved, over {length}")
    yield Plot(left, rows=5, top=size_text(most))
    # A sample's rate is that of the time before it.
    begins = [samples[0].at_s, *(one.at_s for one in samples[:-1])]
    rates = [
        Point(begin, one.rate, _style(one)) for begin, one in zip(begins, samples, strict=True)
    ]
    yield _heading("Rate")
    yield Plot(rates, rows=3, top=rate_text(max(one.rate for one in samples)))
    written = [Point(one.at_s, one.dirty_rate or 0.0, "magenta") for one in samples]
    if most_written := max(point.value for point in written):
        yield _heading("The guest wrote, of different pages")
        yield Plot(written, rows=2, top=rate_text(most_written))


def _style(sample: Sample) -> str:
    return _STYLES.get(sample.phase, "green")


def _iterations(iterations: Sequence[Iteration]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("", "to move", "sent", "zero", "time", "rate", "written", "downtime"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in _shown(iterations):
        if one is None:
            table.add_row("...")
            continue
        downtime = one.expected_downtime_ms
        table.add_row(
            str(one.number),
            size_text(one.bytes),
            size_text(one.bytes_sent),
            size_text(one.zero_bytes) if one.zero_bytes else "-",
            time_text(one.duration_s),
            rate_text(one.bytes_sent / one.duration_s) if one.duration_s > 0 else "-",
            rate_text(one.dirty_rate) if one.dirty_rate is not None else "-",
            time_text(downtime / 1000) if downtime is not None else "-",
        )
    return table


def _shown(iterations: Sequence[Iteration]) -> Iterator[Iteration | None]:
    """Those that fit on a page; None: some are left out."""
    if len(iterations) <= _FIRST_SHOWN + _LAST_SHOWN:
        yield from iterations
        return
    yield from iterations[:_FIRST_SHOWN]
    yield None
    yield from iterations[-_LAST_SHOWN:]


def _decisions(account: Account) -> Iterator[RenderableType]:
    decided = [one for one in account.history.iterations if one.decision]
    if not decided:  # of a report without its history
        yield from (_bullet(decision_sentence(one)) for one in account.decisions[-_LAST_SHOWN:])
        return
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="dim")
    for one in _shown(decided):
        if one is None:
            table.add_row("...")
            continue
        table.add_row(f"{one.number}", Text(decision_sentence(one.decision)))
    yield _indented(table)


def _downtime(downtime: Downtime) -> RenderableType:
    stages = {
        name.removesuffix("_ms").replace("_", " "): spent
        for name, spent in asdict(downtime).items()
    }
    whole = sum(stages.values())
    table = Table.grid(padding=(0, 1))
    for name, spent in stages.items():
        bar = ProgressBar(
            total=1.0,
            completed=_share(spent, whole),
            width=_BAR,
            complete_style="cyan",
            finished_style="cyan",
        )
        table.add_row(name, Text(f"{spent:.1f} ms", justify="right"), bar)
    return table


def _limits(limited_by: LimitedBy) -> RenderableType:
    whole = sum(limited_by.seconds.values())
    table = Table.grid(padding=(0, 1))
    for name, spent in sorted(limited_by.seconds.items(), key=lambda item: -item[1]):
        share = _share(spent, whole)
        bar = ProgressBar(
            total=1.0, completed=share, width=_BAR, complete_style="cyan", finished_style="cyan"
        )
        table.add_row(one_line(LIMITS.get(name, name)), Text(f"{share:.0%}", justify="right"), bar)
    return table


def _share(part: float, whole: float) -> float:
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0
