"""What a check is made of: the receiver brought into a state, what it is told then, the verdict.

A `Check` says in `wants` what the protocol wants; its body drives a `Session`, which belongs to it
alone, and gives what it has `Seen`. What hinders the check itself is raised: `NotListening` and
`NotReached` leave the question open.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Self

from aiomigrate.probing.launching import Launch, cpu_seconds
from aiomigrate.probing.peer import Peer, Reaction, memory, request
from aiomigrate.probing.vm import ProbeVm
from aiomigrate.protocol.wire import Command, Dialect, Request, Status
from aiomigrate.transport import Address, ConnectFailed, HandshakeFailed, Identity, connect

__all__ = [
    "SETTLE_S",
    "START",
    "Ask",
    "Check",
    "Known",
    "NotListening",
    "NotReached",
    "Says",
    "Seen",
    "Session",
    "Stage",
    "Verdict",
    "answered",
    "finding",
    "ok",
    "refused",
]

START = Request.start().encode()
STALL_FACTOR = 6
"""A receiver may wait so many times as long for a sender that stalls as a probe for an answer: with
the default 10 s that is a minute, twice what aiomigrate's own receiver gives a slow sender."""
_RETRY_S = 0.05
SETTLE_S = 0.2
"""What a receiver has to notice what is not answered: the end of a connection before the next one
comes, which it could take for a lane of the last migration, or a fault connection. Arbitrary, some
hundred times what that takes."""
_VERIFY_S = 1.0
"""What it has, once, to look at our certificate: in TLS 1.3 the sender is done before that (RFC
8446, section 2), and would take the refusal for what came of the check. Arbitrary, a thousand times
what a handshake takes."""
_WINDOW_S = 0.25
_BUSY = 0.1
"""Of one core, over a window of `_WINDOW_S`, with nothing to do. Arbitrary: a receiver that rests
uses none, one that spins all of a core, or its share of a machine that is busy otherwise."""


class Verdict(StrEnum):
    """What a check came to."""

    OK = "ok"
    FINDING = "finding"
    NOTE = "note"
    """Told, and not judged: the protocol leaves it open."""
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Seen:
    """A verdict, and in words what led to it."""

    verdict: Verdict
    text: str


def ok(what: object) -> Seen:
    """As it should be."""
    return Seen(Verdict.OK, str(what))


def finding(what: object) -> Seen:
    """Not as it should be."""
    return Seen(Verdict.FINDING, str(what))


def answered(reaction: Reaction, *expected: Status) -> Seen:
    """Exactly these answers, in this order, with nothing behind them."""
    well_formed = not any(answer.length for answer in reaction.answers)
    if reaction.statuses == expected and well_formed and not reaction.stray_bytes:
        return ok(reaction)
    return finding(reaction if well_formed else f"{reaction}; an answer announces content")


def refused(reaction: Reaction) -> Seen:
    """One Error."""
    return answered(reaction, Status.ERROR)


class NotListening(Exception):
    """Nobody takes the first connection of a check, or serves it."""


class NotReached(Exception):
    """The receiver refused what had to come before the check."""


class Stage(IntEnum):
    """How far a migration was brought, each step answered Ok."""

    ESTABLISHED = 0
    STARTED = 1
    CONFIGURED = 2
    FILLED = 3
    """A page of memory has come."""
    RESTORED = 4
    """State has come, and all that is missing is the Complete that a probe never sends."""

    @property
    def step(self) -> str:
        """The request that leads here."""
        return ("connecting", "Start", "Config", "Memory", "State")[self]


@dataclass(slots=True)
class Known:
    """What earlier checks have found out."""

    dialect: Dialect = Dialect.V53
    """How this receiver's lanes begin."""
    trusted: bool = False
    """Through TLS: whether it took this side's certificate."""


class Session:
    """What one check has: its connections to a receiver. An async context manager."""

    def __init__(
        self,
        address: Address,
        vm: ProbeVm,
        patience_s: float,
        launch: Launch,
        known: Known,
        identity: Identity | None = None,
    ) -> None:
        self.vm = vm
        self.patience_s = patience_s
        self.stall_s = STALL_FACTOR * patience_s
        self.known = known
        self._address = address
        self._launch = launch
        self._identity = identity
        self._peers: list[Peer] = []
        self.begun_at: float | None = None
        """When the receiver took the first connection, on the loop's clock."""

    async def begin(self) -> Peer:
        """A connection to a receiver that waits: started anew, if we can start it.

        NotListening if none takes it as long as we are patient, or we do not take its certificate.
        """
        self.close()
        await self._launch.start()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience_s
        while True:
            try:
                peer = await self.connect(within=deadline - loop.time())
            except ConnectFailed as error:
                if failure := await asyncio.to_thread(self._launch.failure):
                    raise NotListening(failure) from error
                if _untrusted(error) or loop.time() + _RETRY_S >= deadline:
                    raise NotListening(str(error)) from error
            else:
                await self._require_trust(peer)
                self.begun_at = self.begun_at or loop.time()
                # One that somebody else starts anew may still be ending its last migration.
                if self._launch.fresh or await peer.stands(SETTLE_S):
                    return peer
                if loop.time() + _RETRY_S >= deadline:
                    raise NotListening(f"{self._address}: closes every connection")
            await asyncio.sleep(_RETRY_S)

    async def _require_trust(self, peer: Peer) -> None:
        """NotListening, with the receiver's reason, if it does not take our certificate."""
        if self._identity is None or self.known.trusted:
            return
        if why := await peer.refusal(_VERIFY_S):
            raise NotListening(why)
        self.known.trusted = True

    async def connect(self, within: float | None = None) -> Peer:
        """One more connection. Raises ConnectFailed."""
        patience = self.patience_s if within is None else max(within, 0.01)
        connection = await connect(self._address, within=patience, identity=self._identity)
        peer = Peer(connection, self.patience_s)
        self._peers.append(peer)
        return peer

    async def reach(self, stage: Stage) -> Peer:
        """A main connection in this state. NotReached if a step is not answered Ok.

        NotListening if nobody starts the receiver anew and it leaves Start unanswered: its kernel
        takes connections, and it hangs.
        """
        peer = await self.begin()
        for step, data in self.steps(stage):
            reaction = await peer.exchange(data)
            if step is Stage.STARTED and reaction.silent and not self._launch.fresh:
                raise NotListening(f"{self._address}: Start: {reaction}")
            if answered(reaction, Status.OK).verdict is not Verdict.OK:
                raise NotReached(f"{step.step} before it: {reaction}")
        return peer

    def steps(self, stage: Stage) -> Sequence[tuple[Stage, bytes]]:
        """The requests that lead to `stage`."""
        return [
            (Stage.STARTED, START),
            (Stage.CONFIGURED, request(Command.CONFIG, self.vm.config)),
            (Stage.FILLED, memory(self.vm.page)),
            (Stage.RESTORED, request(Command.STATE, self.vm.state)),
        ][:stage]

    async def cpu(self) -> float:
        """Seconds of processor time that the receiver's known processes have used."""
        return await asyncio.to_thread(lambda: cpu_seconds(self._launch.processes()))

    async def effort(self, cpu_before: float, seconds: float) -> str:
        """In words, how much of a core they used since `cpu` gave that, if any."""
        used = await self.cpu() - cpu_before
        return f", using {used / seconds:.0%} of a core" if used > 0 else ""

    async def spins(self) -> str:
        """How busy the receiver stays with nothing to do, or nothing.

        Measured over and over until it rests, or patience ends: a process that is ending, or that
        discards a VM, is busy for a while. Nothing is known of processes that are not ours.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience_s
        while await asyncio.to_thread(self._launch.processes):
            before, begun = await self.cpu(), loop.time()
            await asyncio.sleep(min(_WINDOW_S, self.patience_s))
            share = (await self.cpu() - before) / (loop.time() - begun)
            if share < _BUSY:
                break
            if loop.time() >= deadline:
                return f"it uses {share:.0%} of a core with nothing to do"
        return ""

    def close(self) -> None:
        """Reset every connection."""
        for peer in self._peers:
            peer.reset()
        self._peers.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


Body = Callable[[Session], Awaitable[Seen]]
Judge = Callable[[Reaction], Seen]
Says = Callable[[ProbeVm], bytes]


@dataclass(frozen=True, slots=True)
class Check:
    """One question to a receiver."""

    name: str
    """`group/what`; docs/probe.md has a section for each group."""
    wants: str
    """What the protocol wants, in half a sentence."""
    body: Body

    @property
    def source(self) -> str:
        """Where to read on."""
        return f"docs/probe.md#{self.name.partition('/')[0]}"


class Ask:
    """The body of most checks: one thing said in one state, and how the answers are judged."""

    def __init__(
        self,
        stage: Stage,
        says: Says,
        judge: Judge = refused,
        answers: int = 1,
    ) -> None:
        self._stage = stage
        self._says = says
        self._judge = judge
        self._answers = answers

    async def __call__(self, session: Session) -> Seen:
        """Ask."""
        peer = await session.reach(self._stage)
        return self._judge(await peer.exchange(self._says(session.vm), self._answers))


def _untrusted(error: ConnectFailed) -> bool:
    """Whether its certificate is the reason: no later try would be told another."""
    why = error.__cause__
    return isinstance(why, HandshakeFailed) and isinstance(
        why.__cause__, ssl.SSLCertVerificationError
    )
