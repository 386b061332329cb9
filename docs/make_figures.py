"""Write the pages with figures and their pictures, from benchmarks/results and benchmarks/pages.

Run it from the root of the repository, as `python -m docs.make_figures`; the commands that measure
(`make figures`, `make faults`, `make soak`, `make fuzz`) do so at their end. A page's template is
its prose and says which table of which result stands where; no number that was measured is in it.
Tests compare all that it writes with what `render` returns.
"""  # noqa: INP001 - a script beside the documents, no package

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks import results
from benchmarks.goals import Goal, fuzz_goals, goals_of
from benchmarks.results import Cell, Result, in_words
from docs.plots import plot

__all__ = ["DOCS", "TEMPLATES", "main", "render"]

DOCS = Path(__file__).parent
TEMPLATES = Path(__file__).parents[1] / "benchmarks" / "pages"
_FROM = (
    "<!-- Made by docs/make_figures.py from benchmarks/pages/{name} and benchmarks/results. -->\n"
)


@dataclass(frozen=True)
class Plot:
    """A picture of some columns of one table: docs/figures/NAME.svg, NAME being the result's."""

    title: str
    """str.format with the result's arguments."""
    table: str
    label: str
    """Of a row: str.format with its cells."""
    series: Mapping[str, str]
    """Their names, and the columns."""
    where: Mapping[str, Cell]
    """Only rows that are so."""
    logarithmic: bool = False


PLOTS = {
    "loopback": Plot(
        title="Loopback, GiB/s",
        table="medians",
        label="connections: {connections}",
        series={"aiomigrate": "ours_gib_s", "iperf3": "iperf3_gib_s"},
        where={},
    ),
    "round_trip": Plot(
        title="A round trip of {rtt_ms:g} ms, high limits, MiB/s",
        table="rates",
        label="{link_mib_s:g} MiB/s, connections: {connections}",
        series={
            "pipelined": "pipelined_mib_s",
            "bare sockets": "bare_sockets_mib_s",
            "waiting for each answer": "waiting_mib_s",
        },
        where={"most_in_tcp_rmem_and_tcp_wmem": "128 MiB, 128 MiB"},
    ),
    "tls": Plot(
        title="Mutual TLS on loopback, GiB/s",
        table="medians",
        label="lanes: {lanes}",
        series={"aiomigrate": "ours_gib_s", "OpenSSL in C": "c_gib_s"},
        where={},
    ),
    "bitmap_scan": Plot(
        title="{mib} MiB of dirty bitmap to ranges, by bits set, ms",
        table="beside_c",
        label="{bits_set}",
        series={"aiomigrate": "ours_ms", "C, bit by bit": "plain_ms", "C, words": "words_ms"},
        where={},
        logarithmic=True,
    ),
}


def render() -> dict[Path, str]:
    """What every file should have in it. Raises FileNotFoundError where a result is missing."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - Markdown, of our own numbers
    )
    environment.globals |= {
        "result": Result.read,
        "taken": _taken,
        "table": _table,
        "goals": _goals,
        "figure": _figure,
        "picture": _picture,
        "fuzzed": _fuzzed,
    }
    pages = {
        DOCS / template: _FROM.format(name=template) + environment.get_template(template).render()
        for template in environment.list_templates(extensions=["md"])
    }
    pictures = {DOCS / "figures" / f"{name}.svg": _plotted(name) for name in PLOTS}
    return pages | pictures


def _taken(name: str) -> str:
    """The command, and where and when it ran."""
    result = Result.read(name)
    return f"`{result.command}` on {result.circumstances}; it took {result.seconds} s."


def _table(name: str, table: str) -> str:
    return results.table(Result.read(name).tables[table])


def _figure(name: str, table: str, key: str, **where: Cell) -> str:
    """One number, for prose."""
    (row,) = (row for row in Result.read(name).tables[table] if where.items() <= row.items())
    return in_words(row[key])


def _goals(name: str) -> str:
    return _verdicts(goals_of(Result.read(name)))


def _verdicts(goals: Sequence[Goal]) -> str:
    """What should be, what is, and whether that will do."""
    lines = ["| goal | | measured | |", "| --- | --- | --- | --- |"]
    for goal in goals:
        verdict = goal.verdict if goal.met else f"**{goal.verdict}**"
        lines.append(f"| {goal.what} | {goal.aim} | {goal.measured} | {verdict} |")
    return "\n".join(lines)


def _fuzz_results() -> list[Result]:
    return [Result.read(file.stem) for file in sorted(results.RESULTS.glob("fuzz_*.json"))]


def _fuzzed() -> str:
    """The last run of each target, and what they come to."""
    ran = _fuzz_results()
    rows = [
        {
            **row,
            "seed": result.arguments["seed"],
            "taken": result.taken[:10],
            "commit": result.commit,
        }
        for result in ran
        for row in result.tables["fuzzed"]
    ]
    return f"{results.table(rows)}\n\n{_verdicts(fuzz_goals(ran))}"


def _picture(name: str) -> str:
    title = PLOTS[name].title.format(**Result.read(name).arguments)
    return f"![{title}; the numbers are in the table](figures/{name}.svg)"


def _plotted(name: str) -> str:
    shape = PLOTS[name]
    rows = {}
    result = Result.read(name)
    for row in result.tables[shape.table]:
        if shape.where.items() <= row.items():
            numbers = (row[key] for key in shape.series.values())
            rows[shape.label.format(**row)] = [float(number or 0) for number in numbers]
    title = shape.title.format(**result.arguments)
    return plot(title, list(shape.series), rows, logarithmic=shape.logarithmic)


def main() -> None:
    """Write all, and say which goals the figures miss."""
    for path, text in render().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    ran = [Result.read(file.stem) for file in sorted(results.RESULTS.glob("*.json"))]
    for name, goals in (
        *((result.name, goals_of(result)) for result in ran),
        ("fuzz", fuzz_goals(_fuzz_results())),
    ):
        for goal in goals:
            if not goal.met:
                print(f"{name}: {goal.what}: {goal.aim}, is {goal.measured}: {goal.verdict}")


if __name__ == "__main__":
    main()
