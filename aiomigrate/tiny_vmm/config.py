"""A machine's Config: Cloud Hypervisor's memory map, and what only a tiny VMM understands."""

from __future__ import annotations

import json
from typing import Any

from aiomigrate import VmConfig

__all__ = ["make_config", "own_part"]

_MAX_BYTES = 1 << 30
"""So that nothing else that KVM has a place for is in the way."""


def make_config(cpu: str, size: int, tick_s: float) -> VmConfig:
    """The Config of a machine: a `cpu` ("kvm" or "thread"), memory of `size` bytes, a timer."""
    mapping = {
        "slot": 0, "gpa": 0, "size": size,
        "zone_id": "mem0", "virtio_mem": False, "file_offset": 0,
    }  # fmt: skip
    document = {
        "vm_config": {"memory": {"size": size}, "tiny_vmm": {"cpu": cpu, "tick_s": tick_s}},
        "memory_manager_data": {"guest_ram_mappings": [mapping]},
    }
    return VmConfig.parse(json.dumps(document).encode())


def own_part(config: VmConfig) -> dict[str, Any]:
    """What `make_config` said, but for memory. ValueError if it was not this one."""
    own = json.loads(config.raw).get("vm_config", {}).get("tiny_vmm")
    (mapping, *others) = config.memory_map.mappings
    if not isinstance(own, dict) or own.keys() != {"cpu", "tick_s"}:
        raise ValueError("it is not the Config of a tiny VMM")
    if others or mapping.slot or mapping.gpa or mapping.file_offset or mapping.size > _MAX_BYTES:
        raise ValueError("a tiny VMM has one mapping, slot 0 at address 0, of at most 1 GiB")
    return own
