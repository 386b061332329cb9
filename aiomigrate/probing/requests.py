"""Checks of single requests: strangers before Start, order, lengths, ranges, Abandon, extensions.

A payload that a receiver leaves in the stream is read as the next request. Where that can happen
the payload *is* a request, an Abandon, so that it shows in the answers. All content is zeros, which
as a request is command 0.
"""

from collections.abc import Iterator

from aiomigrate.probing.check import (
    Ask,
    Check,
    Says,
    Seen,
    Session,
    Stage,
    Verdict,
    answered,
    finding,
    ok,
    refused,
)
from aiomigrate.probing.peer import End, Reaction, memory, request
from aiomigrate.probing.vm import PAGE_BYTES, ProbeVm
from aiomigrate.protocol.extensions import (
    ALL_EXTENSIONS,
    Extension,
    accept,
    decode_extensions,
    encode_extensions,
)
from aiomigrate.protocol.wire import Command, Request, Status, encode_slot

__all__ = ["before_start", "requests"]

_UNKNOWN = 77
"""No command of any known version (1 to 9, and extensions from 0x8000)."""
_WRONG_VERSION = Request.start(version=0x7FFF).encode()
_TIB = 1 << 40
_LONGEST = (1 << 64) - 1
_ABANDON = request(Command.ABANDON)


def _start(payload: bytes = b"", length: int | None = None) -> bytes:
    return request(Command.START, payload, length=length)


def _config(vm: ProbeVm) -> bytes:
    return request(Command.CONFIG, vm.config)


def _state(vm: ProbeVm) -> bytes:
    return request(Command.STATE, vm.state)


def _page(vm: ProbeVm) -> bytes:
    return memory(vm.page)


def _memory_fd(_: ProbeVm) -> bytes:
    return request(Command.MEMORY_FD, encode_slot(0))


def _page_fault(vm: ProbeVm) -> bytes:
    return request(Command.PAGE_FAULT, memory(vm.page, content=0)[16:])


def _of(data: bytes) -> Says:
    """The same bytes for every VM."""
    return lambda _: data


_INVALID = _of(request(Command.INVALID))
_NOT_KNOWN = _of(request(_UNKNOWN))
_STARTS = _of(_start())
_ABANDONS = _of(_ABANDON)


async def _port_scan(session: Session) -> Seen:
    scan = await session.begin()
    scan.end()
    await scan.until_end(session.patience_s)
    return await _still_there(session)


async def _silent(session: Session) -> Seen:
    await session.begin()
    return await _still_there(session)


async def _still_there(session: Session) -> Seen:
    """Ask with a Start of a wrong version: its Error leaves a good receiver waiting."""
    peer = await session.connect()
    reaction = await peer.exchange(_WRONG_VERSION)
    return finding(f"the next Start: {reaction}") if not reaction.answers else ok("it still waits")


def before_start() -> Iterator[Check]:
    """What strangers may do: a receiver that holds out waits for its migration afterwards."""
    yield Check("stranger/port-scan", "a connection that is only closed ends nothing", _port_scan)
    yield Check("stranger/silent", "a silent connection keeps no migration out", _silent)
    wants = "Start comes first; anything else is answered Error"
    for name, says in (
        ("config", _config),
        ("memory-fd", _memory_fd),
        ("memory", _page),
        ("state", _state),
        ("page-fault", _page_fault),
        ("command-0", _INVALID),
        ("unknown", _NOT_KNOWN),
    ):
        yield Check(f"first/{name}", wants, Ask(Stage.ESTABLISHED, says))
    yield Check(
        "start/wrong-version",
        "a version that is not spoken is answered Error",
        Ask(Stage.ESTABLISHED, _of(_WRONG_VERSION)),
    )


def _plain_start(reaction: Reaction) -> Seen:
    if any(any(answer.padding) for answer in reaction.answers):
        return finding(f"{reaction}; accepts extensions, and none was offered")
    return answered(reaction, Status.OK)


def _accepted(reaction: Reaction) -> Extension:
    return decode_extensions(reaction.answers[0].padding)


def _offer(reaction: Reaction) -> Seen:
    if reaction.statuses != (Status.OK,):
        return finding(reaction)
    accepted = _accepted(reaction)
    if accepted != accept(accepted, ALL_EXTENSIONS):
        return finding(f"accepts {_names(accepted)}: not offered, or without what it needs")
    return Seen(Verdict.NOTE, f"accepts {_names(accepted)}" if accepted else "a plain receiver")


def _unknown_offer(reaction: Reaction) -> Seen:
    if reaction.statuses != (Status.OK,):
        return finding(reaction)
    accepted = _accepted(reaction)
    return finding(f"accepts {_names(accepted)}") if accepted else ok("none accepted")


def _names(extensions: Extension) -> str:
    known = [extension.name or "" for extension in extensions & ALL_EXTENSIONS]
    unknown = int(extensions) & ~int(ALL_EXTENSIONS)
    return ", ".join(known + ([f"unknown bits {unknown:#x}"] if unknown else []))


def _payload_of_start(reaction: Reaction) -> Seen:
    if reaction.statuses[:2] == (Status.OK, Status.OK):
        return finding(f"{reaction}: its payload was taken for the next request")
    if reaction.statuses[:1] == (Status.OK,):
        return Seen(Verdict.NOTE, f"{reaction}: its payload was ignored")
    return refused(reaction)


def _either(reaction: Reaction) -> Seen:
    """Answered, Ok or Error."""
    return (
        ok(reaction) if reaction.statuses in ((Status.OK,), (Status.ERROR,)) else finding(reaction)
    )


def _missing_memory(reaction: Reaction) -> Seen:
    if reaction.statuses == (Status.OK,):
        return finding(f"{reaction}: the guest's memory would be missing")
    return refused(reaction)


async def _to_state(session: Session) -> Seen:
    """Every step of a migration but the last."""
    peer = await session.begin()
    for step, data in session.steps(Stage.RESTORED):
        reaction = await peer.exchange(data)
        seen = answered(reaction, Status.OK)
        if seen.verdict is not Verdict.OK:
            return finding(f"{step.step}: {reaction}")
    return ok("Start, Config, Memory, State: Ok")


async def _behind_content(session: Session) -> Seen:
    """A refused range with as much content behind it as a receiver leaves unread."""
    peer = await session.reach(Stage.CONFIGURED)
    gpa, _ = session.vm.outside
    _, length = session.vm.block
    reaction = await peer.exchange(memory((gpa, length)))
    if reaction.statuses != (Status.ERROR,):
        return refused(reaction)
    last = await peer.until_end(session.patience_s)
    if last.end is End.RESET:
        return finding("Error, then a reset, which can destroy the Error before it is read")
    return ok(f"Error, then {last.end}")


def requests() -> Iterator[Check]:
    """What is asked of a receiver that has been started."""
    started, configured, filled = Stage.STARTED, Stage.CONFIGURED, Stage.FILLED
    yield Check("start/plain", "answered Ok", Ask(Stage.ESTABLISHED, _STARTS, _plain_start))
    offer = Request.start(offer=encode_extensions(ALL_EXTENSIONS)).encode()
    yield Check(
        "start/offer",
        "Ok, and of the extensions that are offered a part is accepted",
        Ask(Stage.ESTABLISHED, _of(offer), _offer),
    )
    unknown = Request.start(offer=(~int(ALL_EXTENSIONS) & 0xFFFFFFFF).to_bytes(4, "little"))
    yield Check(
        "start/unknown-offer",
        "Ok, and extensions that do not exist are not accepted",
        Ask(Stage.ESTABLISHED, _of(unknown.encode()), _unknown_offer),
    )
    yield Check(
        "start/payload",
        "a payload where none belongs is not read as the next request",
        Ask(Stage.ESTABLISHED, _of(_start(_ABANDON)), _payload_of_start, answers=2),
    )
    yield Check(
        "start/huge-payload",
        "answered without waiting for the payload",
        Ask(Stage.ESTABLISHED, _of(_start(length=_TIB)), _payload_of_start),
    )
    yield Check("legal/to-state", "Start, Config, Memory and State are answered Ok", _to_state)
    yield from _orders()
    for stage in (Stage.ESTABLISHED, started, configured, filled, Stage.RESTORED):
        yield Check(
            f"abandon/{stage.name.lower()}",
            "Abandon is answered Ok in every state",
            Ask(stage, _ABANDONS, lambda reaction: answered(reaction, Status.OK)),
        )
    for name, abandon in (
        ("payload", request(Command.ABANDON, bytes(16))),
        ("huge-payload", request(Command.ABANDON, length=_TIB)),
    ):
        wants = "answered, whatever payload it claims to have"
        yield Check(f"abandon/{name}", wants, Ask(configured, _of(abandon), _either))
    yield from _lengths()
    yield from _ranges()


def _orders() -> Iterator[Check]:
    wants = "a request out of order is answered Error"
    for stage, name, says in (
        (Stage.STARTED, "start-again", _STARTS),
        (Stage.STARTED, "memory-before-config", _page),
        (Stage.STARTED, "state-before-config", _state),
        (Stage.CONFIGURED, "config-again", _config),
        (Stage.CONFIGURED, "memory-fd-after-config", _memory_fd),
        (Stage.RESTORED, "memory-after-state", _page),
        (Stage.RESTORED, "state-again", _state),
    ):
        yield Check(f"order/{name}", wants, Ask(stage, says))
    yield Check(
        "order/state-before-memory",
        "a State without any memory is answered Error",
        Ask(Stage.CONFIGURED, _state, _missing_memory),
    )
    yield Check(
        "order/unknown", "an unknown command is answered Error", Ask(Stage.STARTED, _NOT_KNOWN)
    )
    yield Check(
        "order/memory-fd-without-descriptor",
        "a MemoryFd that no descriptor comes with is answered Error",
        Ask(Stage.STARTED, _memory_fd),
    )


def _lengths() -> Iterator[Check]:
    wants = "answered Error without waiting for it, and without allocating it"
    for name, length in (("tib", _TIB), ("longest", _LONGEST)):
        says = _of(request(Command.CONFIG, length=length))
        yield Check(f"config/{name}", wants, Ask(Stage.STARTED, says))
    empty, bad = request(Command.CONFIG), request(Command.CONFIG, b'{"memory_manager_data": ')
    yield Check("config/empty", "answered Error", Ask(Stage.STARTED, _of(empty)))
    yield Check("config/bad-json", "answered Error", Ask(Stage.STARTED, _of(bad)))
    says = _of(request(Command.STATE, length=_LONGEST))
    yield Check("state/longest", wants, Ask(Stage.FILLED, says))
    longest_table = _of(request(Command.MEMORY, length=_LONGEST - 15))
    yield Check("memory/longest-table", wants, Ask(Stage.CONFIGURED, longest_table))
    yield Check(
        "memory/broken-table",
        "a table that is no multiple of 16 bytes is answered Error",
        Ask(Stage.CONFIGURED, _of(request(Command.MEMORY, bytes(24)))),
    )


def _ranges() -> Iterator[Check]:
    stage = Stage.CONFIGURED
    wants = "a range that is not all RAM is answered Error"
    for name, says in (
        ("outside", lambda vm: memory(vm.outside)),
        ("across-the-end", lambda vm: memory(vm.beyond)),
        # As much content as a receiver takes that meets the end only on its way.
        ("wrapping", lambda vm: memory(vm.wrapping, content=2 * PAGE_BYTES)),
    ):
        yield Check(f"memory/{name}", wants, Ask(stage, says))
    yield Check(
        "memory/across-mappings",
        "a range over two mappings that touch is answered; senders make none",
        Ask(stage, lambda vm: memory(vm.touching or vm.beyond), _either),
    )
    yield Check(
        "memory/empty-range",
        "a range of no bytes is answered",
        Ask(stage, lambda vm: memory((vm.page[0], 0)), _either),
    )
    yield Check(
        "memory/empty-table",
        "a table of no ranges is answered",
        Ask(stage, lambda _: memory(), _either),
    )
    yield Check(
        "memory/overlapping",
        "ranges of one table may overlap: a stock sender's last table does",
        Ask(stage, lambda vm: memory(vm.page, vm.page), lambda r: answered(r, Status.OK)),
    )
    in_order = (Status.OK, Status.OK, Status.ERROR)
    yield Check(
        "memory/pipelined",
        "requests sent at once are answered one by one, in order",
        Ask(
            stage,
            # No content behind the last: here it is the order that counts.
            lambda vm: 2 * memory(vm.page) + memory(vm.outside, content=0),
            lambda reaction: answered(reaction, *in_order),
            answers=3,
        ),
    )
    yield Check(
        "memory/behind-content",
        "the Error to a refused Memory can be read, whatever content is on its way",
        _behind_content,
    )
