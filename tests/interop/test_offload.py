"""A real Cloud Hypervisor's guest through our offload daemon, its own, and both of them."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.captures import unpack_offload
from tests.support.cloud_hypervisor import (
    COUNTERS,
    Guest,
    Installation,
    Vmm,
    find_installation,
    listens,
    work_of,
)
from tests.support.image import GuestImage

FOUND = find_installation()
DAEMON = os.environ.get("OFFLOAD_DAEMON_BIN")
WHY = "OFFLOAD_DAEMON_BIN names no reference daemon" if DAEMON is None else str(FOUND)
pytestmark = [pytest.mark.skipif(isinstance(FOUND, str) or DAEMON is None, reason=WHY)]

_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    return Guest.build(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def installation() -> Installation:
    assert isinstance(FOUND, Installation)
    return FOUND


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    made = Path(f"/tmp/am-{os.getpid()}-{time.monotonic_ns()}")  # noqa: S108  # a socket's path is short
    made.mkdir()
    yield made
    shutil.rmtree(made)


def _ours(command: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "aiomigrate.cli", "offload", command, *arguments]


def _snapshot(daemon: str, socket: Path, into: Path, *options: str) -> list[str]:
    if daemon == "ours":
        return _ours(
            "snapshot", f"unix:{socket}", "--into", str(into), "--progress", "json", *options
        )
    assert DAEMON is not None
    return [DAEMON, "snapshot", "--socket", str(socket), "--output-dir", str(into)]


def _restore(
    daemon: str, stored: Path, socket: Path, *, resume: bool, on_demand: bool
) -> list[str]:
    if daemon == "ours":
        options = ["--resume"] * resume + ["--on-demand"] * on_demand
        return _ours("restore", str(stored), f"unix:{socket}", "--progress", "json", *options)
    assert DAEMON is not None
    options = ["--resume"] * resume + ["--ondemand"] * on_demand
    return [DAEMON, "restore", "--socket", str(socket), "--input-dir", str(stored), *options]


@contextmanager
def _daemon(command: list[str], place: Path, socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that listens; ended with the context."""
    log = place / "daemon.log"
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=place)
    try:
        _until(
            lambda: listens(f"unix:{socket}") or process.poll() is not None, f"{command} to listen"
        )
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def _confirmed(manifest: Path) -> bool:
    return '"confirmed": true' in manifest.read_text()


def _until(holds: Callable[[], bool], what: str) -> None:
    """Another program's state can only be polled."""
    end = time.monotonic() + _WITHIN_S
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def _done(process: subprocess.Popen[bytes], place: Path) -> None:
    assert process.wait(_WITHIN_S) == 0, (place / "daemon.log").read_text()


def _take(
    vmm: Vmm, daemon: str, place: Path, into: Path, *options: str, preserve: bool = False
) -> None:
    """The VMM's guest into a directory."""
    socket = place / "out.sock"
    with _daemon(_snapshot(daemon, socket, into, *options), place, socket) as process:
        vmm.send_memory(f"unix:{socket}", preserve=preserve)
        _done(process, place)


def _give(
    stored: Path, daemon: str, place: Path, vmm: Vmm, *, resume: bool, on_demand: bool
) -> None:
    """A directory's guest into the VMM."""
    socket = place / "in.sock"
    vmm.receive(f"unix:{socket}", on_demand=on_demand)
    log = place / "daemon.log"
    with log.open("ab") as file:
        command = _restore(daemon, stored, socket, resume=resume, on_demand=on_demand)
        done = subprocess.run(command, stdout=file, stderr=file, timeout=_WITHIN_S, check=False)
    assert done.returncode == 0, f"{log.read_text()}\n{vmm.log}"
    vmm.wait_received()


@pytest.mark.parametrize("on_demand", [False, True], ids=["eager", "on-demand"])
@pytest.mark.parametrize(
    ("taker", "giver"), [("ours", "ours"), ("ours", "reference"), ("reference", "ours")]
)
def test_a_guest_is_stored_and_runs_on(
    installation: Installation, guest: Guest, place: Path, taker: str, giver: str, on_demand: bool
) -> None:
    first, second, stored = (place / name for name in ("first", "second", "stored"))
    first.mkdir()
    second.mkdir()
    with Vmm(installation, guest, first, boots=True) as source:
        source.wait_work(more_than=COUNTERS)
        source.pause()
        _take(source, taker, place, stored)
        source.wait_ended()
    work = work_of(next(stored.glob("memory-*")))
    assert work > COUNTERS
    with Vmm(installation, guest, second, boots=False) as destination:
        _give(stored, giver, place, destination, resume=True, on_demand=on_demand)
        destination.wait_work(more_than=work)
        assert destination.state == "Running"


@pytest.mark.parametrize("options", [(), ("--zstd",)], ids=["plain", "zstd"])
def test_a_preserved_source_is_stored_by_both_alike(
    installation: Installation, guest: Guest, place: Path, options: tuple[str, ...]
) -> None:
    """`preserve_source`: the guest stays, paused, and can be stored again and run on."""
    first, second = place / "first", place / "second"
    first.mkdir()
    second.mkdir()
    with Vmm(installation, guest, first, boots=True) as source:
        source.wait_work(more_than=COUNTERS)
        source.pause()
        work = source.work
        _take(source, "reference", place, place / "theirs", preserve=True)
        _take(source, "ours", place, place / "ours", *options, preserve=True)
        _until(lambda: source.state == "Paused", "the source to have its guest back")
        assert source.work == work
        source.resume()
        source.wait_work(more_than=work)
    if not options:
        assert GuestImage.of_directory(place / "theirs").differences_in(place / "ours") == []
    with Vmm(installation, guest, second, boots=False) as destination:
        _give(place / "ours", "ours", place, destination, resume=False, on_demand=False)
        assert (destination.state, destination.work) == ("Paused", work)


def test_both_daemons_write_the_same_files(place: Path) -> None:
    """Of the same VM, byte for byte; ours has its manifest besides."""
    original, socket = unpack_offload(place), place / "out.sock"
    for daemon in ("ours", "reference"):
        with _daemon(_snapshot(daemon, socket, place / daemon), place, socket) as process:
            command = _restore("ours", original, socket, resume=False, on_demand=False)
            subprocess.run(command, check=True, timeout=_WITHIN_S, stdout=subprocess.DEVNULL)
            _done(process, place)
    theirs = {path.name: path.read_bytes() for path in (place / "reference").iterdir()}
    ours = {path.name: path.read_bytes() for path in (place / "ours").iterdir()}
    assert ours.pop("aiomigrate.json")
    assert ours == theirs


def test_one_guest_after_the_other(installation: Installation, guest: Guest, place: Path) -> None:
    """A daemon that keeps serving, and a guest that is taken twice with work in between."""
    first, socket = place / "first", place / "out.sock"
    first.mkdir()
    command = _snapshot("ours", socket, place / "all", "--keep-serving")
    with (
        Vmm(installation, guest, first, boots=True) as source,
        _daemon(command, place, socket) as process,
    ):
        works = []
        for number in (1, 2):
            source.wait_work(more_than=COUNTERS * number)
            source.pause()
            works.append(source.work)
            source.send_memory(f"unix:{socket}", preserve=True)
            manifest = place / "all" / f"vm-{number}" / "aiomigrate.json"
            _until(manifest.exists, f"the guest in {manifest.parent}")
            _until(lambda: source.state == "Paused", "the source to have its guest back")
            _until(partial(_confirmed, manifest), "the end of it")
            source.resume()
        process.terminate()
        _done(process, place)
    stored = [work_of(next((place / "all" / f"vm-{n}").glob("memory-*"))) for n in (1, 2)]
    assert stored == works
    assert works[1] > works[0]


def test_a_guest_goes_on_where_it_cannot_be_stored(
    installation: Installation, guest: Guest, place: Path
) -> None:
    """The answer is an Error, and not an end without a word."""
    first, full = place / "first", place / "full"
    first.mkdir()
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(full)], check=True)
    try:
        socket = place / "out.sock"
        with Vmm(installation, guest, first, boots=True) as source:
            source.wait_work(more_than=COUNTERS)
            command = _snapshot("ours", socket, full / "vm")
            with _daemon(command, place, socket) as process:
                source.send_memory(f"unix:{socket}")
                assert process.wait(_WITHIN_S) == 1
            assert "are free" in (place / "daemon.log").read_text()
            _until(lambda: source.state == "Running", "the guest to run on")
            source.wait_work(more_than=source.work)
            assert list(full.iterdir()) == []
    finally:
        subprocess.run(["umount", str(full)], check=True)


def test_our_engine_gives_its_memory_to_a_real_receiver(
    installation: Installation, guest: Guest, place: Path
) -> None:
    """And `receive`, which is no daemon, takes it."""
    from aiomigrate import StoredDestination, receive

    first, stored = place / "first", place / "stored"
    first.mkdir()

    async def take(source: Vmm) -> None:
        async with (
            StoredDestination(stored) as destination,
            receive(destination, f"unix:{place}/out.sock") as migration,
        ):
            await asyncio.to_thread(source.send_memory, str(migration.address))
            report = await migration.result()
        assert report.running
        assert report.bytes == 0

    with Vmm(installation, guest, first, boots=True) as source:
        source.wait_work(more_than=COUNTERS)
        asyncio.run(take(source))
        source.wait_ended()
    assert work_of(next(stored.glob("memory-*"))) > COUNTERS
