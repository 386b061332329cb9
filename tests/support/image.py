"""Guest memory as a dictionary of pages: the oracle that memory files and buffers are compared
with.

What is not in the dictionary is zero, so that a guest of any size costs what its data takes.
Nothing here knows aiomigrate.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["PAGE", "GuestImage", "Mapping", "SlotImage", "mappings_of"]

PAGE = 4096
_ZERO_PAGE = bytes(PAGE)


@dataclass(frozen=True)
class Mapping:
    """An entry of guest_ram_mappings."""

    slot: int
    gpa: int
    size: int
    zone_id: str
    virtio_mem: bool
    file_offset: int


@dataclass
class SlotImage:
    """Guest memory of one mapping: `pages` by their number from the mapping's start; what is
    missing is zero.
    """

    size: int
    pages: dict[int, bytes] = field(default_factory=dict)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Store `data` at `offset` bytes from the mapping's start."""
        assert 0 <= offset <= offset + len(data) <= self.size
        done = 0
        while done < len(data):
            page, within = divmod(offset + done, PAGE)
            piece = bytes(data[done : done + PAGE - within])
            if len(piece) < PAGE:
                old = self.pages.get(page, _ZERO_PAGE)
                piece_end = within + len(piece)
                new = old[:within] + piece + old[piece_end:]
                done += piece_end - within
            else:
                new = piece
                done += PAGE
            if new == _ZERO_PAGE:
                self.pages.pop(page, None)
            else:
                self.pages[page] = new

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on."""
        first, last = offset // PAGE, -(-(offset + length) // PAGE)
        whole = b"".join(self.pages.get(page, _ZERO_PAGE) for page in range(first, last))
        return whole[offset - first * PAGE :][:length]

    def differences(self, file: Path | int) -> list[str]:
        """What is different in `file` (a path or an open descriptor): a wrong size, and at most
        ten pages. Empty if equal.

        Holes are skipped, so a sparse file of any size is compared in the time that its data takes.
        """
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC) if isinstance(file, Path) else file
        try:
            size = os.fstat(fd).st_size
            if size != self.size:
                return [f"size {size}, expected {self.size}"]
            found: list[str] = []
            seen = 0
            for page, content in _data_pages(fd, size):
                expected = self.pages.get(page, _ZERO_PAGE)
                seen += page in self.pages
                if content != expected[: len(content)]:
                    found.append(f"page {page}: differs")
                    if len(found) == 10:
                        break
            if not found and seen != len(self.pages):
                found.append(f"{len(self.pages) - seen} pages that hold data are holes in the file")
            return found
        finally:
            if isinstance(file, Path):
                os.close(fd)


@dataclass
class GuestImage:
    """Guest memory of a whole VM, written by guest physical address."""

    mappings: tuple[Mapping, ...]
    slots: dict[int, SlotImage]

    @classmethod
    def of_config(cls, config: bytes) -> "GuestImage":
        mappings = mappings_of(config)
        return cls(mappings, {m.slot: SlotImage(m.size) for m in mappings})

    @classmethod
    def of_directory(cls, directory: Path) -> "GuestImage":
        """The memory of a directory as Cloud Hypervisor's offload daemon writes it
        (`memory-<slot>` beside the Config).
        """
        image = cls.of_config((directory / "migration_config.json").read_bytes())
        for slot, memory in image.slots.items():
            with (directory / f"memory-{slot}").open("rb") as file:
                for page, content in _data_pages(file.fileno(), memory.size):
                    memory.write(page * PAGE, content)
        return image

    def mapping_of(self, gpa: int, length: int) -> Mapping | None:
        """The one mapping that holds all of [gpa, gpa + length), or None."""
        for mapping in self.mappings:
            if mapping.gpa <= gpa and gpa + length <= mapping.gpa + mapping.size:
                return mapping
        return None

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        mapping = self.mapping_of(gpa, len(data))
        assert mapping is not None, f"{gpa:#x} and {len(data)} bytes are in no mapping"
        self.slots[mapping.slot].write(gpa - mapping.gpa, data)

    def differences(self, other: "GuestImage") -> list[str]:
        """What is different between two images, by slot; empty if they are equal."""
        found = []
        if self.slots.keys() != other.slots.keys():
            found.append(f"slots {sorted(self.slots)} and {sorted(other.slots)}")
        for slot in sorted(self.slots.keys() & other.slots.keys()):
            mine, theirs = self.slots[slot], other.slots[slot]
            if mine.size != theirs.size:
                found.append(f"slot {slot}: sizes {mine.size} and {theirs.size}")
            wrong = [
                page
                for page in sorted(mine.pages.keys() | theirs.pages.keys())
                if mine.pages.get(page, _ZERO_PAGE) != theirs.pages.get(page, _ZERO_PAGE)
            ]
            if wrong:
                found.append(f"slot {slot}: {len(wrong)} pages differ, the first are {wrong[:10]}")
        return found

    def differences_in(self, directory: Path) -> list[str]:
        """What is different in `memory-<slot>` of a stored VM; empty if equal."""
        return [
            f"slot {slot}: {difference}"
            for slot, memory in sorted(self.slots.items())
            for difference in memory.differences(directory / f"memory-{slot}")
        ]


def mappings_of(config: bytes) -> tuple[Mapping, ...]:
    """guest_ram_mappings of a Config, in its order."""
    document: dict[str, Any] = json.loads(config)
    return tuple(
        Mapping(**{name: entry[name] for name in Mapping.__dataclass_fields__})
        for entry in document["memory_manager_data"]["guest_ram_mappings"]
    )


def _data_pages(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Pages (number, content) that are not holes of the file `fd`."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: no data behind `at`
            return
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        for offset in range(begin // PAGE * PAGE, end, 256 * PAGE):
            block = os.pread(fd, min(256 * PAGE, end - offset), offset)
            for within in range(0, len(block), PAGE):
                yield (offset + within) // PAGE, block[within : within + PAGE]
        at = end
