"""The demo's VM: a stored VM as Cloud Hypervisor's offload daemon writes one, of any size.

Half of its memory is holes, a quarter random, a quarter compressible, in stripes of a few MiB
all over the guest. It has no disk and no kernel: it is there to be moved.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiomigrate.memory.checksum import checksum
from aiomigrate.memory.directory import CONFIG_NAME, STATE_NAME, memory_name

__all__ = ["MIN_BYTES", "Slot", "checksums", "content_bytes", "make", "slots_of"]

_MIB = 1 << 20
_STRIPE = 4 * _MIB
"""2 MiB of hole, 1 MiB random, 1 MiB compressible."""
MIN_BYTES = 4 * _STRIPE
_ABOVE_4G = 1 << 32
_BELOW_4G = 3 << 30
"""Cloud Hypervisor keeps the last GiB below 4 GiB for devices."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One mapping of the guest's memory."""

    number: int
    gpa: int
    size: int


def slots_of(size: int) -> tuple[Slot, ...]:
    """Three quarters at 0 (3 GiB at the most), the rest above 4 GiB."""
    low = min(size * 3 // 4 // _STRIPE * _STRIPE, _BELOW_4G)
    return Slot(0, 0, low), Slot(1, _ABOVE_4G, size - low)


def content_bytes(size: int) -> int:
    """What a VM of `size` bytes holds besides holes."""
    return size // 2


def make(directory: Path, size: int) -> None:
    """Write a VM of `size` bytes (a multiple of `MIN_BYTES`) into a new directory."""
    slots = slots_of(size)
    directory.mkdir(mode=0o700)
    (directory / CONFIG_NAME).write_text(json.dumps(_config(size, slots)))
    (directory / STATE_NAME).write_text(json.dumps(_state()))
    for slot in slots:
        with (directory / memory_name(slot.number)).open("xb") as file:
            file.truncate(slot.size)
            for offset, content in _stripes(slot):
                file.seek(offset)
                file.write(content)


def _stripes(slot: Slot) -> Iterator[tuple[int, bytes]]:
    noise = random.Random(slot.number)  # noqa: S311 (the same VM each time, not a secret)
    for stripe in range(0, slot.size, _STRIPE):
        yield stripe + 2 * _MIB, noise.randbytes(_MIB)
        line = f"stripe {stripe // _STRIPE} of slot {slot.number}, the same again and again\n"
        yield stripe + 3 * _MIB, (line.encode() * (_MIB // len(line) + 1))[:_MIB]


def _config(size: int, slots: tuple[Slot, ...]) -> dict[str, Any]:
    """As much of a `VmMigrationConfig` as says where memory is; sizes in bytes."""
    return {
        "vm_config": {
            "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
            "memory": {"size": size, "shared": True, "zones": None},
            "payload": {"kernel": "none: this VM is a demonstration"},
        },
        "memory_manager_data": {
            "guest_ram_mappings": [
                {
                    "slot": slot.number,
                    "gpa": slot.gpa,
                    "size": slot.size,
                    "zone_id": "mem0",
                    "virtio_mem": False,
                    "file_offset": 0,
                }
                for slot in slots
            ]
        },
    }


def _state() -> dict[str, Any]:
    """A snapshot tree: each node has an id, its data and its children."""
    names = ("cpu-manager", "memory-manager", "device-manager")
    children = {name: {"snapshots": {}, "snapshot_data": {"state": name}} for name in names}
    return {"snapshots": children, "snapshot_data": None}


def checksums(directory: Path, size: int) -> dict[str, str]:
    """The checksum of each memory file below `directory`, computed from what the disk says now."""
    found = {}
    for slot in slots_of(size):
        name = memory_name(slot.number)
        with (directory / name).open("rb") as file:
            found[name] = checksum(file.fileno(), slot.size)
    return found
