"""A scattered buffer as the transport wants it, plain enough to be believed."""

import ctypes
import mmap
from collections.abc import Sequence


class PlainVector:
    """The bytes of `pieces`, in order. Notes in `asked` how much was asked for each time."""

    def __init__(self, pieces: Sequence[bytearray | mmap.mmap]) -> None:
        self.pieces = pieces
        self.remaining = sum(map(len, pieces))
        self.asked: list[int] = []
        self._held = [(ctypes.c_char * len(piece)).from_buffer(piece) for piece in pieces]
        self._rest = [(ctypes.addressof(held), len(held)) for held in self._held]
        self._array = (ctypes.c_uint64 * 0)()

    def window(self, max_bytes: int) -> tuple[int, int, int]:
        self.asked.append(max_bytes)
        taken = self._rest[:1]
        for entry in self._rest[1:1024]:
            if sum(length for _, length in taken) + entry[1] > max_bytes:
                break
            taken.append(entry)
        words = [word for entry in taken for word in entry]
        self._array = (ctypes.c_uint64 * len(words))(*words)
        return ctypes.addressof(self._array), len(taken), sum(length for _, length in taken)

    def advance(self, nbytes: int) -> None:
        self.remaining -= nbytes
        while nbytes:
            address, length = self._rest.pop(0)
            if nbytes < length:
                self._rest.insert(0, (address + nbytes, length - nbytes))
                return
            nbytes -= length
