"""Byte streams between the two sides of a migration. Knows no migration.

The engine moves bytes through `Connection` alone; `connect` and `listen` make connections of what
`parse_address` reads.
"""

from aiomigrate.transport.address import (
    Address,
    AddressError,
    TcpAddress,
    UnixAddress,
    parse_address,
)
from aiomigrate.transport.connecting import connect
from aiomigrate.transport.connection import Connection
from aiomigrate.transport.errors import (
    BusyError,
    ConnectFailed,
    ConnectionClosed,
    ConnectionLost,
    DescriptorError,
    EndOfStream,
    ListenFailed,
    MemoryFault,
    Stalled,
    TransportError,
)
from aiomigrate.transport.listening import Listener, listen
from aiomigrate.transport.pace import Pace
from aiomigrate.transport.vectored import Vector

__all__ = [
    "Address",
    "AddressError",
    "BusyError",
    "ConnectFailed",
    "Connection",
    "ConnectionClosed",
    "ConnectionLost",
    "DescriptorError",
    "EndOfStream",
    "ListenFailed",
    "Listener",
    "MemoryFault",
    "Pace",
    "Stalled",
    "TcpAddress",
    "TransportError",
    "UnixAddress",
    "Vector",
    "connect",
    "listen",
    "parse_address",
]
