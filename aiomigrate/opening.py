"""Opening a source's lanes.

A plain peer takes all of them, or none and the main connection carries the memory; where the
migration has a token a lane joins with it and is answered, and those that are not taken are
tried again while the others work (`lanes.py`).
"""

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

from aiomigrate.errors import MigrationFailed
from aiomigrate.options import SendOptions
from aiomigrate.protocol import RESPONSE_BYTES, Extension, ProtocolError, SourceLane
from aiomigrate.transport import (
    Address,
    Connection,
    Identity,
    TcpAddress,
    TransportError,
    connect,
)

__all__ = ["Door", "OpenedLane", "reached"]

_HANG_UP_S = 0.02
"""A peer that takes one connection only closes the others within about a round trip; it is given
twice the time that connecting took, and at least this."""


def reached(address: Address, main: Connection) -> Address:
    """Where to connect again: to the host that `main` reached."""
    return TcpAddress(main.peer_host, address.port) if isinstance(address, TcpAddress) else address


class OpenedLane(NamedTuple):
    """A lane that the destination has taken, as far as can be told."""

    number: int
    connection: Connection
    core: SourceLane


@dataclass(frozen=True, slots=True)
class Door:
    """Where a migration's lanes enter: the host that `main` reached, whatever its name stands for
    by now.
    """

    main: Connection
    address: Address
    options: SendOptions
    extensions: Extension
    """What the destination has accepted."""
    token: bytes
    identity: Identity | None = None

    async def open_all(self, numbers: range) -> tuple[list[OpenedLane], list[Exception]]:
        """Open lanes of these numbers side by side: those that are open, and why others are not.

        MigrationFailed if a plain peer refused some and took others.
        """
        opened: list[OpenedLane] = []
        refusals: list[Exception] = []

        async def attempt(number: int) -> None:
            try:
                opened.append(await self.open(number))
            except (TransportError, ProtocolError) as error:
                refusals.append(error)

        try:
            async with asyncio.TaskGroup() as group:
                for number in numbers:
                    group.create_task(attempt(number))
            if opened and refusals and Extension.RETIRE_LANE not in self.extensions:
                raise MigrationFailed(
                    f"{len(refusals)} of {len(numbers)} lanes to {self.address} were refused: "
                    f"{refusals[0]}"
                )
        except BaseException:
            for lane in opened:
                lane.connection.abort()
            raise
        return opened, refusals

    async def open(self, number: int) -> OpenedLane:
        """Connect, and say what the connection is. TransportError or ProtocolError if it is not
        taken.
        """
        address = reached(self.address, self.main)
        loop = asyncio.get_running_loop()
        began = loop.time()
        connection = await connect(
            address, within=self.options.deadlines.connect_s, identity=self.identity
        )
        try:
            core = SourceLane(f"lane {number}", self.options.dialect, self.extensions)
            if Extension.SESSION in self.extensions:
                await self._join(connection, core, number)
            else:
                await connection.write(core.open(), self.options.deadlines.pace)
                grace = max(_HANG_UP_S, 2 * (loop.time() - began))
                if await connection.wait_hang_up(grace):
                    raise _refused(connection, "the peer closed the connection")
        except BaseException:
            connection.abort()
            raise
        return OpenedLane(number, connection, core)

    async def _join(self, connection: Connection, core: SourceLane, number: int) -> None:
        deadlines = self.options.deadlines
        await connection.write(core.join(self.token, number), deadlines.pace)
        try:
            async with asyncio.timeout(deadlines.connect_s):
                answers = core.receive_data(await connection.read_exactly(RESPONSE_BYTES))
        except TimeoutError:
            waited = f"no answer in {deadlines.connect_s:g} s"
            raise _refused(connection, waited) from None
        if not answers[0].ok:
            raise _refused(connection, "the destination refused the lane")


def _refused(connection: Connection, why: str) -> TransportError:
    return TransportError(connection.name, "open", got=why)
