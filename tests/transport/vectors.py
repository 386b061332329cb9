"""A scattered buffer as the transport wants it, plain enough to be believed."""

import ctypes
import mmap
from collections.abc import Sequence

_FUNCTION = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, use_errno=True
)


class PlainVector:
    """The bytes of `pieces`, in order. Notes in `asked` how much was asked for each time."""

    def __init__(self, pieces: Sequence[bytearray | mmap.mmap], *, steady: bool = True) -> None:
        self.pieces = pieces
        self.steady = steady
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

    def through(self, function: int, handle: int, max_bytes: int, piece: int) -> tuple[int, int]:
        call = _FUNCTION(function)
        moved = 0
        while self.remaining and moved < max_bytes:
            address, length = self._rest[0]
            ctypes.set_errno(0)
            now = call(handle, address, min(length, piece))
            if now <= 0:
                return moved, ctypes.get_errno() or -1
            self.advance(now)
            moved += now
        return moved, 0

    def advance(self, nbytes: int) -> None:
        self.remaining -= nbytes
        while nbytes:
            address, length = self._rest.pop(0)
            if nbytes < length:
                self._rest.insert(0, (address + nbytes, length - nbytes))
                return
            nbytes -= length
