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
    HandshakeFailed,
    ListenFailed,
    MemoryFault,
    Stalled,
    TransportError,
)
from aiomigrate.transport.identity import (
    Certificate,
    Identity,
    TlsFilesError,
    destination_context,
    source_context,
)
from aiomigrate.transport.listening import Listener, listen
from aiomigrate.transport.pace import Pace
from aiomigrate.transport.strangers import Strangers
from aiomigrate.transport.tcp_times import TcpTimes
from aiomigrate.transport.vectored import Vector

__all__ = [
    "Address",
    "AddressError",
    "BusyError",
    "Certificate",
    "ConnectFailed",
    "Connection",
    "ConnectionClosed",
    "ConnectionLost",
    "DescriptorError",
    "EndOfStream",
    "HandshakeFailed",
    "Identity",
    "ListenFailed",
    "Listener",
    "MemoryFault",
    "Pace",
    "Stalled",
    "Strangers",
    "TcpAddress",
    "TcpTimes",
    "TlsFilesError",
    "TransportError",
    "UnixAddress",
    "Vector",
    "connect",
    "destination_context",
    "listen",
    "parse_address",
    "source_context",
]
