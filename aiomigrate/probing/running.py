"""The checks in their order, and running them one after the other.

First what a good receiver takes from strangers and waits on: these need no fresh receiver each.
Then all that ends a migration. Where nobody starts the receiver anew it listens no more after the
first of those, and what is left is reported as not run.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from aiomigrate.probing.check import (
    Check,
    Known,
    NotListening,
    NotReached,
    Seen,
    Session,
    Verdict,
)
from aiomigrate.probing.ends import ends
from aiomigrate.probing.lanes import lanes
from aiomigrate.probing.launching import Launch
from aiomigrate.probing.requests import before_start, requests
from aiomigrate.probing.vm import ProbeVm
from aiomigrate.transport import Address, ConnectFailed, Identity, TcpAddress

__all__ = ["CannotProbe", "Result", "plan", "probe"]


class CannotProbe(Exception):
    """The first connection of all was not taken, or not served: nothing was checked."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one check."""

    check: Check
    seen: Seen
    seconds: float
    """From the first connection on, without what the receiver needed to start."""


def plan(address: Address, prefixes: Sequence[str] = ()) -> list[Check]:
    """The checks that make sense at `address`, of them those that begin with one of `prefixes`."""
    on_tcp = [] if not isinstance(address, TcpAddress) else list(lanes())
    checks = [*before_start(), *requests(), *ends(), *on_tcp]
    return [check for check in checks if not prefixes or check.name.startswith(tuple(prefixes))]


async def probe(
    address: Address,
    checks: Sequence[Check],
    vm: ProbeVm,
    launch: Launch,
    patience_s: float,
    identity: Identity | None = None,
) -> AsyncIterator[Result]:
    """Run the checks; a result each, as it comes. CannotProbe if nobody takes the first connection.

    Every wait lasts `patience_s` at the most, and six times that where a sender stalls. With an
    `identity` all of it goes through TLS.
    """
    loop = asyncio.get_running_loop()
    known = Known()
    gone: Seen | None = None
    for check in checks:
        session = Session(address, vm, patience_s, launch, known, identity)
        try:
            seen = gone or await _run(check, session)
        except NotListening as error:
            if check is checks[0]:
                raise CannotProbe(str(error)) from error
            seen = gone = Seen(Verdict.NOT_RUN, f"the receiver no longer listens: {error}")
        begun_at = session.begun_at
        yield Result(check, seen, 0.0 if begun_at is None else loop.time() - begun_at)


async def _run(check: Check, session: Session) -> Seen:
    """One check. Raises NotListening."""
    async with session:
        try:
            return await check.body(session)
        except NotReached as error:
            return Seen(Verdict.NOT_RUN, str(error))
        except ConnectFailed as error:
            return Seen(Verdict.FINDING, f"takes no further connection: {error}")
