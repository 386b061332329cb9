"""Each example as a process that moves a small VM; what arrives is compared with what was sent."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.image import GuestImage

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
MIB = 1 << 20
Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run() -> Iterator[Run]:
    """Start an example; what is left of it at the end of the test is killed."""
    with ExitStack() as processes:

        def start(name: str, *arguments: str | Path) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, EXAMPLES / name, *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            processes.enter_context(process)
            processes.callback(process.kill)
            return process

        yield start


@pytest.fixture
def vm(tmp_path: Path) -> Path:
    """A stored VM of 16 MiB, 5 MiB of it data."""
    directory = tmp_path / "vm"
    directory.mkdir()
    mapping = {
        "slot": 0, "gpa": 0, "size": 16 * MIB,
        "zone_id": "mem0", "virtio_mem": False, "file_offset": 0,
    }  # fmt: skip
    config = {"memory_manager_data": {"guest_ram_mappings": [mapping]}}
    (directory / "migration_config.json").write_text(json.dumps(config))
    (directory / "state.json").write_text('{"snapshots": {}}')
    with (directory / "memory-0").open("xb") as file:
        file.truncate(16 * MIB)
        file.seek(3 * MIB)
        file.write(random.Random(1).randbytes(5 * MIB))
    return directory


def address_of(receiver: subprocess.Popen[str]) -> str:
    assert receiver.stdout is not None
    line = receiver.stdout.readline()
    assert line.startswith("listening on "), line
    return line.split()[-1]


def end(process: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended well."""
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return out


@pytest.mark.parametrize("sender", ["send_stored_vm.py", "watch_progress.py"])
def test_from_directory_to_directory(run: Run, vm: Path, tmp_path: Path, sender: str) -> None:
    copy = tmp_path / "copy"
    receiving = run("receive_into_directory.py", "tcp:127.0.0.1:0", copy)
    sent = end(run(sender, vm, address_of(receiving)))
    received = end(receiving)
    assert GuestImage.of_directory(vm).differences_in(copy) == []
    assert received.startswith(f"{5 * MIB} bytes came over ")
    assert "has not confirmed" not in received
    if sender == "watch_progress.py":
        assert "100%  done        iteration 0  5 of 16 MiB" in sent
        assert sent.endswith("pause the guest: nothing is dirty\n")
    else:
        assert sent.startswith(f"{5 * MIB} bytes in ")
        assert sent.endswith("the destination has the VM\n")


def test_into_an_embedder(run: Run, vm: Path) -> None:
    receiving = run("embed_destination.py", "tcp:127.0.0.1:0")
    end(run("send_stored_vm.py", vm, address_of(receiving)))
    digest = hashlib.sha256((vm / "memory-0").read_bytes()).hexdigest()
    lines = end(receiving).splitlines()
    assert lines == [f"0 {digest}", "the VM is paused"]


def test_a_failure_is_one_sentence(run: Run, vm: Path) -> None:
    sending = run("send_stored_vm.py", vm, "tcp:127.0.0.1:1")
    _, err = sending.communicate(timeout=60)
    assert sending.returncode == 1
    (line,) = err.splitlines()
    assert "cannot connect" in line
    assert "the VM is with the source" in line


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_they_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60
