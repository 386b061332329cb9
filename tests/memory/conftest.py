"""Fixtures of the tests of guest memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiomigrate.memory.map import Mapping, MemoryMap, VmConfig

MIB = 1 << 20

ConfigMaker = Callable[..., bytes]


def config_bytes(mappings: list[Mapping], zones: list[dict[str, object]] | None = None) -> bytes:
    """A Config payload with these mappings, laid out as Cloud Hypervisor lays it out."""
    document = {
        "vm_config": {"memory": {"size": 0, "zones": zones}},
        "common_cpuid": [{"function": 0, "eax": 13}],
        "memory_manager_data": {
            "memory_ranges": {"data": []},
            "guest_ram_mappings": [
                {
                    "slot": mapping.slot,
                    "gpa": mapping.gpa,
                    "size": mapping.size,
                    "zone_id": mapping.zone_id,
                    "virtio_mem": mapping.virtio_mem,
                    "file_offset": mapping.file_offset,
                }
                for mapping in mappings
            ],
            "arch_mem_regions": [{"base": 0, "size": 18446744073709551615, "r_type": "Ram"}],
        },
    }
    return json.dumps(document, separators=(",", ":")).encode()


@pytest.fixture
def two_mappings() -> list[Mapping]:
    """1 MiB at 0 and 2 MiB at 4 GiB, as a big guest has them."""
    return [
        Mapping(0, 0, MIB, "mem0", False, 0),
        Mapping(7, 1 << 32, 2 * MIB, "mem0", False, 0),
    ]


@pytest.fixture
def memory_map(two_mappings: list[Mapping]) -> MemoryMap:
    """The map of that guest."""
    return MemoryMap(two_mappings)


@pytest.fixture
def config(two_mappings: list[Mapping]) -> VmConfig:
    """The Config of that guest."""
    return VmConfig.parse(config_bytes(two_mappings))


@pytest.fixture
def make_config() -> ConfigMaker:
    """`config_bytes`, for tests that need a Config of their own."""
    return config_bytes


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a VM is to be stored; nothing is there yet."""
    return tmp_path / "vm"


@pytest.fixture
def memfds() -> Iterator[Callable[[int], int]]:
    """Makes memfds of a size; all are closed in the end."""
    made: list[int] = []

    def make(size: int) -> int:
        fd = os.memfd_create("test")
        made.append(fd)
        os.ftruncate(fd, size)
        return fd

    yield make
    for fd in made:
        os.close(fd)
