"""The frames of the protocol: request, response, memory range and connection role.

All integers are little-endian and unsigned. Source: Cloud Hypervisor,
`vm-migration/src/protocol.rs`. Decoding accepts any bytes of the right size: whether a number
means anything where it stands is for the cores to say.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum

__all__ = [
    "PROTOCOL_VERSION",
    "RANGE_BYTES",
    "REQUEST_BYTES",
    "RESPONSE_BYTES",
    "ROLE_BYTES",
    "SLOT_BYTES",
    "TLS_ALERT",
    "Command",
    "Dialect",
    "Request",
    "Response",
    "Role",
    "Status",
    "command_name",
    "decode_lane_number",
    "decode_range",
    "decode_role",
    "decode_slot",
    "encode_lane_number",
    "encode_range",
    "encode_role",
    "encode_slot",
]

TLS_ALERT = bytes((21, 3))
"""What a peer that expects TLS begins its answer with (RFC 8446, section 5.1)."""

_TLS_HANDSHAKE = int.from_bytes(bytes((22, 3)), "little")
"""What a peer that speaks TLS begins with, read as a command."""

PROTOCOL_VERSION = 0
"""What a Start announces; a destination accepts this one and the one before it."""

_REQUEST = struct.Struct("<H6sQ")
_RESPONSE = struct.Struct("<H6sQ")
_RANGE = struct.Struct("<QQ")
_ROLE = struct.Struct("<H")
_NUMBER = struct.Struct("<I")
_VERSION_AND_OFFER = struct.Struct("<H4s")

REQUEST_BYTES = _REQUEST.size
RESPONSE_BYTES = _RESPONSE.size
RANGE_BYTES = _RANGE.size
ROLE_BYTES = _ROLE.size
SLOT_BYTES = _NUMBER.size
_NO_HEADERS = bytes(6)
_NO_OFFER = bytes(4)


class Command(IntEnum):
    """What a request asks for. From 0x8000 on: extensions, which only an aiomigrate knows."""

    INVALID = 0
    START = 1
    CONFIG = 2
    STATE = 3
    MEMORY = 4
    COMPLETE = 5
    ABANDON = 6
    MEMORY_FD = 7
    COMPLETE_PAUSED = 8
    PAGE_FAULT = 9
    SESSION = 0x8000
    JOIN = 0x8001
    RETIRE_LANE = 0x8002
    OWNER = 0x8003
    ZEROS = 0x8004
    CONFIRM = 0x8005


class Status(IntEnum):
    """How a request was answered."""

    INVALID = 0
    OK = 1
    ERROR = 2


class Role(IntEnum):
    """The first two bytes of an additional connection, from Cloud Hypervisor v53 on."""

    INVALID = 0
    PRECOPY_MEMORY = 1
    FAULT = 2


class Dialect(StrEnum):
    """How additional connections begin: with a role (v53), or with their first request (v52)."""

    V53 = "v53"
    """With a role, as from Cloud Hypervisor v53 on."""
    V52 = "v52"
    """With a Memory request, as up to Cloud Hypervisor v52."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request's header.

    `length` counts the payload in bytes: the range table alone for Memory, whose content follows
    uncounted. `headers` are six bytes that have a meaning in Start, and by an extension in Config.
    """

    command: int
    length: int = 0
    headers: bytes = _NO_HEADERS

    @classmethod
    def start(cls, version: int = PROTOCOL_VERSION, offer: bytes = _NO_OFFER) -> "Request":
        """The opening request; `offer` is 4 bytes that Cloud Hypervisor ignores."""
        return cls(Command.START, 0, _VERSION_AND_OFFER.pack(version, offer))

    @property
    def version(self) -> int:
        """The protocol version that a Start announces."""
        return int.from_bytes(self.headers[:2], "little")

    @property
    def offer(self) -> bytes:
        """The 4 bytes of a Start that Cloud Hypervisor leaves unused."""
        return self.headers[2:]

    def encode(self) -> bytes:
        """The 16 bytes of the wire."""
        return _REQUEST.pack(self.command, self.headers, self.length)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> "Request":
        """Read exactly 16 bytes; `struct.error` for any other size."""
        command, headers, length = _REQUEST.unpack(data)
        return cls(command, length, headers)


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to one request; `length` counts what follows (page content alone, post-copy)."""

    status: int
    length: int = 0
    padding: bytes = _NO_HEADERS

    def encode(self) -> bytes:
        """The 16 bytes of the wire."""
        return _RESPONSE.pack(self.status, self.padding, self.length)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> "Response":
        """Read exactly 16 bytes; `struct.error` for any other size."""
        status, padding, length = _RESPONSE.unpack(data)
        return cls(status, length, padding)


def encode_range(gpa: int, length: int) -> bytes:
    """One memory range: guest physical address and length, both in bytes."""
    return _RANGE.pack(gpa, length)


def decode_range(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """The guest physical address and length of one range of exactly 16 bytes."""
    gpa, length = _RANGE.unpack(data)
    return gpa, length


def encode_role(role: Role) -> bytes:
    """The two bytes that open an additional connection."""
    return _ROLE.pack(role)


def decode_role(data: bytes | bytearray | memoryview) -> int:
    """The number in the first two bytes of a connection: a role, or a v52 sender's command."""
    (number,) = _ROLE.unpack(data)
    return int(number)


def encode_slot(slot: int) -> bytes:
    """MemoryFd's payload."""
    return _NUMBER.pack(slot)


def decode_slot(data: bytes | bytearray | memoryview) -> int:
    """The memory slot that a MemoryFd is for."""
    (slot,) = _NUMBER.unpack(data)
    return int(slot)


def encode_lane_number(number: int) -> bytes:
    """The number of a lane in Join and RetireLane."""
    return _NUMBER.pack(number)


def decode_lane_number(data: bytes | bytearray | memoryview) -> int:
    """The number of a lane in Join and RetireLane."""
    (number,) = _NUMBER.unpack(data)
    return int(number)


def command_name(command: int) -> str:
    """A command as error texts write it: `Memory`, `MemoryFd`, or `unknown command 77`."""
    try:
        return "".join(word.capitalize() for word in Command(command).name.split("_"))
    except ValueError:
        if command == _TLS_HANDSHAKE:
            return "the beginning of a TLS handshake"
        return f"unknown command {command}"
