"""What a result should show, as the project's plan has it, and whether it does.

Each function looks into the result of its name; figures and verdicts come from the file alone.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from benchmarks.results import Cell, Result, in_words

__all__ = ["Goal", "fuzz_goals", "goals_of"]

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "under": operator.lt,
    "at most": operator.le,
    "at least": operator.ge,
}
SLOWEST_CALLBACK_MS = 5.0
"""Of both event loops, 99th percentile."""
TO_BEAT_MS = {"0 %": 16.0, "0.1 %": 58.9, "1 %": 382.6, "5 %": 1199.0}
"""A scan of 384 MiB of bitmap, by the project that this one descends from; bits set at random."""


@dataclass(frozen=True)
class Goal:
    """One of them, and the figure that answers it."""

    what: str
    figure: float
    bound: str
    value: float
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is as it should be."""
        return _HOLDS[self.bound](self.figure, self.value)

    @property
    def verdict(self) -> str:
        """In words, with how much is missing."""
        if self.met:
            return "met"
        if not self.value:
            return "missed"
        percent = 100 * abs(self.figure - self.value) / self.value
        if not percent:
            return "just missed"
        return f"missed by {f'{percent:,.0f}' if percent >= 1000 else f'{percent:.3g}'} %"

    @property
    def aim(self) -> str:
        """The bound in words."""
        value = in_words(int(self.value)) if self.value == int(self.value) else f"{self.value:g}"
        return f"{self.bound} {value} {self.unit}".strip()

    @property
    def measured(self) -> str:
        """The figure in words."""
        return f"{in_words(self.figure)} {self.unit}".strip()


def _count(number: Cell, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def goals_of(result: Result) -> list[Goal]:
    """All goals for this result; most results have some."""
    find = _GOALS.get(result.name)
    return [] if find is None else list(find(result))


def fuzz_goals(results: Iterable[Result]) -> list[Goal]:
    """For the results of all targets together."""
    executions = {result.name: sum(result.column("fuzzed", "executions")) for result in results}
    receptions = executions.pop("fuzz_receive", 0)
    return [
        Goal("executions of all parsers", sum(executions.values()), "at least", 10_000_000),
        Goal("receptions", receptions, "at least", 1_000_000),
    ]


def _callbacks(result: Result) -> Iterator[Goal]:
    for kind, key in (("wall", "wall_p99_ms"), ("thread CPU", "cpu_p99_ms")):
        slowest = max(result.column("callbacks", key))
        what = f"p99 of callbacks, {kind} time, the slowest row"
        yield Goal(what, slowest, "under", SLOWEST_CALLBACK_MS, "ms")


def _real_peer(result: Result) -> Iterator[Goal]:
    cells = result.tables["cells"]
    right = [
        row["came_to_us"] == row["guest"]
        and row["went_back"] == f"{str(row['guest']).capitalize()}, counts on"
        for row in cells
    ]
    yield Goal("guests that came and went back as they were", sum(right), "at least", 6)
    for row in result.tables["downtime"]:
        connections = row["connections"]
        median = result.cell("downtime", "median_ms", connections=connections)
        what = f"downtime of an idle guest, {_count(connections, 'connection')}, median"
        yield Goal(what, median, "under", 15, "ms")


def _round_trip(result: Result) -> Iterator[Goal]:
    for rate in dict.fromkeys(result.column("rates", "link_mib_s")):
        for connections in (1, 4):
            where = {"link_mib_s": rate, "connections": connections}
            best = max(result.column("rates", "of_the_link_percent", **where))
            what = f"part of {rate:g} MiB/s, {_count(connections, 'connection')}, the better limits"
            yield Goal(what, best, "at least", 90, "%")


def _import_time(result: Result) -> Iterator[Goal]:
    for command, never in (
        ("import aiomigrate", {"numba", "uvloop", "rich", "typer", "aiohttp"}),
        ("aiomigrate --help", {"numba"}),
    ):
        (row,) = (row for row in result.tables["imports"] if row["command"] == command)
        loaded = never & set(str(row["loads"]).split(", "))
        what = f"`{command}`: loads of {', '.join(sorted(never))}"
        yield Goal(what, len(loaded), "at most", 0)


def _bitmap_scan(result: Result) -> Iterator[Goal]:
    ratios = result.column("beside_c", "plain_to_ours")
    yield Goal("`plain` to ours, the least of all densities", min(ratios), "at least", 2)
    first = max(result.column("scan", "slowest_first_chunk_ms"))
    yield Goal("first chunk, the slowest of all densities from 0.1 % on", first, "under", 5, "ms")
    added = max(result.column("scan", "memory_added_mib"))
    yield Goal("memory added, the most of all densities", added, "under", 64, "MiB")
    scale = 384 / float(result.arguments["mib"] or 384)
    for density, to_beat in TO_BEAT_MS.items():
        took = scale * result.cell("scan", "least_processor_time_ms", bits_set=density)
        yield Goal(f"processor time for 384 MiB, {density} set", took, "under", to_beat, "ms")


def _destination(result: Result) -> Iterator[Goal]:
    for guest, times in (("1 % populated", 10), ("explicit zeros", 5)):
        ratio = result.cell("sparse", "ratio", guest=guest)
        yield Goal(f"all of it sent to {guest}, time", ratio, "at least", times, "times")


def _offload_snapshot(result: Result) -> Iterator[Goal]:
    ratio = result.cell("ways", "cp_and_sync_to_it", way="ours")
    yield Goal("`cp --sparse=always` and `sync` to ours", ratio, "at least", 1)
    held = max(result.column("first_page", "memory_then_bytes"))
    yield Goal("memory there when the first page is served", held, "at most", 4096, "bytes")


def _on_demand(result: Result) -> Iterator[Goal]:
    medians = [result.cell("until_it_runs", "median_ms", guest_gib=size) for size in (1, 64)]
    what = "time until it runs, 64 GiB to 1 GiB (it must not grow; the bound is for what varies)"
    yield Goal(what, medians[1] / medians[0], "under", 1.5)


def _tls(result: Result) -> Iterator[Goal]:
    for lanes in (1, 4):
        ratio = result.cell("medians", "ratio", lanes=lanes)
        yield Goal(f"ours to C, {_count(lanes, 'lane')}", ratio, "at least", 0.8)
    yield from _callbacks(result)


def _soak(result: Result) -> Iterator[Goal]:
    (migrations,) = result.column("migrations", "migrations")
    yield Goal("migrations in one run", migrations, "at least", 10_000)
    start, end = (result.cell("held", key, what="resident, KiB") for key in ("start", "end"))
    yield Goal("growth of resident memory", (end - start) / 1024, "under", 64, "MiB")


def _tiny_soak(result: Result) -> Iterator[Goal]:
    (trips,) = result.column("round_trips", "round_trips")
    yield Goal("round trips in one run", trips, "at least", 500)


_GOALS: dict[str, Callable[[Result], Iterator[Goal]]] = {
    "bitmap_scan": _bitmap_scan,
    "callbacks": _callbacks,
    "destination": _destination,
    "import_time": _import_time,
    "loopback": _callbacks,
    "offload_snapshot": _offload_snapshot,
    "on_demand": _on_demand,
    "real_peer_v52": _real_peer,
    "real_peer_v53": _real_peer,
    "round_trip": _round_trip,
    "soak": _soak,
    "tiny_soak": _tiny_soak,
    "tls": _tls,
}
