"""The command line as real processes, and a small VM for it."""

import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeAlias

import pytest

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20

Program: TypeAlias = Callable[..., "Process"]


class Process:
    """One process of `python -m aiomigrate.cli`, with its output in pipes."""

    def __init__(self, *arguments: str | Path, **options: Any) -> None:
        environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "aiomigrate.cli", *map(str, arguments)],
            **{
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                "env": environment,
                **options,
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def address(self) -> str:
        """Where it listens."""
        event = self.event()
        assert event["event"] == "listening", event
        return str(event["address"])

    def event(self) -> dict[str, Any]:
        """Its next JSON line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"no more output; stderr: {self._rest_of_stderr()}"
        event: dict[str, Any] = json.loads(line)
        return event

    def complaint(self) -> str:
        """Its next line on stderr."""
        assert self._process.stderr is not None
        line: str = self._process.stderr.readline()
        return line

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def close_stdout(self) -> None:
        """Read no more of it."""
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.stdout = None

    def end(self) -> tuple[int, str, str]:
        """(status, what it printed since, stderr) once it has ended."""
        # Not `communicate`: it loses what a readline has read ahead.
        out, err = (
            "" if pipe is None else pipe.read()
            for pipe in (self._process.stdout, self._process.stderr)
        )
        return self._process.wait(timeout=60), out, err

    def last_event(self) -> tuple[int, dict[str, Any], str]:
        """(status, the last JSON line, stderr) once it has ended."""
        status, out, err = self.end()
        lines = out.splitlines()
        assert lines, f"status {status}, no output; stderr: {err}"
        events = [json.loads(line) for line in lines]
        return status, events[-1], err

    def _rest_of_stderr(self) -> str:
        return self.end()[2]


@pytest.fixture(autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program keeps its state, the journal among it."""
    place = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(place))
    return place


@pytest.fixture(autouse=True)
def _logging_restored() -> Iterator[None]:
    """Logging as it was: commands that run in this process configure it."""
    root, ours = logging.getLogger(), logging.getLogger("aiomigrate")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], level, of_ours = before
    root.setLevel(level)
    ours.setLevel(of_ours)


@pytest.fixture
def program() -> Iterator[Program]:
    """Start `aiomigrate`; what is left of it at the end of the test is killed."""
    with ExitStack() as processes:

        def start(*arguments: str | Path, **options: Any) -> Process:
            return processes.enter_context(Process(*arguments, **options))

        yield start


@pytest.fixture
def vm(tmp_path: Path) -> Path:
    """A stored VM of 12 MiB in two slots, 3 MiB of it data."""
    return make_vm(tmp_path / "vm")


def make_vm(directory: Path) -> Path:
    directory.mkdir()
    noise = random.Random(7)
    mappings = []
    for slot, gpa, size in ((0, 0, 8 * MIB), (3, 1 << 32, 4 * MIB)):
        mappings.append(
            {
                "slot": slot, "gpa": gpa, "size": size,
                "zone_id": "mem0", "virtio_mem": False, "file_offset": 0,
            }
        )  # fmt: skip
        with (directory / f"memory-{slot}").open("xb") as file:
            file.truncate(size)
            file.seek(MIB)
            file.write(noise.randbytes(size // 4))
    config = {"memory_manager_data": {"guest_ram_mappings": mappings}}
    (directory / "migration_config.json").write_text(json.dumps(config))
    (directory / "state.json").write_text('{"snapshots": {}}')
    return directory


def one_sentence(err: str) -> str:
    """What the program complained of: exactly one line."""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("aiomigrate: "), err
    return lines[0]
