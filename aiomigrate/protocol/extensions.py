"""What two aiomigrates can do with each other and a plain peer cannot: the table of extensions.

A source offers a set of them in bytes of Start that a plain destination ignores; the destination
accepts a part of it in bytes of its answer that are zero from a plain peer. With no answer nothing
on the wire differs from the reference's protocol. docs/protocol-extensions.md is made from
this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from aiomigrate.protocol.wire import RANGE_BYTES, Command

__all__ = [
    "ALL_EXTENSIONS",
    "EXTENSIONS",
    "EXTENSION_OF",
    "LANE_NUMBER_BYTES",
    "OFFER_BYTES",
    "TOKEN_BYTES",
    "Definition",
    "Extension",
    "Verdict",
    "accept",
    "decode_data",
    "decode_extensions",
    "encode_data",
    "encode_extensions",
]

OFFER_BYTES = 4
"""The bit set: in Start `command_headers[2:6]`, in its answer `padding[0:4]`."""
_DATA_BYTES = 6
"""The number of pages: in Config all of `command_headers`."""
_DATA_PAGE = 4096
TOKEN_BYTES = 16
"""128 bits: not to be guessed in the lifetime of a migration."""
LANE_NUMBER_BYTES = 4


class Extension(IntFlag):
    """One bit each; the number is the wire's. docs/protocol-extensions.md has their meaning."""

    NONE = 0
    """Nothing differs from a plain peer's protocol."""
    SESSION = 1 << 0
    """Lanes join with the migration's token and a number."""
    RETIRE_LANE = 1 << 1
    """A lost lane is fenced and replaced."""
    OWNERSHIP = 1 << 2
    """The destination can be asked who owns the VM."""
    FRESH_MEMORY = 1 << 3
    """The destination promises memory that reads as zeros."""
    ZERO_RUNS = 1 << 4
    """Ranges that became zero are named instead of sent."""
    CONFIRMATION = 1 << 5
    """The source says that it has read the answer to Complete."""
    GUEST_DATA = 1 << 6
    """The Config says how much of the memory may be other than zero."""


class Verdict(IntEnum):
    """What a destination says of a migration whose Complete it may have read: `padding[0]`."""

    COMMITTED = 1
    """The destination has the VM, and resuming it has ended."""
    ABORTED = 2
    """The destination has discarded the VM and will never execute its Complete."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What accepting one extension means."""

    meaning: str
    commands: Mapping[Command, str]
    """The requests that exist with it, and what is in each."""
    needs: Extension = Extension.NONE
    """Without these it is not accepted."""


EXTENSIONS: Mapping[Extension, Definition] = {
    Extension.SESSION: Definition(
        "The migration has a secret token, made by the source. A lane begins with Join instead of a"
        " role, and one that does not is refused. Lane numbers begin at 1 and are never used"
        " again.",
        {
            Command.SESSION: f"main connection, after Start and before anything else:"
            f" {TOKEN_BYTES} bytes, the token",
            Command.JOIN: f"a lane's first request: the token, and the lane's number"
            f" ({LANE_NUMBER_BYTES} bytes). Error: the connection is none of this migration's",
        },
    ),
    Extension.RETIRE_LANE: Definition(
        "A lane can be lost without ending the migration: what it left unanswered is sent again"
        " once it is fenced.",
        {
            Command.RETIRE_LANE: f"main connection, while Configured: the lane's number"
            f" ({LANE_NUMBER_BYTES} bytes), also of a lane that was never seen. Ok: nothing of that"
            " lane touches guest memory any more, nor will",
        },
        needs=Extension.SESSION,
    ),
    Extension.OWNERSHIP: Definition(
        "After an answer to Complete was lost the source can ask who owns the VM. The question is a"
        " fence: a destination that has not begun to take the VM over never will.",
        {
            Command.OWNER: f"a new connection's first request: {TOKEN_BYTES} bytes, the token. Ok"
            f" with padding[0] {Verdict.COMMITTED:d}: the destination owns the VM;"
            f" {Verdict.ABORTED:d}: it never will, and has discarded it. Error: it does not"
            " know the token. Closed without an answer: it cannot tell",
        },
        needs=Extension.SESSION,
    ),
    Extension.FRESH_MEMORY: Definition(
        "The destination promises that guest memory reads as zeros until it is written, so pages"
        " of zeros can be left out of the first pass. Not those of a zone that the Config backs by"
        " a file.",
        {},
    ),
    Extension.ZERO_RUNS: Definition(
        "Ranges that became zero are named instead of sent.",
        {
            Command.ZEROS: f"main connection while Configured, or a lane that is Ready: a table"
            f" of {RANGE_BYTES}-byte ranges, not longer in all than guest memory, and no content."
            " The ranges read as zeros once it is answered",
        },
    ),
    Extension.CONFIRMATION: Definition(
        "The source says that it has read Ok to Complete. Until it has the destination stays to be"
        " asked who owns the VM, also when the main connection ended in good order: something"
        " between the two that ends TCP may have closed it.",
        {
            Command.CONFIRM: "main connection, after Ok to Complete: no payload. Ok: it was read",
        },
        needs=Extension.OWNERSHIP,
    ),
    Extension.GUEST_DATA: Definition(
        "Config says how much of guest memory may be other than zero, so that a destination can"
        " refuse a guest that it has no room for, however large the rest is: its six"
        " `command_headers` are a number of pages of 4096 bytes, 0 where it is not known.",
        {},
    ),
}

ALL_EXTENSIONS = Extension(sum(EXTENSIONS))

EXTENSION_OF: Mapping[Command, Extension] = {
    command: extension
    for extension, definition in EXTENSIONS.items()
    for command in definition.commands
}
"""The extension that a request belongs to; requests that are not in it every peer knows."""


def accept(offer: Extension, willing: Extension) -> Extension:
    """What a destination that is `willing` accepts of `offer`: bits that it does not know, or
    whose needs are not met, are left out.
    """
    accepted = offer & willing & ALL_EXTENSIONS
    for extension, definition in EXTENSIONS.items():
        if definition.needs & ~accepted:
            accepted &= ~extension
    return accepted


def encode_extensions(extensions: Extension) -> bytes:
    """The 4 bytes of the wire."""
    return int(extensions).to_bytes(OFFER_BYTES, "little")


def decode_extensions(data: bytes) -> Extension:
    """The bit set in the first 4 bytes, unknown bits included."""
    return Extension(int.from_bytes(data[:OFFER_BYTES], "little"))


def encode_data(nbytes: int | None) -> bytes:
    """The 6 bytes of Config that say how much of guest memory is data; None: not known."""
    pages = -(-(nbytes or 0) // _DATA_PAGE)
    return min(pages, (1 << 8 * _DATA_BYTES) - 1).to_bytes(_DATA_BYTES, "little")


def decode_data(data: bytes) -> int | None:
    """The bytes of guest memory that these 6 bytes stand for; None: not known."""
    return _DATA_PAGE * int.from_bytes(data, "little") or None
