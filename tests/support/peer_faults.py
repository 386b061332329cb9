"""Post-copy of the naive receiver in `peer.py`: what it asks for on its fault connection."""

import struct

from tests.support.image import GuestImage
from tests.support.peer_connection import OK, Refused
from tests.support.sockets import Wire

__all__ = ["ask_for_pages"]

_PAGE_FAULT = 9


def ask_for_pages(wire: Wire, memory: GuestImage, nbytes: int, *, first: bool) -> None:
    """Of each mapping the first `nbytes`, or all others; then nothing is asked any more."""
    for mapping in memory.mappings:
        pieces = range(mapping.gpa, mapping.gpa + mapping.size, nbytes)
        for gpa in pieces[:1] if first else pieces[1:]:
            length = min(nbytes, mapping.gpa + mapping.size - gpa)
            wire.send(struct.pack("<H6xQQQ", _PAGE_FAULT, 16, gpa, length))
            status, size = struct.unpack("<H6xQ", wire.receive(16))
            if (status, size) != (OK, 0):
                raise Refused(f"PageFault at {gpa:#x}: status {status}, {size} bytes", None)
    if not first:
        wire.close()
