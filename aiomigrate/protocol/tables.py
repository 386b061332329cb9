"""The state tables: which input a connection takes in which state, and where that leads.

Everything that changes a core's state is in these tables. A pair that is missing is a breach of
the protocol: the peer's leads to `FAILED`, our own caller's is refused and changes nothing. The
diagrams in docs/protocol-states.md are made from these tables.
The order of the main connection is Cloud Hypervisor's (`vmm/src/lib.rs`).

A destination takes one request, answers it and takes the next, so that each request has a state
of its own while it is unanswered. A source may have many Memory, Zeros and RetireLane (and a fault
connection's destination many PageFault) requests unanswered: neither they nor their Ok change its
state. It may also send Complete right behind State: both are in flight then, and the first answer
is State's. Requests of an extension (0x8000 up) are in the tables too; a core takes them only where
the extension was accepted (`extensions.EXTENSION_OF`).
"""

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from aiomigrate.protocol.wire import Command

__all__ = [
    "DESTINATION_FAULT",
    "DESTINATION_LANE",
    "DESTINATION_MAIN",
    "SOURCE_FAULT",
    "SOURCE_LANE",
    "SOURCE_MAIN",
    "SOURCE_QUERY",
    "FaultState",
    "Input",
    "LaneState",
    "MainState",
    "Signal",
    "Table",
]


class Signal(Enum):
    """Inputs that are not a request."""

    OK = "Ok"
    ERROR = "Error"
    ROLE = "role"
    END = "end of stream"
    CLOSE = "close"


class MainState(Enum):
    """States of a main connection, on either side."""

    ESTABLISHED = "Established"
    STARTING = "Starting"
    STARTED = "Started"
    NAMING = "Naming"
    NAMED = "Named"
    TAKING_FD = "TakingFd"
    FDS_RECEIVED = "MemoryFdsReceived"
    CONFIGURING = "Configuring"
    CONFIGURED = "Configured"
    APPLYING = "Applying"
    RETIRING = "Retiring"
    RESTORING = "Restoring"
    STATE_RECEIVED = "StateReceived"
    IN_FLIGHT = "InFlight"
    COMPLETING = "Completing"
    COMPLETED = "Completed"
    CONFIRMING = "Confirming"
    CONFIRMED = "Confirmed"
    ABANDONING = "Abandoning"
    ABORTED = "Aborted"
    FAILED = "Failed"
    CLOSED = "Closed"


class LaneState(Enum):
    """States of a memory connection or of an ownership query, on either side."""

    CONNECTED = "Connected"
    JOINING = "Joining"
    READY = "Ready"
    APPLYING = "Applying"
    ASKED = "Asked"
    TOLD = "Told"
    FAILED = "Failed"
    CLOSED = "Closed"


class FaultState(Enum):
    """States of a fault connection, on either side."""

    CONNECTED = "Connected"
    SERVING = "Serving"
    ANSWERING = "Answering"
    ENDING = "Ending"
    FAILED = "Failed"
    CLOSED = "Closed"


Input = Command | Signal
S = TypeVar("S", bound=Enum)
Table = Mapping[tuple[S, Input], S]

_M, _L, _F = MainState, LaneState, FaultState
_C, _S = Command, Signal

_ANSWERED: dict[MainState, MainState] = {
    _M.STARTING: _M.STARTED,
    _M.NAMING: _M.NAMED,
    _M.TAKING_FD: _M.FDS_RECEIVED,
    _M.CONFIGURING: _M.CONFIGURED,
    _M.RESTORING: _M.STATE_RECEIVED,
    _M.COMPLETING: _M.COMPLETED,
    _M.CONFIRMING: _M.CONFIRMED,
    _M.ABANDONING: _M.ABORTED,
}

_ASKED: dict[tuple[MainState, Input], MainState] = {
    (_M.ESTABLISHED, _C.START): _M.STARTING,
    (_M.STARTED, _C.SESSION): _M.NAMING,
    (_M.STARTED, _C.MEMORY_FD): _M.TAKING_FD,
    (_M.STARTED, _C.CONFIG): _M.CONFIGURING,
    (_M.NAMED, _C.MEMORY_FD): _M.TAKING_FD,
    (_M.NAMED, _C.CONFIG): _M.CONFIGURING,
    (_M.FDS_RECEIVED, _C.MEMORY_FD): _M.TAKING_FD,
    (_M.FDS_RECEIVED, _C.CONFIG): _M.CONFIGURING,
    (_M.CONFIGURED, _C.STATE): _M.RESTORING,
    (_M.STATE_RECEIVED, _C.COMPLETE): _M.COMPLETING,
    (_M.STATE_RECEIVED, _C.COMPLETE_PAUSED): _M.COMPLETING,
    (_M.COMPLETED, _C.CONFIRM): _M.CONFIRMING,
    (_M.ESTABLISHED, _C.ABANDON): _M.ABANDONING,
    (_M.STARTED, _C.ABANDON): _M.ABANDONING,
    (_M.NAMED, _C.ABANDON): _M.ABANDONING,
    (_M.FDS_RECEIVED, _C.ABANDON): _M.ABANDONING,
    (_M.CONFIGURED, _C.ABANDON): _M.ABANDONING,
    (_M.STATE_RECEIVED, _C.ABANDON): _M.ABANDONING,
}

_ENDED: dict[tuple[MainState, Input], MainState] = {
    (_M.ESTABLISHED, _S.END): _M.CLOSED,
    (_M.COMPLETED, _S.END): _M.CLOSED,
    (_M.CONFIRMED, _S.END): _M.CLOSED,
    (_M.ABORTED, _S.END): _M.CLOSED,
    (_M.FAILED, _S.END): _M.CLOSED,
}

DESTINATION_MAIN: Table[MainState] = {
    **_ASKED,
    (_M.CONFIGURED, _C.MEMORY): _M.APPLYING,
    (_M.CONFIGURED, _C.ZEROS): _M.APPLYING,
    (_M.APPLYING, _S.OK): _M.CONFIGURED,
    (_M.APPLYING, _S.ERROR): _M.FAILED,
    (_M.CONFIGURED, _C.RETIRE_LANE): _M.RETIRING,
    (_M.RETIRING, _S.OK): _M.CONFIGURED,
    (_M.RETIRING, _S.ERROR): _M.FAILED,
    **{(asked, _S.OK): answered for asked, answered in _ANSWERED.items()},
    **{(asked, _S.ERROR): _M.FAILED for asked in _ANSWERED},
    **_ENDED,
}

SOURCE_MAIN: Table[MainState] = {
    **_ASKED,
    (_M.CONFIGURED, _C.MEMORY): _M.CONFIGURED,
    (_M.CONFIGURED, _C.ZEROS): _M.CONFIGURED,
    (_M.CONFIGURED, _C.RETIRE_LANE): _M.CONFIGURED,
    (_M.CONFIGURED, _S.ERROR): _M.FAILED,
    (_M.RESTORING, _C.COMPLETE): _M.IN_FLIGHT,
    (_M.RESTORING, _C.COMPLETE_PAUSED): _M.IN_FLIGHT,
    (_M.IN_FLIGHT, _S.OK): _M.COMPLETING,
    (_M.IN_FLIGHT, _S.ERROR): _M.FAILED,
    **{(asked, _S.OK): answered for asked, answered in _ANSWERED.items()},
    **{(asked, _S.ERROR): _M.FAILED for asked in _ANSWERED},
    **_ENDED,
}

DESTINATION_LANE: Table[LaneState] = {
    (_L.CONNECTED, _S.ROLE): _L.READY,
    (_L.CONNECTED, _C.MEMORY): _L.APPLYING,  # a v52 sender's lanes have no role
    (_L.CONNECTED, _C.JOIN): _L.JOINING,
    (_L.JOINING, _S.OK): _L.READY,
    (_L.JOINING, _S.ERROR): _L.FAILED,
    (_L.CONNECTED, _C.OWNER): _L.ASKED,
    (_L.ASKED, _S.OK): _L.TOLD,
    (_L.ASKED, _S.ERROR): _L.FAILED,
    (_L.TOLD, _S.END): _L.CLOSED,
    (_L.CONNECTED, _S.END): _L.CLOSED,
    (_L.READY, _C.MEMORY): _L.APPLYING,
    (_L.READY, _C.ZEROS): _L.APPLYING,
    (_L.READY, _S.END): _L.CLOSED,
    (_L.APPLYING, _S.OK): _L.READY,
    (_L.APPLYING, _S.ERROR): _L.FAILED,
    (_L.FAILED, _S.END): _L.CLOSED,
}

SOURCE_LANE: Table[LaneState] = {
    (_L.CONNECTED, _S.ROLE): _L.READY,
    (_L.CONNECTED, _C.MEMORY): _L.READY,  # the v52 dialect
    (_L.CONNECTED, _C.JOIN): _L.JOINING,
    (_L.JOINING, _S.OK): _L.READY,
    (_L.JOINING, _S.ERROR): _L.FAILED,
    (_L.CONNECTED, _S.CLOSE): _L.CLOSED,
    (_L.READY, _C.MEMORY): _L.READY,
    (_L.READY, _C.ZEROS): _L.READY,
    (_L.READY, _S.ERROR): _L.FAILED,
    (_L.READY, _S.CLOSE): _L.CLOSED,
    (_L.FAILED, _S.END): _L.CLOSED,
}

SOURCE_QUERY: Table[LaneState] = {
    (_L.CONNECTED, _C.OWNER): _L.ASKED,
    (_L.ASKED, _S.OK): _L.TOLD,
    (_L.ASKED, _S.ERROR): _L.FAILED,
    (_L.TOLD, _S.END): _L.CLOSED,
    (_L.FAILED, _S.END): _L.CLOSED,
}

SOURCE_FAULT: Table[FaultState] = {
    (_F.CONNECTED, _S.ROLE): _F.SERVING,
    (_F.SERVING, _C.PAGE_FAULT): _F.ANSWERING,
    (_F.ANSWERING, _S.OK): _F.SERVING,
    (_F.ANSWERING, _S.ERROR): _F.FAILED,
    (_F.SERVING, _C.ABANDON): _F.ENDING,
    (_F.ENDING, _S.OK): _F.CLOSED,
    (_F.SERVING, _S.END): _F.CLOSED,
    (_F.FAILED, _S.END): _F.CLOSED,
}

DESTINATION_FAULT: Table[FaultState] = {
    (_F.CONNECTED, _S.ROLE): _F.SERVING,
    (_F.SERVING, _C.PAGE_FAULT): _F.SERVING,
    (_F.SERVING, _S.ERROR): _F.FAILED,
    (_F.SERVING, _S.CLOSE): _F.CLOSED,
    (_F.FAILED, _S.END): _F.CLOSED,
}
