"""The ownership query, at the side that asks: new connections, until one gets an answer.

The answer is final whatever lies in older connections, since the question is a fence: a
destination answers *aborted* only once it has made Complete impossible. That it was read the
destination sees from the end of the connection, and after *committed* it may then forget: so that
one is held until the answer is on a disk here.
"""

import asyncio
import logging
from typing import NamedTuple

from aiomigrate.protocol import (
    RESPONSE_BYTES,
    Answer,
    RemoteProtocolError,
    SourceMain,
    SourceQuery,
    Verdict,
)
from aiomigrate.transport import Address, Connection, Identity, Pace, TransportError, connect

__all__ = ["NoVerdict", "Told", "ask_owner", "next_answer"]

log = logging.getLogger("aiomigrate.source")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
"""Between two tries, doubled each time. Arbitrary: the guest is paused meanwhile."""
_TRIES = 4
"""At least so many fit into the time that there is: a connection can be lost without a sign. A
destination that answers late, as it is taking the VM over, answers the next one."""
_LEAST_TRY_S = 1.0
"""But none is cut off before that: some round trips, with a handshake in them. Arbitrary."""


class NoVerdict(Exception):
    """Nobody could say who owns the VM; the text is the last reason, as half a sentence."""


class Told(NamedTuple):
    """An answer."""

    verdict: Verdict
    connection: Connection
    """Of whoever asked: to be closed once the answer is noted, or else aborted."""


async def ask_owner(
    address: Address, token: bytes, *, within: float, identity: Identity | None = None
) -> Told:
    """Ask the destination at `address` who owns the VM of the migration with this token.

    What fails, or has no answer soon, is tried again, for `within` seconds. NoVerdict if that gave
    no answer, or if whoever listens there knows nothing of the migration.
    """
    pause = _FIRST_PAUSE_S
    each = max(_LEAST_TRY_S, within / _TRIES)
    why = "no answer"
    try:
        async with asyncio.timeout(within):
            while True:
                try:
                    async with asyncio.timeout(each):
                        return await _ask(address, token, within, identity)
                except TimeoutError:
                    why = f"no answer in {each:g} s"
                except (TransportError, RemoteProtocolError) as error:
                    why = str(error)
                log.debug("%s: no answer to the ownership query: %s", address, why)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
    except TimeoutError:
        raise NoVerdict(f"nobody answered in {within:g} s ({why})") from None


async def _ask(address: Address, token: bytes, within: float, identity: Identity | None) -> Told:
    connection = await connect(address, within=within, identity=identity)
    try:
        core = SourceQuery(f"query {connection.name}")
        await connection.write(core.ask(token), Pace())
        verdict = core.verdict(await next_answer(connection, core))
        if verdict is None:
            raise NoVerdict(f"{address} does not know this migration")
    except BaseException:
        connection.close()
        raise
    log.info("%s: the destination says %s", address, verdict.name.lower())
    return Told(verdict, connection)


async def next_answer(connection: Connection, core: SourceMain | SourceQuery) -> Answer:
    """The next answer on a connection that nobody else reads. RemoteProtocolError at its end."""
    while True:
        data = await connection.read_some(RESPONSE_BYTES)
        if not data:
            core.receive_end()
        for answer in core.receive_data(data):
            return answer
