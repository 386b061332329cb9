"""What the bytes mean: frames, state machines, limits. No I/O, no asyncio, no clock.

The cores hold the rules of one connection each. A driver feeds `receive_data` with what it read
(never more than `wanted` on the side that receives requests) and writes what the cores return.
Guest memory never passes through a core: it announces a table or its content, and the driver
moves those bytes itself.
"""

from aiomigrate.protocol.destination import (
    AbandonReceived,
    CompleteReceived,
    ConfigReceived,
    DestinationLane,
    DestinationMain,
    Event,
    FaultOpened,
    LaneOpened,
    MemoryFdReceived,
    MemoryReceived,
    StartReceived,
    StateReceived,
)
from aiomigrate.protocol.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from aiomigrate.protocol.fault import FaultDestination, FaultSource, PageAnswered, PageRequested
from aiomigrate.protocol.limits import Limits
from aiomigrate.protocol.source import Answer, SourceLane, SourceMain
from aiomigrate.protocol.tables import FaultState, LaneState, MainState
from aiomigrate.protocol.wire import (
    PROTOCOL_VERSION,
    RANGE_BYTES,
    REQUEST_BYTES,
    RESPONSE_BYTES,
    ROLE_BYTES,
    Command,
    Dialect,
    Request,
    Response,
    Role,
    Status,
)

__all__ = [
    "PROTOCOL_VERSION",
    "RANGE_BYTES",
    "REQUEST_BYTES",
    "RESPONSE_BYTES",
    "ROLE_BYTES",
    "AbandonReceived",
    "Answer",
    "Command",
    "CompleteReceived",
    "ConfigReceived",
    "DestinationLane",
    "DestinationMain",
    "Dialect",
    "Event",
    "FaultDestination",
    "FaultOpened",
    "FaultSource",
    "FaultState",
    "LaneOpened",
    "LaneState",
    "Limits",
    "LocalProtocolError",
    "MainState",
    "MemoryFdReceived",
    "MemoryReceived",
    "PageAnswered",
    "PageRequested",
    "ProtocolError",
    "RemoteProtocolError",
    "Request",
    "Response",
    "Role",
    "SourceLane",
    "SourceMain",
    "StartReceived",
    "StateReceived",
    "Status",
]
