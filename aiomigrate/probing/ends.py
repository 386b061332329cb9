"""Checks of a sender that goes: by an end of stream, by a reset, or by saying nothing more.

An end is made by ending only our direction of the connection: a receiver that has understood it
closes its own, which is seen from anywhere. One that keeps the connection waits for what cannot
come, or spins; which of the two, its processor time says where its processes are known.

After a reset there is no connection to see that by. So the next one is looked at: it is refused,
closed or served by a receiver that is well, and left without an answer by one that hangs.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from aiomigrate.probing.check import (
    SETTLE_S,
    START,
    Check,
    Says,
    Seen,
    Session,
    Stage,
    finding,
    ok,
)
from aiomigrate.probing.peer import End, Reaction, memory, request
from aiomigrate.probing.vm import ProbeVm
from aiomigrate.protocol.wire import RANGE_BYTES, REQUEST_BYTES, Command
from aiomigrate.transport import ConnectFailed

__all__ = ["ends"]


def _in_header(vm: ProbeVm) -> bytes:
    return memory(vm.page)[: REQUEST_BYTES // 2]


def _in_table(vm: ProbeVm) -> bytes:
    return memory(vm.page, vm.page)[: REQUEST_BYTES + RANGE_BYTES + RANGE_BYTES // 2]


def _in_content(vm: ProbeVm) -> bytes:
    return memory(vm.page, content=vm.page[1] // 2)


def _in_config(vm: ProbeVm) -> bytes:
    return request(Command.CONFIG, vm.config[:-1], length=len(vm.config))


@dataclass(frozen=True, slots=True)
class _Place:
    """Somewhere in a migration: after a stage, and `says` of the request that follows."""

    name: str
    stage: Stage
    says: Says = lambda _: b""


_IN_HEADER = _Place("in-header", Stage.CONFIGURED, _in_header)
_IN_TABLE = _Place("in-table", Stage.CONFIGURED, _in_table)
_IN_CONTENT = _Place("in-content", Stage.CONFIGURED, _in_content)
_PLACES = (
    _Place("after-start", Stage.STARTED),
    _Place("in-config", Stage.STARTED, _in_config),
    _Place("after-config", Stage.CONFIGURED),
    _IN_HEADER,
    _IN_TABLE,
    _IN_CONTENT,
    _Place("after-memory", Stage.FILLED),
    _Place("after-state", Stage.RESTORED),
)


class _Closes:
    """The sender ends its stream."""

    def __init__(self, place: _Place) -> None:
        self._place = place

    async def __call__(self, session: Session) -> Seen:
        peer = await session.reach(self._place.stage)
        await peer.send(self._place.says(session.vm))
        before = await session.cpu()
        peer.end()
        last = await peer.until_end(session.patience_s)
        if last.end is End.OPEN:
            effort = await session.effort(before, last.waited_s)
            return finding(f"keeps the connection {last.waited_s:.1f} s after its end{effort}")
        if busy := await session.spins():
            return finding(f"{_ended(last)}, but {busy}")
        return ok(_ended(last))


def _ended(last: Reaction) -> str:
    """No answer is due where a sender has gone."""
    return str(last) if last.answers or last.stray_bytes else str(last.end)


class _Resets:
    """The sender resets the connection."""

    def __init__(self, place: _Place) -> None:
        self._place = place

    async def __call__(self, session: Session) -> Seen:
        peer = await session.reach(self._place.stage)
        await peer.send(self._place.says(session.vm))
        peer.reset()
        await asyncio.sleep(SETTLE_S)
        try:
            following = await session.connect()
        except ConnectFailed:
            seen = ok("listens no more")
        else:
            reaction = await following.exchange(START)
            if reaction.silent:
                return finding(f"the next connection is taken, but its Start gets {reaction}")
            seen = ok(f"the next Start: {reaction}")
        if busy := await session.spins():
            return finding(f"{seen.text}, but {busy}")
        return seen


class _Stalls:
    """The sender stops in the middle of a request and keeps the connection."""

    def __init__(self, place: _Place) -> None:
        self._place = place

    async def __call__(self, session: Session) -> Seen:
        peer = await session.reach(self._place.stage)
        await peer.send(self._place.says(session.vm))
        last = await peer.until_end(session.stall_s)
        if last.end is End.OPEN:
            return finding(
                f"still waits after {last.waited_s:.0f} s: a sender that stops holds it for good"
            )
        return ok(f"{_ended(last)} after {last.waited_s:.1f} s")


def ends() -> Iterator[Check]:
    """Ends and resets everywhere, and silence in the middle of a request."""
    for place in _PLACES:
        wants = "the receiver ends, or waits for the next migration, when the sender closes"
        yield Check(f"close/{place.name}", wants, _Closes(place))
    for place in _PLACES:
        wants = "the receiver ends, or waits for the next migration, after a reset"
        yield Check(f"reset/{place.name}", wants, _Resets(place))
    for place in (_IN_HEADER, _IN_TABLE, _IN_CONTENT):
        wants = "a sender that stops in the middle of a request does not hold the receiver for good"
        yield Check(f"stall/{place.name}", wants, _Stalls(place))
