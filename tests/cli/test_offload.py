"""`offload snapshot` and `offload restore` as processes, towards each other and towards a receiver
that behaves as Cloud Hypervisor's.
"""

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiomigrate import ReceiveOptions
from aiomigrate.cli import offload_snapshot
from aiomigrate.cli.offload_snapshot import Snapshots
from aiomigrate.cli.offload_socket import listening
from aiomigrate.cli.output import ProgressMode, open_output
from aiomigrate.cli.running import Attempt
from tests.cli.conftest import Process, Program, make_vm, one_sentence
from tests.support.captures import unpack_offload
from tests.support.image import PAGE, GuestImage, Mapping
from tests.support.peer import Peer
from tests.support.systemd import Manager
from tests.support.vms import MIB, file_bytes, store_vm

JSON = ("--progress", "json")
DOCUMENTS = ("migration_config.json", "state.json")
# Two mappings in one file of the sender's, and a last one that is no whole MiB.
SHARED = (
    Mapping(5, 1 << 32, 2 * MIB, "a", virtio_mem=False, file_offset=3 * MIB),
    Mapping(0, 0, 3 * MIB, "a", virtio_mem=False, file_offset=0),
    Mapping(2, 8 * MIB, MIB + 5 * PAGE, "b", virtio_mem=True, file_offset=0),
)


@pytest.fixture(scope="module")
def offload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_offload(tmp_path_factory.mktemp("offload"))


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _assert_same(stored: Path, original: Path, *, compressed: bool = False) -> None:
    """Byte for byte, with our manifest besides."""
    for name in DOCUMENTS:
        assert (stored / name).read_bytes() == (original / name).read_bytes()
    if not compressed:
        assert GuestImage.of_directory(original).differences_in(stored) == []
        assert file_bytes(stored) <= file_bytes(original)
        memory = [path.name for path in original.glob("memory-*")]
        assert _names(stored) == sorted(["aiomigrate.json", *DOCUMENTS, *memory])


def _restored(program: Program, stored: Path, peer: Peer, *options: str) -> None:
    status, event, err = program(
        "offload", "restore", stored, peer.address, *JSON, *options
    ).last_event()
    assert (status, event["event"]) == (0, "report"), err
    assert peer.finished() == ("completed" if "--resume" in options else "paused"), peer


def _assert_peer_has(original: Path, peer: Peer) -> None:
    assert peer.failure is None
    assert peer.config == (original / "migration_config.json").read_bytes()
    assert peer.state == (original / "state.json").read_bytes()
    assert peer.memory is not None
    assert peer.memory.differences_in(original) == []


@pytest.mark.parametrize("on_demand", [False, True], ids=["eager", "on-demand"])
def test_what_the_reference_daemon_stored_is_restored(
    program: Program, offload: Path, tmp_path: Path, on_demand: bool
) -> None:
    options = ("--resume", "--on-demand") if on_demand else ()
    fault_bytes = 64 << 10 if on_demand else 0
    (offload / "aiomigrate.json").unlink(missing_ok=True)
    with Peer(address=f"unix:{tmp_path}/in.sock", fault_bytes=fault_bytes) as peer:
        _restored(program, offload, peer, *options)
        _assert_peer_has(offload, peer)
        if not on_demand:  # what is a hole there is one here
            held = sum(os.fstat(fd).st_blocks * 512 for fd in peer.memory_fds.values())
            assert held <= file_bytes(offload)


@pytest.mark.parametrize("options", [(), ("--zstd",)], ids=["plain", "zstd"])
def test_a_snapshot_is_what_the_reference_daemon_would_have_written(
    program: Program, tmp_path: Path, options: tuple[str, ...]
) -> None:
    original, stored = store_vm(tmp_path / "vm", SHARED), tmp_path / "stored"
    address = f"unix:{tmp_path}/out.sock"
    taking = program("offload", "snapshot", address, "--into", stored, *options, *JSON)
    assert taking.address() == address
    giving = program("offload", "restore", original, address, "--resume", *JSON)
    status, given, err = giving.last_event()
    assert (status, err) == (0, ""), given
    status, taken, err = taking.last_event()
    assert (status, err) == (0, ""), taken
    assert given["event"] == taken["event"] == "report"
    assert taken["running"] is True
    assert taken["bytes"] > 0
    _assert_same(stored, original, compressed=bool(options))
    status, out, err = program("inspect", stored, "--verify").end()
    assert (status, err) == (0, ""), out
    fault_bytes = PAGE if options else 0
    with Peer(address=f"unix:{tmp_path}/in.sock", fault_bytes=fault_bytes) as peer:
        _restored(program, stored, peer, *(["--on-demand"] if options else []))
        _assert_peer_has(original, peer)
    again = program("offload", "restore", stored, f"unix:{tmp_path}/nobody", "--progress", "none")
    status, _, err = again.end()
    assert status == 1
    assert "it was given to" in err  # a word, and no refusal: it is a snapshot


def test_what_cannot_be_meant_begins_nothing(program: Program, vm: Path, tmp_path: Path) -> None:
    cases = {
        ("snapshot", "tcp:127.0.0.1:0", "--into", tmp_path / "new"): "unix sockets only",
        ("snapshot", "here", "--into", tmp_path / "new"): "'here' is no address",
        ("snapshot", f"unix:{tmp_path}/a", "--into", vm): "the path exists already",
        ("snapshot", f"unix:{tmp_path}/c", "--into", "no/new"): "there is no directory",
        ("restore", tmp_path / "none", f"unix:{tmp_path}/b"): "No such file or directory",
        ("restore", vm, "tcp:127.0.0.1:1"): "needs a unix socket",
    }
    running = {case: program("offload", *case, "--progress", "none") for case in cases}
    for case, process in running.items():
        status, out, err = process.end()
        assert (status, out) == (2, ""), (case, err)
        assert cases[case] in err
    assert _names(tmp_path) == ["a.lock", "vm"]


# Serving


def _give(program: Program, vm: Path, address: str) -> tuple[int, str]:
    status, _, err = program("offload", "restore", vm, address, "--progress", "none").end()
    return status, err


def _confirmed(serving: Process) -> None:
    """Wait until it has told of the next VM; the source knows that it is there."""
    while (event := serving.event())["event"] != "report":
        pass
    assert event["confirmed"] is True


def test_one_vm_after_the_other(program: Program, vm: Path, tmp_path: Path) -> None:
    """A bad one in between ends nothing; SIGTERM ends it in good order, and no file is left."""
    other = make_vm(tmp_path / "other")
    (other / "state.json").write_text('{"snapshots": {"other": 1}}')
    address, into = f"unix:{tmp_path}/out.sock", tmp_path / "all"
    serving = program("offload", "snapshot", address, "--into", into, "--keep-serving", *JSON)
    assert serving.address() == address
    assert _give(program, vm, address)[0] == 0
    _confirmed(serving)
    with socket.socket(socket.AF_UNIX) as bad:
        bad.connect(f"{tmp_path}/out.sock")
        bad.sendall(bytes.fromhex("01000000000000000000000000000000"))  # Start
        assert bad.recv(16)[:2] == b"\1\0"
        bad.sendall(bytes.fromhex("02000000000000000100000000000000") + b"{")  # Config
        assert bad.recv(16)[:2] == b"\2\0"  # an Error, and no end without a word
    while serving.event()["event"] != "error":
        pass
    assert _give(program, other, address)[0] == 0
    _confirmed(serving)
    serving.signal(signal.SIGTERM)
    status, _, _ = serving.end()
    assert status == 0
    assert _names(into) == ["vm-1", "vm-2"]
    _assert_same(into / "vm-1", vm)
    _assert_same(into / "vm-2", other)
    assert not (tmp_path / "out.sock").exists()


def test_a_socket_is_claimed_and_a_stale_one_replaced(
    program: Program, vm: Path, tmp_path: Path
) -> None:
    address = f"unix:{tmp_path}/out.sock"
    first = program("offload", "snapshot", address, "--into", tmp_path / "first", *JSON)
    first.address()
    second = program("offload", "snapshot", address, "--into", tmp_path / "second", *JSON)
    status, _, err = second.last_event()
    assert status == 2
    assert "another offload daemon listens there" in one_sentence(err)
    first.signal(signal.SIGKILL)
    first.end()
    assert (tmp_path / "out.sock").is_socket()
    third = program("offload", "snapshot", address, "--into", tmp_path / "third", *JSON)
    third.address()
    assert _give(program, vm, address)[0] == 0
    assert third.end()[0] == 0
    _assert_same(tmp_path / "third", vm)


def test_systemd_gives_the_socket_and_is_told(vm: Path, tmp_path: Path, program: Program) -> None:
    path = tmp_path / "unit.sock"
    command = [sys.executable, "-m", "aiomigrate.cli", "offload", "snapshot", f"unix:{path}"]
    command += ["--into", str(tmp_path / "stored"), "--progress", "none"]
    with Manager(path) as manager:
        giving = program("offload", "restore", vm, f"unix:{path}", "--progress", "none")
        with manager.service(command) as service:
            said = manager.hear_until("STOPPING=1")
            _, err = service.communicate(timeout=60)
        assert service.returncode == 0, err
        assert giving.end()[0] == 0
    assert said[0] == "READY=1"
    assert any("waiting for a VM" in line for line in said)
    assert path.exists()  # it is the unit's
    _assert_same(tmp_path / "stored", vm)


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid():
        pytest.skip("mounting a small file system takes root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(
    ("options", "refused", "says"),
    [((), "Config", "are needed and"), (("--zstd",), "State", "No space left on device")],
    ids=["known beforehand", "found out"],
)
def test_a_full_disk_is_an_error_and_leaves_nothing(
    program: Program,
    vm: Path,
    tmp_path: Path,
    small_disk: Path,
    options: tuple[str, ...],
    refused: str,
    says: str,
) -> None:
    address = f"unix:{tmp_path}/out.sock"
    taking = program("offload", "snapshot", address, "--into", small_disk / "vm", *options, *JSON)
    taking.address()
    status, err = _give(program, vm, address)
    assert status == 1
    assert f"the destination refused {refused}" in one_sentence(err)
    assert "the VM is with the source" in err
    status, event, err = taking.last_event()
    assert (status, event["owner"]) == (1, "source")
    assert says in one_sentence(err)
    assert _names(small_disk) == []


def _remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


def test_a_read_only_disk_is_an_error_to_who_brings_a_vm(
    program: Program, vm: Path, tmp_path: Path, small_disk: Path
) -> None:
    _remount(small_disk, "ro")
    address = f"unix:{tmp_path}/out.sock"
    taking = program("offload", "snapshot", address, "--into", small_disk / "vm", *JSON)
    taking.address()
    status, err = _give(program, vm, address)
    assert status == 1
    assert "the destination refused Config" in one_sentence(err)
    assert "the VM is with the source" in err
    status, event, err = taking.last_event()
    assert (status, event["owner"]) == (1, "source")
    assert _names(small_disk) == []


def test_a_service_goes_on_while_its_disk_takes_nothing(
    program: Program, vm: Path, tmp_path: Path, small_disk: Path
) -> None:
    """Neither its own directory nor that of a VM can be made; later both can."""
    _remount(small_disk, "ro")
    address, into = f"unix:{tmp_path}/out.sock", small_disk / "all"
    serving = program("offload", "snapshot", address, "--into", into, "--keep-serving", *JSON)
    serving.address()
    for _ in range(2):
        status, err = _give(program, vm, address)
        assert status == 1
        assert "the destination refused Config" in one_sentence(err)
    _remount(small_disk, "rw,size=32m")
    _give(program, vm, address)  # may be refused: it is looked at before a VM comes
    assert _give(program, vm, address)[0] == 0
    _confirmed(serving)
    serving.signal(signal.SIGTERM)
    status, _, err = serving.end()
    assert status == 0, err
    assert f"{into}: Read-only file system" in err


def test_what_a_killed_one_left_is_removed(program: Program, vm: Path, tmp_path: Path) -> None:
    """By the next one for the same place; nobody waits with anything made."""
    left, used = tmp_path / ".vm-new.partial-0badcafe", tmp_path / ".vm-new.partial-0ddba115"
    for directory in (left, used):
        directory.mkdir()
        (directory / "memory-0").write_bytes(b"a guest's")
    fd = os.open(used, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        address = f"unix:{tmp_path}/out.sock"
        into = tmp_path / "vm-new"
        taking = program("offload", "snapshot", address, "--into", into, *JSON)
        taking.address()
        while taking.event().get("phase") != "waiting":
            pass
        assert _names(tmp_path) == [left.name, used.name, "out.sock", "out.sock.lock", "vm"]
        assert _give(program, vm, address)[0] == 0
        assert taking.end()[0] == 0
        assert not left.exists()
        assert (used / "memory-0").exists()
    finally:
        os.close(fd)
    _assert_same(into, vm)


async def test_a_signal_between_two_vms_loses_nobody_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No migration is watched at that moment: the service ends as it does while it waits."""
    attempt = Attempt(open_output(ProgressMode.NONE, "test"))
    task = asyncio.current_task()
    assert task is not None

    async def struck(*_: object) -> None:
        attempt.interrupt(task)
        await asyncio.sleep(0)

    monkeypatch.setattr(offload_snapshot, "_take", struck)
    asked = Snapshots("unix:a", str(tmp_path), keep_serving=True, compressed=False, workers=1)
    async with listening(f"unix:{tmp_path}/a") as listener:
        assert not await offload_snapshot._take_next(attempt, asked, listener, ReceiveOptions())
    assert task.cancelling()
    task.uncancel()
