"""Requests as a destination reads them, what makes an answer an Error, and the last answer."""

import logging
from typing import overload

from aiomigrate.errors import GuestNotStarted, MigrationFailed
from aiomigrate.memory.errors import RangeError
from aiomigrate.options import Deadlines
from aiomigrate.protocol import (
    DestinationLane,
    DestinationMain,
    Event,
    FaultSource,
    MemoryFdReceived,
    PageRequested,
)
from aiomigrate.protocol.fault import ServingEnded
from aiomigrate.transport import (
    Connection,
    DescriptorError,
    EndOfStream,
    MemoryFault,
    Pace,
    TransportError,
)

__all__ = ["REFUSALS", "Refused", "dismiss", "failure_of", "read_opening", "read_request"]

log = logging.getLogger("aiomigrate.destination")


class Refused(Exception):
    """The request at hand is to be answered with Error; `str` says why."""


REFUSALS = (
    Refused,
    RangeError,
    OSError,
    MemoryFault,
    DescriptorError,
    MigrationFailed,
    GuestNotStarted,
)
"""What makes the answer to a request an Error."""


def failure_of(name: str, error: Exception) -> MigrationFailed:
    """How the migration ends with one of `REFUSALS` on the connection `name`."""
    if isinstance(error, MigrationFailed):
        return error
    if isinstance(error, TransportError):  # it says where by itself
        return MigrationFailed(f"refused: {error}")
    return MigrationFailed(f"{name}: refused: {error}")


async def read_opening(
    connection: Connection,
    core: DestinationMain | DestinationLane,
    first: bytes,
    deadlines: Deadlines,
) -> Event:
    """What a connection begins with, of which `first` has been read; short, so that every read of
    it has the time of a header. TransportError, RemoteProtocolError.
    """
    event = core.receive_data(first)
    while event is None:
        rest = bytearray(core.wanted)
        await connection.read_into(rest, Pace(len(rest), deadlines.header_s))
        event = core.receive_data(rest)
    return event


@overload
async def read_request(
    connection: Connection, core: DestinationMain | DestinationLane, deadlines: Deadlines
) -> Event: ...


@overload
async def read_request(
    connection: Connection, core: FaultSource, deadlines: Deadlines
) -> PageRequested | ServingEnded: ...


async def read_request(
    connection: Connection,
    core: DestinationMain | DestinationLane | FaultSource,
    deadlines: Deadlines,
) -> Event | PageRequested | ServingEnded:
    """Read one request, with its payload where that is for the core; waits for it without limit.

    TransportError, of which DescriptorError is for a descriptor with anything but MemoryFd, and
    RemoteProtocolError for what the core does not take.
    """
    event: Event | PageRequested | ServingEnded | None = None
    try:
        if core.between_requests:
            header = await connection.read_exactly(core.wanted, rest_within=deadlines.header_s)
            event = core.receive_data(header)
        else:  # its first bytes said what the connection is
            rest = bytearray(core.wanted)
            await connection.read_into(rest, Pace(len(rest), deadlines.header_s))
            event = core.receive_data(rest)
        while event is None:
            payload = bytearray(core.wanted)
            await connection.read_into(payload, deadlines.pace)
            event = core.receive_data(payload)
    except EndOfStream as end:
        if not end.received:
            core.receive_end()
        raise
    if not isinstance(event, MemoryFdReceived):
        connection.take_descriptors(0)
    return event


async def dismiss(connection: Connection, reply: bytes, deadlines: Deadlines) -> bool:
    """Answer with `reply` and close with lingering: whether the peer has read it."""
    try:
        await connection.write(reply, deadlines.pace)
        return await connection.close_lingering(deadlines.linger_s)
    except TransportError as error:
        log.debug("%s: did not take its answer: %s", connection.name, error)
        return False
