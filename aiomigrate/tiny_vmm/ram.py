"""Guest memory: a memfd, which KVM, devices and the migration engine each have mapped.

A dirty log of a CPU does not see what devices write. They write through `Ram.write`, which notes
the pages in a bitmap that `aiomigrate.BitmapDirtyLog` exchanges for a fresh one.

A page may be missing while the guest runs (`pager`), and whoever touches it stands still until the
event loop has got it. So CPU and devices copy without the GIL, which the loop needs; on the loop's
own thread nobody may touch memory before all of it is there.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aiomigrate.tiny_vmm.guest import PAGE

__all__ = ["Ram"]


class Ram:
    """`size` bytes from guest address 0 on, all zeros, or what is in the file `fd` and stays the
    caller's. To be closed.
    """

    def __init__(self, size: int, fd: int | None = None) -> None:
        if fd is None:
            self.fd = os.memfd_create("tiny-vmm", os.MFD_CLOEXEC)
            os.ftruncate(self.fd, size)
        else:
            self.fd = os.dup(fd)
        self.memory = mmap.mmap(self.fd, size)
        self.address: int = np.frombuffer(self.memory, np.uint8).ctypes.data
        """Where it is in this process."""
        self._marking = threading.Lock()
        self._bitmaps: Sequence[NDArray[np.uint64]] = ()

    def close(self) -> None:
        """Unmap it; whoever else has the descriptor's memory mapped keeps it."""
        self.memory.close()
        os.close(self.fd)

    def read(self, address: int, size: int) -> bytes:
        """What a device, or a CPU that is none, reads."""
        data = ctypes.create_string_buffer(size)
        ctypes.memmove(data, self._place(address, size), size)
        return data.raw

    def write(self, address: int, data: bytes) -> None:
        """What a device writes."""
        ctypes.memmove(self._place(address, len(data)), data, len(data))
        # Not before: a page that is marked early can be sent as it was before the write.
        self.mark(address // PAGE, (address + len(data) - 1) // PAGE + 1)

    def _place(self, address: int, size: int) -> int:
        if not 0 <= address <= len(self.memory) - size:
            raise ValueError(f"{size} bytes at {address:#x} are not in guest memory")
        return self.address + address

    def mark(self, first: int, end: int) -> None:
        """Note that the pages from number `first` to before `end` have been written."""
        with self._marking:
            for bitmap in self._bitmaps:  # one, or none while nobody wants to know
                for word in range(first // 64, -(-end // 64)):
                    low, high = max(first - 64 * word, 0), min(end - 64 * word, 64)
                    bitmap[word] |= np.uint64((1 << high) - (1 << low))

    def exchange(self, fresh: Sequence[NDArray[np.uint64]]) -> Sequence[NDArray[np.uint64]]:
        """Mark in other bitmaps from here on: gives those that are marked no more."""
        with self._marking:
            marked, self._bitmaps = self._bitmaps, fresh
        return marked
