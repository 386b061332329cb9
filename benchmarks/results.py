"""What was measured, as a file: benchmarks/results/NAME.json.

A script adds rows to named tables of a `Recording`, which prints each as it comes, and writes the
file when all of them are there: a run that broke off leaves the last file alone. Beside the tables
stand the date, the machine and its load, the version and its commit, and the arguments. A column's
unit is the end of its key (`UNITS`). docs/make_figures.py makes the pages from these files.

A script that needs what the machine does not have calls `skip`.
"""

import datetime as dt
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from aiomigrate._version import __version__

__all__ = [
    "RESULTS",
    "SKIPPED",
    "Cell",
    "Recording",
    "Result",
    "Row",
    "commit_of",
    "git",
    "heading",
    "in_words",
    "need_programs",
    "skip",
    "table",
]

RESULTS = Path(__file__).with_name("results")
_ROOT = Path(__file__).parents[1]
SKIPPED = 77
"""Exit status of a script that cannot run here, as Automake's tests have it."""
UNITS = {
    "gib_s": "GiB/s",
    "mib_s": "MiB/s",
    "gib": "GiB",
    "mib": "MiB",
    "kib": "KiB",
    "bytes": "bytes",
    "percent": "%",
    "ms": "ms",
    "s": "s",
}
_DIGITS = 4
"""Significant ones that are kept of a float; tables show one less."""

Cell = str | int | float | None
Row = Mapping[str, Cell]


@dataclass(frozen=True)
class Machine:
    """Where something was measured."""

    processors: int
    model: str
    memory_gib: int
    kernel: str
    python: str

    @classmethod
    def here(cls) -> Self:
        """Where it runs."""
        model = re.search(
            r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(
            processors=os.cpu_count() or 1,
            model=model[1] if model is not None else platform.machine(),
            memory_gib=round(memory / (1 << 30)),
            kernel=platform.release().partition("-")[0],
            python=platform.python_version(),
        )


@dataclass(frozen=True)
class Result:
    """One run of one script. Raises FileNotFoundError or ValueError where its file is no good."""

    name: str
    taken: str
    """UTC, when it began, ISO 8601."""
    seconds: int
    """That it took."""
    machine: Machine
    load_before: tuple[float, ...]
    """Load averages of 1, 5 and 15 minutes when it began, getloadavg(3)."""
    version: str
    commit: str
    """With `, changed` where the working tree was not it."""
    module: str
    arguments: Mapping[str, Cell]
    tables: Mapping[str, Sequence[Row]]

    @classmethod
    def read(cls, name: str) -> Self:
        """The last run."""
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the command that measures {name} writes it, "
                "`make figures`, `make faults`, `make soak` or `make fuzz`"
            )
        document = json.loads(path.read_text(encoding="utf-8"))
        try:
            document["machine"] = Machine(**document["machine"])
            return cls(**document)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a result of this version: {error}") from error

    def write(self) -> None:
        """Put the file there."""
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (RESULTS / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")

    def column(self, name: str, key: str, **where: Cell) -> list[float]:
        """The numbers under `key` in a table, of the rows that are so; LookupError if none is."""
        rows = [row for row in self.tables[name] if where.items() <= row.items()]
        numbers = [value for row in rows if isinstance(value := row[key], int | float)]
        if not numbers:
            raise LookupError(f"{self.name}: no {key} in {name} where {where}")
        return numbers

    def cell(self, name: str, key: str, **where: Cell) -> float:
        """The one number of that kind."""
        (number,) = self.column(name, key, **where)
        return number

    @property
    def circumstances(self) -> str:
        """When and where, in a line."""
        machine = self.machine
        load = ", ".join(f"{value:.1f}" for value in self.load_before)
        return (
            f"{self.taken[:16].replace('T', ' ')} UTC; {machine.processors} processors "
            f"({machine.model}), {machine.memory_gib} GiB, Linux {machine.kernel}, "
            f"Python {machine.python}; load before {load}; aiomigrate {self.version} "
            f"({self.commit})"
        )

    @property
    def command(self) -> str:
        """What to type for the same."""
        options = [
            f"--{key.replace('_', '-')} {value}"
            for key, value in self.arguments.items()
            if value not in (None, "")
        ]
        return " ".join((f"python -m {self.module}", *options))


def git(repository: Path, *arguments: str) -> str:
    """What git says, without the last end of line."""
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()


def commit_of(repository: Path) -> str:
    """Its commit, and whether code was changed since: results and pages do not count."""
    if shutil.which("git") is None or not (repository / ".git").exists():
        return "no commit"
    changed = git(repository, "status", "--porcelain", "--", "*.py", "*.c", "*.S")
    return git(repository, "rev-parse", "--short=10", "HEAD") + (", changed" if changed else "")


@dataclass
class Recording:
    """A run that goes on: a context, which writes the file where it ends without an exception."""

    name: str
    module: str
    """Of the script; with the arguments it is what to type for the same."""
    arguments: Mapping[str, Cell]
    tables: dict[str, list[dict[str, Cell]]] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)
    _taken: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))
    _load: tuple[float, ...] = field(default_factory=os.getloadavg)
    _commit: str = field(default_factory=lambda: commit_of(_ROOT))
    _printing: str = ""

    def row(self, name: str, **cells: Cell) -> None:
        """Add a row to a table, and print it."""
        rows = self.tables.setdefault(name, [])
        if rows and list(rows[0]) != list(cells):
            raise ValueError(f"{name} has {list(rows[0])}, not {list(cells)}")
        rows.append({key: _rounded(value) for key, value in cells.items()})
        if name != self._printing:
            self._printing = name
            print(f"\n{self.name}, {name}:\n", *_head(cells), sep="\n")
        print(_line(map(in_words, rows[-1].values())), flush=True)

    def __enter__(self) -> Self:
        print(f"{self.name}: {self._result().circumstances}", flush=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._result().write()

    def _result(self) -> Result:
        return Result(
            name=self.name,
            taken=self._taken.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._began),
            machine=Machine.here(),
            load_before=tuple(round(value, 2) for value in self._load),
            version=__version__,
            commit=self._commit,
            module=self.module,
            arguments=self.arguments,
            tables=self.tables,
        )


def skip(reason: str) -> NoReturn:
    """End the script: it cannot run here."""
    print(f"skipped: {reason}", file=sys.stderr)
    raise SystemExit(SKIPPED)


def need_programs(*names: str) -> None:
    """Skip where one of the programs is not installed."""
    for name in names:
        if shutil.which(name) is None:
            skip(f"{name} is not installed")


# Tables


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    return "\n".join([*_head(rows[0]), *(_line(map(in_words, row.values())) for row in rows)])


def _head(row: Row) -> tuple[str, str]:
    return _line(map(heading, row)), _line("---" for _ in row)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def heading(key: str) -> str:
    """Of a column, with its unit."""
    for end, unit in UNITS.items():
        if key.endswith(f"_{end}"):
            return f"{key.removesuffix(f'_{end}').replace('_', ' ')}, {unit}"
    return key.replace("_", " ")


def _rounded(value: Cell) -> Cell:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def in_words(value: Cell) -> str:
    """A number with three digits that count, as a person writes it; text as it is."""
    if isinstance(value, float):
        shown = float(f"{value:.{_DIGITS - 1}g}")
        digits = _DIGITS - 2 - math.floor(math.log10(abs(shown))) if shown else 0
        return f"{shown:,.{max(0, digits)}f}"
    if isinstance(value, int):
        return f"{value:,}"
    return value or ""
