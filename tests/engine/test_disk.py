"""A destination whose disk is full, read-only or taken: a clear error, nothing left, no signal.

The migration runs in a process of its own, in a mount namespace where a small file system is its
disk: an access to memory that the disk has no room for would end that process by SIGBUS.
"""

import asyncio
import functools
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import StoredDestination, StoredVmError
from tests.support.hostile import SMALL
from tests.support.vms import Guest, migrate

_PROGRAM = """
    import asyncio, os, sys
    import aiomigrate
    from tests.support.image import Mapping
    from tests.support.leaks import Resources
    from tests.support.vms import MIB, Guest

    PLACE, MIBS, PREPARE = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    OPTIONS = []

    async def main():
        ram = (Mapping(0, 0, MIBS * MIB, "mem0", virtio_mem=False, file_offset=0),)
        before = Resources.now()
        with Guest(ram) as guest:  # the first half of it is data
            exec(PREPARE)
            begun = None
            try:
                async with aiomigrate.StoredDestination(PLACE + "/vm") as destination:
                    async with aiomigrate.receive(destination, "tcp:127.0.0.1:0") as reception:
                        try:
                            begun = aiomigrate.send(guest, str(reception.address), *OPTIONS)
                            async with begun as sending:
                                await sending.result()
                        except aiomigrate.MigrationError as error:
                            print("source:", type(error).__name__, error)
                        await reception.result()
            except aiomigrate.MigrationError as error:
                print("destination:", type(error).__name__, error)
            except aiomigrate.StoredVmError as error:
                print("opening:", error)
            assert begun is None or guest.running or guest.ended
            print("running:", guest.running)
        print("left:", sorted(os.listdir(PLACE)), Resources.left_since(before))

    asyncio.run(main())
"""


@functools.cache
def _namespaces() -> str | None:
    """Why there can be no file system of our own; None if there can."""
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=20)
    except OSError as error:
        return f"unshare: {error}"
    return None if done.returncode == 0 else f"no private mount: {done.stderr.strip()}"


def _migrate(place: Path, options: str, mib: int, prepare: str = "") -> list[str]:
    """Migrate a guest of `mib` MiB into a tmpfs on `place`; what the program said."""
    if why := _namespaces():
        pytest.skip(why)
    place.mkdir()
    script = f'mount -t tmpfs -o {options} tmpfs "$1" && shift && exec "$@"'
    program = [sys.executable, "-c", textwrap.dedent(_PROGRAM), str(place), str(mib), prepare]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(place), *program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_disk_that_is_large_enough(tmp_path: Path) -> None:
    """So that the others fail for the reason that they name."""
    said = _migrate(tmp_path / "disk", "size=16m", 8)
    assert said == ["running: False", "left: ['vm'] []"]


_TELLS_NOTHING = """
from aiomigrate.protocol import ALL_EXTENSIONS, Extension
extensions = ALL_EXTENSIONS & ~Extension.GUEST_DATA
OPTIONS.append(aiomigrate.SendOptions(extensions=extensions))
"""


def test_a_disk_that_is_too_small_for_what_will_come(tmp_path: Path) -> None:
    """The source says how much that is, and is refused before it sends any of it."""
    said = _migrate(tmp_path / "disk", "size=2m", 8)
    assert said[0].startswith("source: MigrationFailed tcp:127.0.0.1:"), said
    assert "the destination refused Config; the VM is with the source" in said[0]
    assert said[1].startswith("destination: MigrationFailed tcp:127.0.0.1:"), said
    assert "the guest's memory needs 4.0 MiB of memory, and 2.0 MiB are available" in said[1]
    assert said[2:] == ["running: True", "left: [] []"]


@pytest.mark.parametrize("mib", [8, 64], ids=["while content comes", "at once"])
def test_a_disk_that_fills_up(mib: int, tmp_path: Path) -> None:
    said = _migrate(tmp_path / "disk", "size=2m", mib, _TELLS_NOTHING)
    assert said[0].startswith("source: MigrationFailed main (tcp:127.0.0.1:"), said
    assert "the destination refused a Memory" in said[0]
    assert "the VM is with the source" in said[0]
    assert said[1].startswith("destination: MigrationFailed "), said
    assert "No space left on device" in said[1]
    assert said[2:] == ["running: True", "left: [] []"]


def test_a_disk_that_has_no_room_for_the_state(tmp_path: Path) -> None:
    """Memory just fits, what comes after it does not."""
    prepare = (
        "import tests.support.vms as vms; vms.STATE_JSON = "
        """b'{"snapshots": {}, "snapshot_data": {"state": "' + b'x' * (4 << 20) + b'"}}'"""
    )
    said = _migrate(tmp_path / "disk", "size=6m", 8, prepare)
    assert "the destination refused State" in said[0], said
    assert "No space left on device" in said[1]
    assert said[2:] == ["running: True", "left: [] []"]


def test_no_more_files(tmp_path: Path) -> None:
    said = _migrate(tmp_path / "disk", "size=16m,nr_inodes=3", 8)
    assert "the destination refused Config" in said[0], said
    assert "No space left on device" in said[1]
    assert said[2:] == ["running: True", "left: [] []"]


def test_a_read_only_disk(tmp_path: Path) -> None:
    said = _migrate(tmp_path / "disk", "ro", 8)
    assert said[0].startswith("opening: stored VM "), said
    assert "Read-only file system" in said[0]
    assert said[1:] == ["running: True", "left: [] []"]


def test_no_permission_to_write(tmp_path: Path) -> None:
    """Without the capabilities by which root may write everywhere."""
    if why := _namespaces():
        pytest.skip(why)
    place = tmp_path / "closed"
    place.mkdir(mode=0o500)
    script = 'exec setpriv --bounding-set -all --inh-caps -all --ambient-caps -all "$@"'
    program = [sys.executable, "-c", textwrap.dedent(_PROGRAM), str(place), "8", ""]
    done = subprocess.run(
        ["unshare", "-r", "sh", "-c", script, "sh", *program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "Permission denied" in said[0], said
    assert said[1:] == ["running: True", "left: [] []"]


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.mark.parametrize("what", ["a directory", "a file", "a dangling link"])
async def test_a_path_that_exists(what: str, tmp_path: Path, no_leaks: None) -> None:
    path = tmp_path / "vm"
    if what == "a directory":
        path.mkdir()
    elif what == "a file":
        path.write_bytes(b"mine")
    else:
        path.symlink_to("nowhere")
    with pytest.raises(StoredVmError, match="exists"):
        async with StoredDestination(path):
            pytest.fail("it was taken")
    assert _names(tmp_path) == ["vm"]
    assert not path.is_file() or path.read_bytes() == b"mine"


async def test_a_path_that_came_to_exist_meanwhile(tmp_path: Path, no_leaks: None) -> None:
    """What is there is not replaced, and the source keeps its VM."""
    path = tmp_path / "vm"
    with Guest(SMALL) as guest:
        guest.script["capture"] = lambda: asyncio.to_thread(path.mkdir)
        async with StoredDestination(path) as destination:
            sent, received = await migrate(guest, destination)
        assert isinstance(sent, aiomigrate.MigrationFailed)
        assert "refused Complete" in str(sent)
        assert isinstance(received, aiomigrate.MigrationFailed)
        assert "exists already" in str(received)
        assert guest.running
        assert guest.calls[-3:] == ["take_back", "resume", "stop"]
    assert _names(tmp_path) == ["vm"]
    assert _names(path) == []
