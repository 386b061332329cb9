"""Receivers that a command starts, and what is seen of their processes."""

import asyncio
import os
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest

from aiomigrate.probing import (
    CannotProbe,
    ProbeVm,
    Result,
    ShellCommand,
    Verdict,
    Waiting,
    launching,
    plan,
    probe,
)
from aiomigrate.probing.launching import Launch, cpu_seconds
from aiomigrate.transport import parse_address
from tests.support.sockets import free_port

PYTHON = shlex.quote(sys.executable)
SPINS = """
import socket, struct, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
connection, _ = listener.accept()
file = connection.makefile("rb")
while header := file.read(16):
    command, length = struct.unpack("<H6xQ", header)
    payload = file.read(length)
    left = sum(size for _, size in struct.iter_unpack("<QQ", payload)) if command == 4 else 0
    while left:
        left -= len(file.read(left))
    connection.sendall(struct.pack("<H6xQ", 1, 0))
{at_the_end}
"""


def is_there(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in b"XZ"
    except FileNotFoundError:
        return False


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """A named pipe for what a command tells once it runs."""
    path = tmp_path / "note"
    os.mkfifo(path)
    return path


async def pids_in(note: Path) -> list[int]:
    """What the command writes; opening the pipe waits for it."""
    text = await asyncio.to_thread(note.read_text)
    return [int(pid) for pid in text.split()]


async def test_a_command_ends_with_all_that_it_started(note: Path) -> None:
    command = f"sleep 60 & sleep 61 & echo $$ $! > {note}; wait"
    async with ShellCommand(command) as launch:
        await launch.start()
        first = await pids_in(note)
        assert set(first) < set(await asyncio.to_thread(launch.processes))
        assert all(map(is_there, first))
        await launch.start()
        assert not any(map(is_there, first))
        second = await pids_in(note)
        assert launch.failure() == ""
    assert not any(map(is_there, second))
    assert launch.processes() == []


async def test_a_command_that_does_not_end_is_killed(
    note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_TERMINATE_S", 0.2)
    async with ShellCommand(f"trap '' TERM; echo $$ > {note}; sleep 60; sleep 60") as launch:
        await launch.start()
        pids = await pids_in(note)
    assert not any(map(is_there, pids))


async def test_a_cancelled_stop_leaves_nothing(
    note: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    monkeypatch.setattr(launching, "_TERMINATE_S", 0.2)
    launch = ShellCommand(f"trap '' TERM; echo $$ > {note}; sleep 60; sleep 60")
    await launch.start()
    (pid,) = await pids_in(note)
    stopping = asyncio.create_task(launch.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait([stopping])
    assert stopping.cancelled()
    assert not is_there(pid)


async def results_of(
    launch: Launch, port: int, names: list[str], patience_s: float
) -> list[Result]:
    where = parse_address(f"tcp:127.0.0.1:{port}")
    running = probe(where, plan(where, names), ProbeVm.built_in(), launch, patience_s)
    return [result async for result in running]


async def test_a_command_that_fails_is_told() -> None:
    async with ShellCommand("echo one; echo no such vm >&2; exit 3") as launch:
        with pytest.raises(CannotProbe) as caught:
            await results_of(launch, free_port(), ["start/plain"], 60.0)
    assert str(caught.value) == "the command ended with status 3: no such vm"


@pytest.mark.parametrize(
    ("at_the_end", "seen"),
    [
        ("while True: pass", r"keeps the connection .* using \d+% of a core"),
        (
            "connection.shutdown(2)\nwhile True: pass",
            r"closed, but it uses \d+% of a core with nothing to do",
        ),
        ("", "closed"),
    ],
    ids=["holding the connection", "having closed it", "not at all"],
)
async def test_a_receiver_that_spins_is_seen(tmp_path: Path, at_the_end: str, seen: str) -> None:
    port = free_port()
    script = tmp_path / "receiver.py"
    script.write_text(SPINS.replace("{at_the_end}", at_the_end))
    async with ShellCommand(f"exec {PYTHON} {script} {port}") as launch:
        # It has started once it listens, which must not take longer than patience lasts.
        (result,) = await results_of(launch, port, ["close/after-memory"], 2.0)
    assert re.fullmatch(seen, result.seen.text), result.seen.text
    assert result.seen.verdict is (Verdict.OK if seen == "closed" else Verdict.FINDING)


async def test_without_a_command_the_rest_is_not_run(tmp_path: Path) -> None:
    port = free_port()
    script = tmp_path / "receiver.py"
    script.write_text(SPINS.replace("{at_the_end}", ""))
    receiver = await asyncio.create_subprocess_exec(sys.executable, str(script), str(port))
    try:
        launch = Waiting(receiver.pid)
        names = ["start/plain", "abandon/started", "close/after-start"]
        results = await results_of(launch, port, names, 1.5)
    finally:
        await receiver.wait()
    assert [result.seen.verdict for result in results] == [
        Verdict.OK,
        Verdict.NOT_RUN,
        Verdict.NOT_RUN,
    ]
    assert results[1].seen.text.startswith("the receiver no longer listens")
    assert results[2].seconds == 0.0


async def test_a_receiver_that_hangs_is_not_asked_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        names = ["start/plain", "order/start-again", "abandon/started"]
        results = await results_of(Waiting(), port, names, 0.3)
    texts = [result.seen.text for result in results]
    assert texts[0].startswith("no answer in")
    assert f"127.0.0.1:{port}: Start: no answer in" in texts[1]
    assert texts[2] == texts[1]
    assert results[2].seconds == 0.0


def test_cpu_time_is_that_of_all_processes() -> None:
    own = cpu_seconds([os.getpid()])
    assert own > 0
    assert cpu_seconds([]) == 0.0
    assert cpu_seconds([os.getpid(), 1 << 30]) >= own, "one that is gone counts nothing"
