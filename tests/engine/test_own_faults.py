"""The loop that serves the faults of memory in its own process does not wait for them itself."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.own_faults import open_userfaultfd
from tests.support.image import PAGE, Mapping
from tests.support.vms import MIB, store_vm

MAPPINGS = (
    Mapping(0, 0, 3 * MIB, "a", virtio_mem=False, file_offset=0),
    Mapping(1, 1 << 32, MIB, "a", virtio_mem=False, file_offset=4 * PAGE),
)


@pytest.mark.parametrize("mode", ["faults", "fill"])
def test_a_guest_in_our_own_process_reads_all_its_memory(tmp_path: Path, mode: str) -> None:
    try:
        os.close(open_userfaultfd())
    except OSError as error:
        pytest.skip(f"no userfaultfd for shared memory: {error}")
    stored = store_vm(tmp_path / "vm", MAPPINGS)
    expected = hashlib.sha256()
    for mapping in MAPPINGS:
        content = (stored / f"memory-{mapping.slot}").read_bytes()
        for at in range(mapping.size - PAGE, -1, -PAGE):
            expected.update(content[at : at + PAGE])
    # Were it to wait for itself, it would do so for ever: that is what the time limit is for.
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.own_faults", str(stored), mode],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, expected.hexdigest()), done.stderr
