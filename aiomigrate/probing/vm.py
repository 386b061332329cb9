"""The VM that a probe pretends to send: its Config, its State, and addresses in and out of its RAM.

Read here, with plain JSON, and not by `memory.map`: the probe is to be independent of what it
checks.
"""

import json
import os
from dataclasses import dataclass
from typing import Self

from aiomigrate.errors import UsageError

__all__ = ["PAGE_BYTES", "ProbeVm", "Range"]

PAGE_BYTES = 4096
"""What mappings are multiples of (docs/probe.md, "memory")."""
_ADDRESSES = 1 << 64
_BUILT_IN_BYTES = 32 << 20
"""Of each of two mappings that touch."""

Range = tuple[int, int]
"""Guest physical address and length, in bytes."""


@dataclass(frozen=True, slots=True)
class ProbeVm:
    """A Config and a State, as bytes, and the mappings of the Config, sorted by address."""

    config: bytes
    state: bytes
    mappings: tuple[Range, ...]

    @classmethod
    def built_in(cls) -> Self:
        """64 MiB in two mappings that touch, and nothing else: aiomigrate's receiver takes it.

        A VMM that builds a VM of it needs more; Cloud Hypervisor refuses it.
        """
        mappings = [
            {
                "slot": slot,
                "gpa": slot * _BUILT_IN_BYTES,
                "size": _BUILT_IN_BYTES,
                "zone_id": "mem0",
                "virtio_mem": False,
                "file_offset": slot * _BUILT_IN_BYTES,
            }
            for slot in range(2)
        ]
        config = {"vm_config": {}, "memory_manager_data": {"guest_ram_mappings": mappings}}
        state = b'{"snapshots": {}, "snapshot_data": null}'
        return cls._of(json.dumps(config).encode(), state)

    @classmethod
    def stored(cls, directory: str) -> Self:
        """Config and State of a stored VM, which is only read. UsageError if they are not there."""
        documents = []
        # As Cloud Hypervisor's offload daemon names them.
        for name in ("migration_config.json", "state.json"):
            path = os.path.join(directory, name)
            try:
                with open(path, "rb") as file:
                    documents.append(file.read())
            except OSError as error:
                raise UsageError(f"{path}: {error.strerror}: no stored VM to probe with") from None
        try:
            return cls._of(*documents)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{directory}: no memory map in its Config ({error!r})") from None

    @classmethod
    def _of(cls, config: bytes, state: bytes) -> Self:
        listed = json.loads(config)["memory_manager_data"]["guest_ram_mappings"]
        mappings = sorted((int(entry["gpa"]), int(entry["size"])) for entry in listed)
        if not mappings:
            raise ValueError("it maps no memory")
        return cls(config, state, tuple(mappings))

    @property
    def page(self) -> Range:
        """The first page of RAM."""
        return self.mappings[0][0], PAGE_BYTES

    @property
    def block(self) -> Range:
        """RAM from its first page on, 4 MiB of it or the whole first mapping: more than the
        buffers of a connection hold before they grow.
        """
        gpa, size = self.mappings[0]
        return gpa, min(size, 4 << 20)

    @property
    def outside(self) -> Range:
        """A page that lies in no mapping; RAM that fills every address up to 2^64 is not met."""
        return self._end, PAGE_BYTES

    @property
    def beyond(self) -> Range:
        """The last page of RAM, and one that is none."""
        return self._end - PAGE_BYTES, 2 * PAGE_BYTES

    @property
    def touching(self) -> Range | None:
        """The last page of a mapping and the first of the next, where two mappings touch."""
        for (gpa, size), (following, _) in zip(self.mappings, self.mappings[1:], strict=False):
            if gpa + size == following:
                return following - PAGE_BYTES, 2 * PAGE_BYTES
        return None

    @property
    def wrapping(self) -> Range:
        """From the last page of RAM over 2^64 to the first page again."""
        gpa = self._end - PAGE_BYTES
        return gpa, _ADDRESSES - gpa + PAGE_BYTES

    @property
    def _end(self) -> int:
        gpa, size = self.mappings[-1]
        return gpa + size
