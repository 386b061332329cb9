"""Checks of additional connections: how they begin, who may be one, and what losing one means.

A lane is taken when a Memory on it is answered Ok. Whatever a connection does that is none must
not harm the migration; a lane that breaks off within a request must end it, or memory is missing
without a sign. That shows in the answer to State.
"""

import asyncio
from collections.abc import Iterator

from aiomigrate.probing.check import (
    SETTLE_S,
    Check,
    NotListening,
    NotReached,
    Seen,
    Session,
    Stage,
    Verdict,
    answered,
    finding,
    ok,
)
from aiomigrate.probing.peer import End, Peer, Reaction, memory, request
from aiomigrate.protocol.wire import Command, Dialect, Role, Status, decode_role, encode_role

__all__ = ["lanes"]

_MOST = 128
"""Memory connections of one migration (Cloud Hypervisor's own limit)."""
_NO_ROLE = (0x0707).to_bytes(2, "little")


def _role(dialect: Dialect) -> bytes:
    return encode_role(Role.PRECOPY_MEMORY) if dialect is Dialect.V53 else b""


async def _open(session: Session) -> tuple[Peer, Reaction]:
    """A lane, and the answer to a Memory on it."""
    lane = await session.connect()
    hello = _role(session.known.dialect)
    return lane, await lane.exchange(hello + memory(session.vm.page))


def _is_ok(reaction: Reaction) -> bool:
    return answered(reaction, Status.OK).verdict is Verdict.OK


async def _harmless(session: Session, main: Peer, what: str) -> Seen:
    """Whether the migration goes on after `what`."""
    reaction = await main.exchange(memory(session.vm.page))
    if _is_ok(reaction):
        return ok(f"{what}; the migration goes on")
    return finding(f"{what}; the next Memory on the main connection: {reaction}")


async def _dialects(session: Session) -> Seen:
    """Each on a receiver of its own: a lane that is not understood may end a migration."""
    said: list[str] = []
    taken: list[Dialect] = []
    for dialect in (Dialect.V53, Dialect.V52):
        try:
            await session.reach(Stage.CONFIGURED)
        except NotListening:
            if not said:
                raise
            said.append(f"{dialect} not asked, nobody listens")
            continue
        session.known.dialect = dialect
        _, reaction = await _open(session)
        if _is_ok(reaction):
            taken.append(dialect)
        said.append(f"{dialect}: {reaction}")
    session.known.dialect = taken[0] if taken else Dialect.V53
    text = "; ".join(said)
    return ok(text) if taken else finding(text)


async def _unknown_role(session: Session) -> Seen:
    main = await session.reach(Stage.CONFIGURED)
    stranger = await session.connect()
    number = decode_role(_NO_ROLE)
    reaction = await stranger.exchange(_NO_ROLE + memory(session.vm.page))
    if Status.OK in reaction.statuses:
        return finding(f"role {number:#x} is served: {reaction}")
    return await _harmless(session, main, f"role {number:#x}: {reaction}")


async def _silent(session: Session) -> Seen:
    main = await session.reach(Stage.CONFIGURED)
    await session.connect()
    return await _harmless(session, main, "a connection that says nothing")


async def _cut_between(session: Session) -> Seen:
    main = await session.reach(Stage.CONFIGURED)
    lane, reaction = await _open(session)
    if not _is_ok(reaction):
        raise NotReached(f"a lane before it: {reaction}")
    lane.end()
    last = await lane.until_end(session.patience_s)
    if last.end is End.OPEN:
        return finding(f"keeps the lane {last.waited_s:.1f} s after its end")
    return await _harmless(session, main, "a lane that ends between two requests")


async def _half(session: Session) -> tuple[Peer, Peer]:
    """A main connection in order, and a lane with half of a request's content.

    NotReached if the lane's first request, which lacks nothing, is not taken. Before that has been
    answered the lane could still wait to be accepted.
    """
    main = await session.reach(Stage.FILLED)
    lane, reaction = await _open(session)
    if not _is_ok(reaction):
        raise NotReached(f"a lane before it: {reaction}")
    gpa, length = session.vm.page
    await lane.send(memory((gpa, length), content=length // 2))
    return main, lane


async def _cut_in_content(session: Session) -> Seen:
    main, lane = await _half(session)
    lane.end()
    await lane.until_end(session.patience_s)
    return await _refuses_state(session, main, session.patience_s)


async def _busy(session: Session) -> Seen:
    main, _ = await _half(session)
    return await _refuses_state(session, main, session.stall_s)


async def _refuses_state(session: Session, main: Peer, within: float) -> Seen:
    """An Error, or the end of a migration that has failed already."""
    before = await session.cpu()
    state = request(Command.STATE, session.vm.state)
    reaction = await main.exchange(state, within=within)
    if Status.OK in reaction.statuses:
        return finding(f"State: {reaction}, and memory is missing")
    if reaction.silent:
        effort = await session.effort(before, reaction.waited_s)
        return finding(f"State: {reaction}{effort}")
    return ok(f"State: {reaction}")


async def _fault(session: Session) -> Seen:
    if session.known.dialect is Dialect.V52:
        return Seen(Verdict.NOTE, "roles, and post-copy with them, came with v53")
    main = await session.reach(Stage.FILLED)
    fault = await session.connect()
    await fault.send(encode_role(Role.FAULT))
    await asyncio.sleep(SETTLE_S)  # nothing says when it has been accepted
    reaction = await main.exchange(request(Command.STATE, session.vm.state))
    if Status.OK not in reaction.statuses:
        return finding(f"State: {reaction}") if reaction.silent else ok(f"State: {reaction}")
    asked = await fault.react(1)
    if asked.end is End.OPEN:
        asks = "asks for pages: post-copy" if asked.answers else "stands, and asks for nothing"
        return Seen(Verdict.NOTE, f"State: Ok, and the fault connection {asks}")
    return finding(
        "State: Ok, and the fault connection is closed: a source takes that for every page served"
    )


async def _too_many(session: Session) -> Seen:
    main = await session.reach(Stage.CONFIGURED)
    for number in range(1, _MOST + 1):
        _, reaction = await _open(session)
        if _is_ok(reaction):
            continue
        if number == 1:
            raise NotReached(f"a lane before it: {reaction}")
        return finding(f"lane {number} of {_MOST}: {reaction}")
    _, reaction = await _open(session)
    if _is_ok(reaction):
        return finding(f"{_MOST + 1} lanes are taken")
    return await _harmless(session, main, f"lane {_MOST + 1}: {reaction}")


def lanes() -> Iterator[Check]:
    """Only on tcp: elsewhere there are none."""
    yield Check(
        "lane/dialects", "lanes are taken with a role (v53), without one (v52), or both", _dialects
    )
    yield Check("lane/unknown-role", "refused, and the migration goes on", _unknown_role)
    yield Check("lane/silent", "a silent connection does not hold the migration up", _silent)
    yield Check("lane/cut-between", "a lane may end between two requests", _cut_between)
    yield Check(
        "lane/cut-in-content",
        "State is not accepted: the lane's memory is missing",
        _cut_in_content,
    )
    yield Check(
        "lane/busy-at-state", "State is not accepted while a lane is within a request", _busy
    )
    yield Check(
        "lane/fault",
        "no State is accepted from a source that means post-copy, or pages are",
        _fault,
    )
    yield Check("lane/129th", "128 lanes are taken, one more is refused without harm", _too_many)
