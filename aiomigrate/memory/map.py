"""The memory map of a VM, read from its Config.

Of a Config payload only `memory_manager_data.guest_ram_mappings` (the map) and
`vm_config.memory.zones[].file` (which zones may hold something before the first byte arrives) are
read; the bytes are kept as they came. The document is the peer's: whatever it holds, parsing ends
in a VmConfig or a ConfigError.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as ByZone
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from aiomigrate.memory import kernels
from aiomigrate.memory.errors import ConfigError, RangeError
from aiomigrate.memory.ranges import Table, make_table, words

__all__ = ["MAX_MAPPINGS", "PAGE_BYTES", "Mapping", "MemoryMap", "VmConfig"]

PAGE_BYTES = 4096
"""What dirty logs count in, and what every mapping is a multiple of (reference.md, section 4,
"dirty granularity").
"""

MAX_MAPPINGS = 1024
"""Arbitrary; each mapping costs a descriptor. Cloud Hypervisor makes one or two a zone and one a
hotplug slot (8).
"""

_REASONS = {
    kernels.EMPTY: "is empty",
    kernels.WRAPS: "wraps at 2^64",
    kernels.OUTSIDE: "begins outside the guest's memory",
    kernels.CROSSES: "crosses the end of its mapping",
    kernels.TOO_MUCH: "brings the table's sum to 2^63 bytes or more",
}


@dataclass(frozen=True, slots=True)
class Mapping:
    """One piece of guest RAM, as in Config (protocol.md, "Frames"). Sizes and offsets in bytes."""

    slot: int
    """u32; names the mapping within this migration only."""
    gpa: int
    """Where it begins in the guest's physical memory."""
    size: int
    """A multiple of the page size."""
    zone_id: str
    """The memory zone that it is part of."""
    virtio_mem: bool
    """Whether it is hot-plugged by virtio-mem."""
    file_offset: int
    """Where it begins in the slot's file at the sender."""

    @property
    def last(self) -> int:
        """The address of its last byte (its end may be 2^64)."""
        return self.gpa + self.size - 1


class MemoryMap:
    """`mappings` sorted by address, checked: page-aligned, not empty, disjoint, one a slot, 2^63-1
    bytes at most.

    ConfigError for anything else.
    """

    def __init__(self, mappings: Iterable[Mapping]) -> None:
        self.mappings = tuple(sorted(mappings, key=lambda mapping: mapping.gpa))
        if not self.mappings:
            raise ConfigError("it maps no guest memory")
        if len(self.mappings) > MAX_MAPPINGS:
            raise ConfigError(f"it has {len(self.mappings)} mappings, more than {MAX_MAPPINGS}")
        slots: set[int] = set()
        before: Mapping | None = None
        for mapping in self.mappings:
            _check_mapping(mapping)
            if mapping.slot in slots:
                raise ConfigError(f"it maps slot {mapping.slot} twice")
            slots.add(mapping.slot)
            if before is not None and mapping.gpa <= before.last:
                raise ConfigError(
                    f"the mappings of slots {before.slot} and {mapping.slot} overlap: "
                    f"{before.slot} ends at {before.last:#x}, {mapping.slot} begins at "
                    f"{mapping.gpa:#x}"
                )
            before = mapping
        self.total_bytes = sum(mapping.size for mapping in self.mappings)
        """Guest RAM in bytes."""
        if self.total_bytes >= 2**63:
            raise ConfigError("its mappings are 2^63 bytes or more together")
        self.firsts = np.array([mapping.gpa for mapping in self.mappings], np.uint64)
        """Sorted u64 addresses of the first bytes of the mappings, for the kernels."""
        self.lasts = np.array([mapping.last for mapping in self.mappings], np.uint64)
        """The same of their last bytes."""

    @property
    def file_offsets(self) -> dict[int, int]:
        """Where each slot's mapping begins in its file at the sender, by slot."""
        return {mapping.slot: mapping.file_offset for mapping in self.mappings}

    def check(self, table: Table) -> int:
        """The content bytes of a table, if each range lies inside one mapping and is not empty;
        RangeError if not.
        """
        rows = words(table)
        index, reason, total = kernels.check(rows, self.firsts, self.lasts)
        if index >= 0:
            gpa, length = rows[index].tolist()
            raise RangeError(index, gpa, length, _REASONS[reason])
        return total

    def whole(self) -> Table:
        """A table of one range a mapping."""
        return make_table((mapping.gpa, mapping.size) for mapping in self.mappings)

    def __repr__(self) -> str:
        return f"<MemoryMap {len(self.mappings)} mappings, {self.total_bytes} bytes>"


def _check_mapping(mapping: Mapping) -> None:
    name = f"the mapping of slot {mapping.slot}"
    if mapping.size <= 0:
        raise ConfigError(f"{name} is empty")
    if mapping.last >= 2**64:
        raise ConfigError(f"{name} wraps at 2^64")
    if mapping.file_offset + mapping.size >= 2**63:
        raise ConfigError(f"{name} ends beyond what a file can hold")
    for what in ("gpa", "size", "file_offset"):
        number = getattr(mapping, what)
        if number % PAGE_BYTES:
            raise ConfigError(
                f"{name} is not aligned: its {what} {number:#x} is no multiple of {PAGE_BYTES}"
            )


@dataclass(frozen=True, slots=True)
class VmConfig:
    """What a Config payload says about guest memory, and the payload itself."""

    raw: bytes = field(repr=False)
    """The payload, byte for byte."""
    memory_map: MemoryMap
    """Where the guest's RAM is."""
    file_zones: frozenset[str]
    """Zones that the VM's configuration backs by a file: their memory is not known to be zero at
    the start.
    """
    huge_pages: ByZone[str, int]
    """Zones that it wants in huge pages (hugetlb), and the size of those in bytes; 0: the
    machine's own choice.
    """

    @classmethod
    def parse(cls, raw: bytes) -> VmConfig:
        """Read `raw`, a Config payload; ConfigError if it is not JSON or its map is of no use."""
        try:
            document = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
        except ConfigError:
            raise
        except RecursionError:
            raise ConfigError("its JSON is nested too deep") from None
        # Bad UTF-8, bad JSON, and integers of more digits than Python takes.
        except ValueError as error:
            raise ConfigError(f"it is not JSON ({error})") from None
        root = _typed(document, dict, "the document")
        manager = _member(root, "memory_manager_data", dict, "the document")
        listed = _member(manager, "guest_ram_mappings", list, "memory_manager_data")
        # Before an object is made of each.
        if len(listed) > MAX_MAPPINGS:
            raise ConfigError(f"it has {len(listed)} mappings, more than {MAX_MAPPINGS}")
        memory_map = MemoryMap(
            _mapping(entry, f"guest_ram_mappings[{i}]") for i, entry in enumerate(listed)
        )
        zones, default = _zones(root)
        backed = frozenset(
            _member(zone, "id", str, where)
            for where, zone in zones.items()
            if zone.get("file") is not None
        )
        named = {
            zone["id"]: _huge_page(zone, where)
            for where, zone in zones.items()
            if isinstance(zone.get("id"), str)
        }
        sizes = {
            mapping.zone_id: named.get(mapping.zone_id, default) for mapping in memory_map.mappings
        }
        huge = {zone: size for zone, size in sizes.items() if size is not None}
        return cls(bytes(raw), memory_map, backed, huge)


def _refuse_constant(name: str) -> NoReturn:
    # Python reads NaN and Infinity; no other JSON parser on the way would.
    raise ConfigError(f"it is not JSON ({name})")


def _typed(value: object, kind: type, where: str) -> Any:
    # A bool is an int to Python, not to JSON.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where} is not {_KIND_NAMES[kind]}")
    return value


_KIND_NAMES = {
    dict: "an object",
    list: "a list",
    int: "an integer",
    str: "a string",
    bool: "true or false",
}


def _member(container: dict[str, object], key: str, kind: type, where: str) -> Any:
    if key not in container:
        raise ConfigError(f"{where} has no {key}")
    return _typed(container[key], kind, f"{key} of {where}")


def _number(container: dict[str, object], key: str, bits: int, where: str) -> int:
    value: int = _member(container, key, int, where)
    if not 0 <= value < 1 << bits:
        raise ConfigError(f"{key} of {where} is no unsigned {bits}-bit number")
    return value


def _mapping(entry: object, where: str) -> Mapping:
    container = _typed(entry, dict, where)
    return Mapping(
        slot=_number(container, "slot", 32, where),
        gpa=_number(container, "gpa", 64, where),
        size=_number(container, "size", 64, where),
        zone_id=_member(container, "zone_id", str, where),
        virtio_mem=_member(container, "virtio_mem", bool, where),
        file_offset=_number(container, "file_offset", 64, where),
    )


def _optional(container: dict[str, object], key: str, kind: type, where: str) -> Any:
    """A member that v52 writes as null, and main leaves out, where there is none."""
    value = container.get(key)
    return None if value is None else _typed(value, kind, f"{key} of {where}")


def _zones(root: dict[str, object]) -> tuple[dict[str, dict[str, object]], int | None]:
    """The zones that are described, by their places, and the huge pages of one that is not."""
    vm_config = _optional(root, "vm_config", dict, "the document") or {}
    memory = _optional(vm_config, "memory", dict, "vm_config") or {}
    zones: Sequence[object] = _optional(memory, "zones", list, "memory") or ()
    places = {f"zones[{i}]": entry for i, entry in enumerate(zones)}
    described = {where: _typed(entry, dict, where) for where, entry in places.items()}
    return described, _huge_page(memory, "memory")


def _huge_page(container: dict[str, object], where: str) -> int | None:
    """`hugepages` and `hugepage_size` of a zone or of all memory."""
    if not _optional(container, "hugepages", bool, where):
        return None
    if container.get("hugepage_size") is None:
        return 0
    size = _number(container, "hugepage_size", 64, where)
    if size.bit_count() != 1:
        raise ConfigError(f"hugepage_size of {where} is {size}, no power of two")
    return size
