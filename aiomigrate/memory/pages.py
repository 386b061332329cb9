"""One mapping of a guest that runs already, filled page by page from a stored VM.

Of each page it is known whether it was *served*: written into the guest's file, which happens once,
since from then on its content is the guest's. What is zero is served only when it is asked for, and
then allocated, because Cloud Hypervisor maps what is in the file (UFFDIO_CONTINUE) and nothing
else. Pages of a block are a mask: bit i for its page i.

Memory is written by system calls on the file, never through a mapping: whether this process or
another one has the file under userfaultfd does not matter here, and no fault can wait for the
thread that would serve it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aiomigrate.memory.blocks import BLOCK_BYTES, BlockSource, FilePart, new_buffer
from aiomigrate.memory.map import PAGE_BYTES

__all__ = ["BLOCK_PAGES", "ServedPages"]

BLOCK_PAGES = BLOCK_BYTES // PAGE_BYTES
_MASK_BYTES = BLOCK_PAGES // 8


class ServedPages:
    """The pages of one mapping. `serve` for jobs, one at a time for a block; the rest is quick."""

    def __init__(self, source: BlockSource, target: FilePart) -> None:
        self.source = source
        self.served_bytes = 0
        self._target = target
        # 32 MiB for 1 TiB of guest.
        self._served = np.zeros((-(-source.size // BLOCK_BYTES), _MASK_BYTES), np.uint8)

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self._served)

    def pages(self, block: int) -> int:
        """All pages of a block."""
        count = min(BLOCK_BYTES, self.source.size - block * BLOCK_BYTES) // PAGE_BYTES
        return (1 << count) - 1

    def missing(self, block: int, pages: int) -> int:
        """Which of `pages` of a block were not served."""
        return pages & ~int.from_bytes(self._served[block].tobytes(), "little")

    def serve(self, block: int, asked: int) -> int:
        """Write what is missing of the pages `asked`, and what came along with them: all that was
        written, for `note`. Pages that were not asked for are left out where they are zero.
        OSError, FramesError.
        """
        missing = self.missing(block, self.pages(block))
        asked &= missing
        if not asked:
            return 0
        first, last = _ends(asked)
        content = self.source.read_pages(block, first, last, new_buffer())
        wanted = asked
        if not self.source.in_pages:
            wanted |= missing & _not_zero(content)
        for start, end in _runs(wanted):
            self._target.write_pages(block, start, end, content)
        return wanted

    def fill(self, block: int, pages: int) -> int:
        """Write what is missing of `pages` and not zero: all that was written, for `note`. OSError,
        FramesError.
        """
        missing = self.missing(block, pages)
        if not missing:
            return 0
        first, last = _ends(missing)
        content = self.source.read_pages(block, first, last, new_buffer())
        # What was not read may be anything, and is not missing.
        wanted = missing & _not_zero(content)
        for start, end in _runs(wanted):
            self._target.write_pages(block, start, end, content)
        return wanted

    def note(self, block: int, pages: int) -> None:
        """These were served."""
        mask = np.frombuffer(pages.to_bytes(_MASK_BYTES, "little"), np.uint8)
        self._served[block] |= mask
        self.served_bytes += pages.bit_count() * PAGE_BYTES


def _not_zero(content: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> int:
    pages = content.reshape(-1, PAGE_BYTES).any(axis=1)
    return int.from_bytes(np.packbits(pages, bitorder="little").tobytes(), "little")


def _ends(pages: int) -> tuple[int, int]:
    """The first and the last of some pages."""
    return (pages & -pages).bit_length() - 1, pages.bit_length() - 1


def _runs(pages: int) -> Iterator[tuple[int, int]]:
    """The first and the last page of each run."""
    while pages:
        first = (pages & -pages).bit_length() - 1
        # Adding at a run's first bit carries to behind its last one.
        behind = pages + (1 << first)
        end = (behind & -behind).bit_length() - 1
        yield first, end - 1
        pages &= -1 << end
