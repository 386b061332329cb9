"""Config and State in text: the parts that Cloud Hypervisor's snapshots and its migrations share.

A Config payload is `vm_config`, `common_cpuid` and `memory_manager_data`. A `file://` snapshot has
the first as its config.json, and the others in the State: in the data of its root and of its
memory-manager node, which are JSON inside a JSON string (reference.md, sections 3 and 5). So one is
made of the other in text, nothing is interpreted on the way, and the bytes are those that Cloud
Hypervisor itself would have sent. Every failure is a ConfigError.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from aiomigrate.memory.directory import STATE_NAME
from aiomigrate.memory.errors import ConfigError
from aiomigrate.memory.map import PAGE_BYTES

__all__ = ["SNAPSHOT_CONFIG_NAME", "StateParts", "join_config", "read_state", "split_config"]

SNAPSHOT_CONFIG_NAME = "config.json"

_PROCESSOR_BITS = {
    (0x1, "ebx"): 0xFF00_0000,
    (0xB, "edx"): 0xFFFF_FFFF,
    (0x1F, "edx"): 0xFFFF_FFFF,
    (0x8000_001E, "eax"): 0xFFFF_FFFF,
    (0x8000_001E, "ebx"): 0xFF,
    (0x8000_001E, "ecx"): 0xFF,
}
"""Where CPUID tells the processor's own number: initial APIC id, x2APIC id (Intel's manual, volume
2A, CPUID), extended APIC id, core and node (AMD's, volume 3, appendix E).
"""
_CONFIG_PARTS = ("vm_config", "common_cpuid", "memory_manager_data")


@dataclass(frozen=True, slots=True)
class StateParts:
    """What a State says beside what is opaque, in its own text."""

    memory_manager: str
    common_cpuid: str | None
    """Not there on arm64."""
    ranges: list[tuple[int, int]]
    """gpa and length of what `memory-ranges` holds, in its order."""


def read_state(raw: bytes) -> StateParts:
    """What a State says of memory and CPUID."""
    root = _object(_json(raw, STATE_NAME), STATE_NAME)
    children = _object(root.get("snapshots"), f"snapshots of {STATE_NAME}")
    node = _object(children.get("memory-manager"), "the State's memory-manager")
    text = _data_text(node, "the State's memory-manager")
    if text is None:
        raise ConfigError("the State's memory-manager has no data")
    manager = _object(_json(text, "the State's memory-manager"), "the State's memory-manager")
    table = _object(manager.get("memory_ranges"), "memory_ranges of the State")
    data = table.get("data")
    if not isinstance(data, list):
        raise ConfigError("memory_ranges of the State are no list")
    ranges = []
    for entry in data:
        gpa, length = (entry.get(k) if isinstance(entry, dict) else None for k in ("gpa", "length"))
        if type(gpa) is not int or type(length) is not int or length <= 0 or gpa < 0:
            raise ConfigError("an entry of the State's memory_ranges is no range")
        if gpa % PAGE_BYTES or length % PAGE_BYTES:
            raise ConfigError(f"the State's memory range at {gpa:#x} is not whole pages")
        ranges.append((gpa, length))
    own = _data_text(root, STATE_NAME)
    cpuid = None if own is None else _members(own).get("common_cpuid")
    return StateParts(text, cpuid, ranges)


def _data_text(node: dict[str, Any], where: str) -> str | None:
    """A node's own data: JSON inside a JSON string."""
    data = node.get("snapshot_data")
    if data is None:
        return None
    text = _object(data, f"snapshot_data of {where}").get("state")
    if not isinstance(text, str):
        raise ConfigError(f"state of {where} is no string")
    return text


def join_config(vm_config: bytes, state: StateParts) -> bytes:
    """Config of the parts, as Cloud Hypervisor writes it: in this order, compact."""
    _object(_json(vm_config, SNAPSHOT_CONFIG_NAME), SNAPSHOT_CONFIG_NAME)
    parts = [f'"vm_config":{vm_config.decode().strip()}']
    if state.common_cpuid is not None:
        parts.append(f'"common_cpuid":{state.common_cpuid}')
    parts.append(f'"memory_manager_data":{state.memory_manager}')
    return ("{" + ",".join(parts) + "}").encode()


def split_config(raw: bytes, state: StateParts) -> str:
    """`vm_config` of a Config, if the State says all the rest of it."""
    parts = _members(raw.decode())
    for name in parts:
        if name not in _CONFIG_PARTS:
            raise ConfigError(f"its Config has {name!r}, which a file:// snapshot has no place for")
    if "vm_config" not in parts:
        raise ConfigError("its Config has no vm_config")
    if _cpuid(parts.get("common_cpuid")) != _cpuid(state.common_cpuid):
        raise ConfigError("common_cpuid of its Config is not that of its State")
    manager = json.loads(parts["memory_manager_data"])
    kept = json.loads(state.memory_manager)
    for name in sorted(manager.keys() | kept.keys()):
        # The Config's list is empty or an old one: the State's is the one that counts.
        if name != "memory_ranges" and manager.get(name) != kept.get(name):
            raise ConfigError(
                f"{name} of its Config's memory_manager_data is not that of its State"
            )
    return parts["vm_config"]


def _cpuid(text: str | None) -> object:
    """A list of CPUID leaves without what is of the host's processor that made it: Cloud Hypervisor
    asks anew for each Config and State, on whichever processor it runs.
    """
    leaves = json.loads(text or "null")
    if not isinstance(leaves, list):
        return leaves
    return [
        {name: _kept(leaf.get("function"), name, value) for name, value in leaf.items()}
        if isinstance(leaf, dict)
        else leaf
        for leaf in leaves
    ]


def _kept(function: object, register: str, value: object) -> object:
    if type(function) is not int or type(value) is not int:
        return value  # no CPUID leaf, but all that it is for is to be compared
    return value & ~_PROCESSOR_BITS.get((function, register), 0)


def _json(raw: bytes | str, where: str) -> Any:
    try:
        return json.loads(raw.decode() if isinstance(raw, bytes) else raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON ({type(error).__name__})") from None


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is not an object")
    return value


def _members(text: str) -> dict[str, str]:
    """The members of a JSON object, each value as the text that it has there."""
    _object(_json(text, "the document"), "the document")
    members = {}
    decoder = json.JSONDecoder()
    at = _behind(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = decoder.raw_decode(text, at)
        at = _behind(text, _behind(text, at) + 1)  # the colon
        _, end = decoder.raw_decode(text, at)
        members[name] = text[at:end]
        at = _behind(text, end)
        if text[at] == ",":
            at = _behind(text, at + 1)
    return members


def _behind(text: str, at: int) -> int:
    """Where the next character is that is no white space."""
    while text[at] in " \t\n\r":
        at += 1
    return at
