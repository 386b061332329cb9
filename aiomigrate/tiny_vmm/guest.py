"""The guest: a program that checks its own memory, as machine code (guest.s) and what it means.

Pass after pass it looks in each of its pages for the stamp of the pass before, and leaves a new
one; a device stamps every 16th page. So a page whose last write was lost on the way, or that is
older than it should be, is found within one pass. The numbers that tell what a page should hold are
in the CPU's registers, which travel apart from memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "CODE",
    "DMA_PORT",
    "ENTRY",
    "PAGE",
    "PANIC",
    "POWER_OFF",
    "POWER_PORT",
    "RESET",
    "SERIAL_PORT",
    "STACK",
    "STAMP_PORT",
    "Work",
    "stamp",
]

PAGE = 4096
ENTRY = 0x1000
STACK = 0x1000
"""Grows downwards from there."""
SERIAL_PORT = 0x3F8
STAMP_PORT = 0x700
DMA_PORT = 0x704
POWER_PORT = 0x708
RESET, POWER_OFF, PANIC = 1, 2, 3
"""What the power button asks for (0: nothing), and the guest tells the power port."""

CODE = bytes.fromhex(
    "31ed31ff8b0d08050000bbde100000e8980000004789f8ba00070000ef8b350005000083ff0174138b068b9efc0f00"
    "0031f339d875564039f87558f7c600f00000740e893e89f831f08986fc0f0000eb0889f0ba04070000ef81c6001000"
    "00497505e80a0000003b350405000072b4eba34589e8e843000000f4ba08070000ec84c07401ee8b0d08050000c3bb"
    "e6100000eb05bbec100000e80f00000089f0e818000000ba08070000b003eebaf80300008a0384c07404ee43ebf6c3"
    "89c3baf8030000b908000000c1c30488d8240f04303c3976020427eee2eeb00aeec3626f6f7465640a006c6f737420"
    "006f6c642000"
)
"""guest.s, assembled."""

_WORK_AT = 0x500
_PARAMETERS = struct.Struct("<3I")


@dataclass(frozen=True, slots=True)
class Work:
    """The guest's parameters, which it reads from its memory."""

    first: int
    """The address of the first of its pages; the rest of memory is not touched."""
    end: int
    """The address after the last one. With fewer than 33 pages the device would come too late."""
    batch: int
    """How many pages it writes between two ticks of its timer: its dirty rate."""

    @classmethod
    def read(cls, reader: Callable[[int, int], bytes]) -> Work:
        """From guest memory, which `reader` reads: address and size."""
        return cls(*_PARAMETERS.unpack(reader(_WORK_AT, _PARAMETERS.size)))

    def image(self) -> tuple[tuple[int, bytes], ...]:
        """What guest memory holds when the machine begins: pieces and their addresses."""
        return (_WORK_AT, _PARAMETERS.pack(self.first, self.end, self.batch)), (ENTRY, CODE)


def stamp(number: int, page: int) -> tuple[tuple[int, bytes], ...]:
    """What pass `number` leaves in the page at address `page`: pieces and their addresses."""
    return (page, struct.pack("<I", number)), (page + PAGE - 4, struct.pack("<I", number ^ page))
