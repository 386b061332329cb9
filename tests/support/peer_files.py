"""Memory that the naive receiver in `peer.py` gets by descriptor, as Cloud Hypervisor takes it."""

import os
import socket

from tests.support.image import GuestImage
from tests.support.peer_connection import Refused

__all__ = ["PassedFiles"]

_PIECE = 1 << 20


class PassedFiles:
    """A file for each slot; closed by `close`."""

    def __init__(self) -> None:
        self.fds: dict[int, int] = {}

    def take(self, sock: socket.socket, length: int) -> None:
        """Exactly one, beside the slot's number. The header was read by a plain recv, which would
        have lost one that came with it.
        """
        raw, fds, _, _ = socket.recv_fds(sock, length, 4)
        slot = int.from_bytes(raw, "little")
        if len(raw) != 4 or len(fds) != 1 or slot in self.fds:
            for fd in fds:
                os.close(fd)
            raise Refused(f"MemoryFd: {raw!r} with {len(fds)} descriptors")
        self.fds[slot] = fds[0]

    def fit(self, memory: GuestImage) -> None:
        """The real one makes fresh memory for a missing slot, and ignores a surplus one: that is
        the sender's fault, so that it is noted here.
        """
        if self.fds.keys() != memory.slots.keys():
            raise Refused(f"descriptors of {self.fds.keys()}, not {memory.slots}")
        for mapping in memory.mappings:
            size = os.fstat(self.fds[mapping.slot]).st_size
            if size < mapping.file_offset + mapping.size:
                raise Refused(f"slot {mapping.slot}: a file of {size} bytes")

    def read_into(self, memory: GuestImage) -> None:
        """What the files hold now."""
        for mapping in memory.mappings:
            fd, at = self.fds[mapping.slot], mapping.file_offset
            for page in range(0, mapping.size, _PIECE):
                length = min(_PIECE, mapping.size - page)
                memory.write(mapping.gpa + page, os.pread(fd, length, at + page))

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
