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
    ConfirmReceived,
    DestinationLane,
    DestinationMain,
    Event,
    FaultOpened,
    LaneJoining,
    LaneOpened,
    LaneRetired,
    MemoryFdReceived,
    MemoryReceived,
    OwnershipAsked,
    SessionReceived,
    StartReceived,
    StateReceived,
    ZerosReceived,
)
from aiomigrate.protocol.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from aiomigrate.protocol.extensions import ALL_EXTENSIONS, TOKEN_BYTES, Extension, Verdict
from aiomigrate.protocol.fault import FaultDestination, FaultSource, PageAnswered, PageRequested
from aiomigrate.protocol.limits import Limits
from aiomigrate.protocol.ownership import (
    DestinationFact,
    DestinationOwnership,
    DestinationTitle,
    SourceFact,
    SourceOwnership,
    SourceTitle,
)
from aiomigrate.protocol.source import Answer, SourceLane, SourceMain, SourceQuery
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
    command_name,
)

__all__ = [
    "ALL_EXTENSIONS",
    "PROTOCOL_VERSION",
    "RANGE_BYTES",
    "REQUEST_BYTES",
    "RESPONSE_BYTES",
    "ROLE_BYTES",
    "TOKEN_BYTES",
    "AbandonReceived",
    "Answer",
    "Command",
    "CompleteReceived",
    "ConfigReceived",
    "ConfirmReceived",
    "DestinationFact",
    "DestinationLane",
    "DestinationMain",
    "DestinationOwnership",
    "DestinationTitle",
    "Dialect",
    "Event",
    "Extension",
    "FaultDestination",
    "FaultOpened",
    "FaultSource",
    "FaultState",
    "LaneJoining",
    "LaneOpened",
    "LaneRetired",
    "LaneState",
    "Limits",
    "LocalProtocolError",
    "MainState",
    "MemoryFdReceived",
    "MemoryReceived",
    "OwnershipAsked",
    "PageAnswered",
    "PageRequested",
    "ProtocolError",
    "RemoteProtocolError",
    "Request",
    "Response",
    "Role",
    "SessionReceived",
    "SourceFact",
    "SourceLane",
    "SourceMain",
    "SourceOwnership",
    "SourceQuery",
    "SourceTitle",
    "StartReceived",
    "StateReceived",
    "Status",
    "Verdict",
    "ZerosReceived",
    "command_name",
]
