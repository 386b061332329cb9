"""A VM whose memory can be given by descriptor, and a VMM that takes it.

Mappings of one zone are in one memfd, each at its `file_offset`: as with Cloud Hypervisor, where a
zone is backed by a file.
"""

import hashlib
import mmap
import os
import random
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as ByKey
from typing import Self

from aiomigrate import CleanLog, GuestMemory, VmConfig
from tests.support.image import PAGE, Mapping
from tests.support.vms import MIB, Handing, Landing, config_of

__all__ = ["ZONES", "SharedGuest", "Taker", "digest_of", "memfds_of"]

ZONES = (
    Mapping(5, 1 << 32, 2 * MIB, "a", virtio_mem=False, file_offset=3 * MIB),
    Mapping(0, 0, 3 * MIB, "a", virtio_mem=False, file_offset=0),
    Mapping(2, 8 * MIB, MIB + 5 * PAGE, "b", virtio_mem=True, file_offset=0),
)


def memfds_of(mappings: Iterable[Mapping]) -> dict[str, int]:
    """A memfd a zone, with random data, holes and zeros in each mapping."""
    sizes: dict[str, int] = {}
    mappings = tuple(mappings)
    for mapping in mappings:
        end = mapping.file_offset + mapping.size
        sizes[mapping.zone_id] = max(sizes.get(mapping.zone_id, 0), end)
    chance = random.Random(11)
    fds = {zone: os.memfd_create(f"zone-{zone}", os.MFD_CLOEXEC) for zone in sizes}
    for zone, fd in fds.items():
        os.ftruncate(fd, sizes[zone])
    for mapping in mappings:
        for at in range(0, mapping.size, 8 * PAGE):  # a page of data, one of zeros, six holes
            data = chance.randbytes(PAGE) + bytes(PAGE)
            os.pwrite(fds[mapping.zone_id], data, mapping.file_offset + at)
    return fds


def digest_of(mappings: Iterable[Mapping], fds: ByKey[int, int]) -> dict[int, str]:
    """A digest of each slot's memory, read from its file."""
    return {
        mapping.slot: hashlib.blake2b(
            os.pread(fds[mapping.slot], mapping.size, mapping.file_offset)
        ).hexdigest()
        for mapping in mappings
    }


class SharedGuest(Handing):
    """A running VM in memfds. A context manager. Hooks as a `Guest`'s."""

    def __init__(self, mappings: Sequence[Mapping] = ZONES, *, resumes: bool = True) -> None:
        super().__init__(config_of(mappings), resumes=resumes)
        self.mappings = tuple(mappings)
        self.dirty = CleanLog()
        self.zones = memfds_of(mappings)
        self.fds = {mapping.slot: self.zones[mapping.zone_id] for mapping in mappings}
        memory_map = VmConfig.parse(self.config_bytes).memory_map
        self.memory = GuestMemory.over_files(
            memory_map, self.fds, writable=True, offsets=memory_map.file_offsets
        )

    def write(self, slot: int, at: int, data: bytes) -> None:
        """The guest writes."""
        mapping = next(m for m in self.mappings if m.slot == slot)
        os.pwrite(self.fds[slot], data, mapping.file_offset + at)

    def digest(self) -> dict[int, str]:
        return digest_of(self.mappings, self.fds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.close()
        for fd in self.zones.values():
            os.close(fd)


class Taker(Landing):
    """A VMM that takes memory by descriptor, too: the hook `adopt`. `adopted` is that memory."""

    def __init__(self) -> None:
        super().__init__()
        self.adopted: GuestMemory | None = None
        self.seen: dict[int, str] = {}
        self.fds: dict[int, int] = {}

    async def adopt(self, config: VmConfig, source: str, fds: ByKey[int, int]) -> None:
        self.fds = dict(fds)
        await self._hook("adopt")
        self.config, self.source = config.raw, source
        self.adopted = self.memory = GuestMemory.over_files(
            config.memory_map, fds, writable=True, offsets=config.memory_map.file_offsets
        )

    def digest(self) -> dict[int, str]:
        """Of the adopted memory, through its mapping."""
        assert self.adopted is not None
        found = {}
        for region in self.adopted._regions:
            assert isinstance(region.memory, mmap.mmap)
            found[region.mapping.slot] = hashlib.blake2b(region.memory).hexdigest()
        return found
