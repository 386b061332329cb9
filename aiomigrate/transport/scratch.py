"""A private buffer that scattered memory is gathered into, and scattered from, by the kernel.

TLS encrypts from one piece of memory, and decrypts into one; guest memory comes as an array of
`struct iovec`. The buffer is the mapping of a memory file, so that one `pwritev` or `preadv` moves
up to 1,024 ranges, at about 7 GiB/s in the processor's cache, whether they are 4 KiB or 256. And
memory that is not there is an error of a system call (EFAULT), where touching it ourselves would
be a SIGBUS.
"""

import ctypes
import mmap
import os

from aiomigrate.transport.vectored import IOVEC, Vector, first_entry

__all__ = ["PIECE_BYTES", "Scratch"]

PIECE_BYTES = 1 << 18
"""Encrypted or decrypted at a time, 0.1 to 0.2 ms each. With 128 KiB the socket's calls cost more;
much more than this does not stay in the processor's cache."""

_LIBC = ctypes.CDLL(None, use_errno=True)


def _vectored(name: str) -> "ctypes._NamedFuncPointer":
    function = _LIBC[name]
    function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long)
    function.restype = ctypes.c_ssize_t
    return function


_PREADV = _vectored("preadv")
_PWRITEV = _vectored("pwritev")


class Scratch:
    """A piece, for all connections of one event loop: it is filled and emptied without a wait in
    between. Whoever makes one closes it.
    """

    view: memoryview
    """The buffer itself."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("aiomigrate-tls")
        try:
            os.ftruncate(self._fd, PIECE_BYTES)
            self._memory = mmap.mmap(self._fd, PIECE_BYTES)
        except BaseException:
            os.close(self._fd)
            raise
        self.view = memoryview(self._memory)
        self._part = ctypes.create_string_buffer(IOVEC.size)

    def gather(self, vector: Vector, max_bytes: int) -> memoryview:
        """A copy of the next bytes of `vector`, at most a piece, which is not advanced. `OSError`
        (EFAULT) if its memory is not there.
        """
        return self.view[: self._call(_PWRITEV, vector, min(max_bytes, PIECE_BYTES), 0)]

    def scatter(self, vector: Vector, nbytes: int) -> None:
        """Copy the buffer's first `nbytes` to where `vector` says, and advance it. `OSError`."""
        at = 0
        while at < nbytes:
            moved = self._call(_PREADV, vector, nbytes - at, at)
            vector.advance(moved)
            at += moved

    def _call(
        self, call: "ctypes._NamedFuncPointer", vector: Vector, most: int, offset: int
    ) -> int:
        address, entries, size = vector.window(most)
        if size > most:  # one entry, of which only the beginning is meant
            base, _ = first_entry(address)
            IOVEC.pack_into(self._part, 0, base, most)
            address, entries = ctypes.addressof(self._part), 1
        moved: int = call(self._fd, address, entries, offset)
        if moved < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return moved

    def close(self) -> None:
        """Give the memory back."""
        try:
            self.view.release()
            self._memory.close()
        finally:
            os.close(self._fd)
