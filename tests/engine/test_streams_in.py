"""Real byte streams into `receive` and a directory: whole, broken off, and cut everywhere."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import MigrationFailed, Owner, Report, StoredDestination
from tests.support.captures import ACCEPTED, STATE, Capture, Cut, load, replay_memory
from tests.support.sender import CaptureSender, Ending, Sent

_ROOT = Path(__file__).resolve().parents[2]
_START_BYTES = 16
_ERROR = bytes([2, *[0] * 15])


@dataclass
class _Taken:
    sent: Sent
    report: Report | None
    failure: MigrationFailed | None


async def _take(
    capture: Capture, into: Path, *, cut: Cut | None = None, ending: Ending = "eof"
) -> _Taken:
    """Play a capture to `receive`; after a cut that leaves only a stranger, all of it again."""
    report: Report | None = None
    failure: MigrationFailed | None = None
    async with (
        StoredDestination(into) as destination,
        aiomigrate.receive(destination, "tcp:127.0.0.1:0") as reception,
    ):
        address = str(reception.address)
        with CaptureSender(capture, address, cut=cut, ending=ending) as sender:
            sent = await asyncio.to_thread(sender.result)
        if cut is not None and cut.connection == 0 and cut.offset < _START_BYTES:
            assert reception.progress.phase == aiomigrate.Phase.WAITING, cut
            with CaptureSender(capture, address) as again:
                sent = await asyncio.to_thread(again.result)
        try:
            report = await reception.result()
        except MigrationFailed as error:
            failure = error
    return _Taken(sent, report, failure)


def _assert_stored(capture: Capture, into: Path, taken: _Taken) -> None:
    assert taken.failure is None, taken.failure
    assert taken.sent.problem is None
    assert taken.sent.answers == [stream.answers for stream in capture.streams]
    assert set(taken.sent.ends) == {"eof"}
    assert (into / "migration_config.json").read_bytes() == capture.config
    assert (into / "state.json").read_bytes() == capture.state
    manifest = json.loads((into / "aiomigrate.json").read_bytes())
    assert manifest["running"] is capture.running
    assert taken.report is not None
    assert taken.report.owner is Owner.DESTINATION
    assert taken.report.running is capture.running
    assert taken.report.confirmed


def _assert_one_sentence(failure: MigrationFailed | None) -> None:
    assert failure is not None
    assert failure.owner is Owner.SOURCE
    text = str(failure)
    assert "\n" not in text, text
    assert text.count("; the VM is with the source") == 1, text
    assert not failure.what.endswith("."), text
    assert "Traceback" not in text, text
    assert "Error(" not in text, f"a repr is not a sentence: {text}"
    assert "destination: " not in text, f"the failure has no words of its own: {text}"


def _assert_nothing_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.usefixtures("no_leaks")
async def test_a_real_stream_becomes_a_stored_vm(name: str, tmp_path: Path) -> None:
    capture = load(name)
    into = tmp_path / "vm"
    taken = await _take(capture, into)
    _assert_stored(capture, into, taken)
    assert replay_memory(capture).differences_in(into) == []
    assert sorted(path.name for path in into.iterdir()) == sorted(
        ["aiomigrate.json", "migration_config.json", "state.json"]
        + [f"memory-{mapping.slot}" for mapping in capture.mappings]
    )
    # What was stored can be opened, and its checksums are right.
    async with aiomigrate.StoredSource(into) as source:
        assert source.vm.refusal() is None
        assert set(source.vm.verify()) == {path.name for path in into.iterdir()} - {
            "aiomigrate.json"
        }


@pytest.mark.parametrize("name", ["abandon", "v52_to_head"])
@pytest.mark.usefixtures("no_leaks")
async def test_a_migration_that_broke_off_leaves_nothing(name: str, tmp_path: Path) -> None:
    taken = await _take(load(name), tmp_path / "vm")
    _assert_one_sentence(taken.failure)
    _assert_nothing_left(tmp_path)


@pytest.mark.usefixtures("no_leaks")
async def test_post_copy_is_refused_at_its_state(tmp_path: Path) -> None:
    capture = load("postcopy")
    taken = await _take(capture, tmp_path / "vm")
    assert taken.sent.problem == f"connection 0: Error to command {STATE}"
    assert taken.sent.answers[0][-16:] == _ERROR
    assert taken.sent.ends[0] == "eof"
    # A reset where State came before the fault connection's role had been read.
    assert taken.sent.ends[1] in ("eof", "reset")
    _assert_one_sentence(taken.failure)
    assert "post-copy" in str(taken.failure)
    _assert_nothing_left(tmp_path)


@pytest.mark.parametrize("ending", ["eof", "reset"])
@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.usefixtures("no_leaks")
async def test_a_stream_that_is_cut_leaves_nothing(
    name: str, ending: Ending, tmp_path: Path
) -> None:
    capture = load(name)
    for number, cut in enumerate(capture.cuts()):
        folder = tmp_path / str(number)
        folder.mkdir()
        taken = await _take(capture, folder / "vm", cut=cut, ending=ending)
        if cut.connection == 0 and cut.offset < _START_BYTES:
            _assert_stored(capture, folder / "vm", taken)
            continue
        assert taken.failure is not None, cut
        assert taken.report is None, cut
        _assert_one_sentence(taken.failure)
        assert taken.sent.problem is not None
        _assert_nothing_left(folder)
        for answers, stream in zip(taken.sent.answers, capture.streams, strict=True):
            assert stream.answers.startswith(answers.removesuffix(_ERROR)), cut


# The same through the real program


@contextmanager
def _program(into: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`aiomigrate receive` as a process, and the address that it has told."""
    command = [sys.executable, "-m", "aiomigrate.cli", "receive", "tcp:127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--into", str(into), "--progress", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "XDG_STATE_HOME": f"{into.parent}-state"},
    ) as program:
        assert program.stdout is not None
        try:
            listening = json.loads(program.stdout.readline())
            assert listening["event"] == "listening"
            yield program, listening["address"]
        finally:
            program.kill()


def _first_cut(capture: Capture, where: str) -> Cut:
    return next(cut for cut in capture.cuts() if where in cut.where)


@pytest.mark.parametrize("name", ["four", "paused", "zones", "v52_four"])
def test_the_program_stores_a_real_stream(name: str, tmp_path: Path) -> None:
    capture = load(name)
    into = tmp_path / "vm"
    with _program(into) as (program, address):
        with CaptureSender(capture, address) as sender:
            sent = sender.result()
        out, err = program.communicate(timeout=60)
    assert (program.returncode, err) == (0, "")
    assert sent.answers == [stream.answers for stream in capture.streams]
    assert replay_memory(capture).differences_in(into) == []
    assert (into / "migration_config.json").read_bytes() == capture.config
    assert (into / "state.json").read_bytes() == capture.state
    assert json.loads((into / "aiomigrate.json").read_bytes())["running"] is capture.running
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("four", "connection 1, request 1 (command 4), in its content"),
        ("paused", "connection 0, request 3 (command 3), in its payload"),
        ("v52_to_head", ""),
        ("postcopy", ""),
    ],
)
def test_the_program_stores_nothing_of_a_broken_stream(
    name: str, where: str, tmp_path: Path
) -> None:
    capture = load(name)
    cut = _first_cut(capture, where) if where else None
    with _program(tmp_path / "vm") as (program, address):
        with CaptureSender(capture, address, cut=cut) as sender:
            sent = sender.result()
        out, err = program.communicate(timeout=60)
    assert program.returncode == 1
    assert sent.problem is not None
    assert (sent.answers[0][-16:] == _ERROR) is (name == "postcopy")
    (sentence,) = err.splitlines()
    assert "the VM is with the source" in sentence
    assert json.loads(out.splitlines()[-1])["owner"] == "source"
    _assert_nothing_left(tmp_path)
