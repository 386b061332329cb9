"""What a migration may be told: options of both sides, and their deadlines.

Names, units and defaults are Cloud Hypervisor's where it has the option (`vm.send-migration`).
"""

import ipaddress
import os
from dataclasses import dataclass, field
from enum import StrEnum

from aiomigrate.errors import UsageError
from aiomigrate.protocol import ALL_EXTENSIONS, Dialect, Extension, Limits
from aiomigrate.transport import Pace

__all__ = [
    "MAX_THROTTLE_PERCENT",
    "Deadlines",
    "ReceiveOptions",
    "SendOptions",
    "TimeoutStrategy",
]

_MIB = 1 << 20
MAX_THROTTLE_PERCENT = 99
"""QEMU's limit: a guest that does not run at all is a paused one."""
_MIN_RATE = _MIB
"""Bytes a second, the least limit: a chunk that was cut before the limit came leaves in time for a
destination that waits `idle_s` for it."""


class TimeoutStrategy(StrEnum):
    """What to do when `timeout_s` is over and pre-copy has not converged."""

    CANCEL = "cancel"
    """Fail; the guest goes on at the source."""
    IGNORE = "ignore"
    """Pause the guest and send the rest, however long that takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long to wait for what, in seconds. Progress counts, not age. UsageError for a value that
    is not more than 0.
    """

    connect_s: float = 10.0
    """For a connection to be made."""
    header_s: float = 10.0
    """For a header or a role to be whole, from its first byte (Cloud Hypervisor's role wait)."""
    pace: Pace = field(default_factory=Pace)
    """For tables, payloads and content: at least 64 KiB, or their rest, in any 30 s."""
    memory_answer_s: float = 30.0
    """Without any answer to Memory and without bytes that the peer's kernel acknowledges."""
    answer_s: float = 300.0
    """For the answer to Start, Config, State, Complete and Abandon; and for one to Memory on any
    connection while lanes are lost and replaced."""
    idle_s: float = 300.0
    """Without a byte on any connection of the migration while the source is to speak."""
    linger_s: float = 5.0
    """For a peer to read an Error answer before its connection is closed."""
    abandon_s: float = 30.0
    """For a destination to end what it is doing and to answer Abandon."""
    embedder_s: float = 300.0
    """For each call into the embedder's VMM."""
    commit_grace_s: float = 5.0
    """For the answer to Complete when the waiting task is cancelled; then it counts as lost."""
    journal_s: float = 30.0
    """For the journal's disk to take a record. The first one has to be there before the VM can be
    given away: the guest is paused meanwhile, and goes on at the source if it does not come."""
    settle_s: float = 30.0
    """For an answer to the ownership query, once the answer to Complete was lost."""
    confirm_s: float = 5.0
    """For the answer to Confirm. The VM is the destination's by then: it is a courtesy."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name != "pace" and not value > 0:
                raise UsageError(f"{name} must be more than 0 seconds, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOptions:
    """Options of a source. UsageError for a value that cannot be meant."""

    local: bool = False
    """Give the memory itself, by descriptor, instead of its content: over a unix socket, to a
    destination on this machine. The guest's memory is in files (memfds)."""
    connections: int = 1
    """1 to 128. More than 1: as many additional connections, for memory alone; tcp only."""
    dialect: Dialect = Dialect.V53
    """How those connections begin. A source is told; a destination finds out."""
    downtime_ms: int = 300
    """The guest is paused once what is left is expected to move in this time."""
    timeout_s: int = 3600
    """How long pre-copy may take; also looked at within an iteration. The last pass, with the guest
    paused, ends with that time too, but has `downtime_ms` in any case."""
    timeout_strategy: TimeoutStrategy = TimeoutStrategy.CANCEL
    """`cancel` fails, `ignore` pauses the guest and sends the rest however long it takes."""
    rate_limit: int = 0
    """Bytes of content a second, over all connections together, at least 1 MiB/s; 0: no limit. As
    QEMU's max-bandwidth it does not hold once the guest is paused. The bandwidth that expected
    downtimes are reckoned with is the limited one."""
    throttle_cap_percent: int = MAX_THROTTLE_PERCENT
    """How far a guest that writes faster than memory moves may be slowed down, if its VMM can do
    that (`Throttled`): 1 to 99, 0 for never."""
    chunk_bytes: int = 16 * _MIB
    """Content of one Memory request at the most. Smaller ones cost throughput (on loopback 4 MiB
    moved 1.3 GiB/s where 16 MiB moved 2.3), larger ones keep a slow lane busy for longer at the
    end of an iteration. A stock sender uses 64 MiB."""
    destination_is_fresh: bool = True
    """Zeros of iteration 0 are left out: the destination's memory reads as zeros before, but for
    zones that the Config backs by a file. A destination that accepts extensions is believed only
    if it promises that."""
    fast_switchover: bool = False
    """Complete is sent right behind State, which saves a round trip of downtime. So it is in any
    case towards a destination that can be asked who owns the VM; with any other one the price is
    that a State whose refusal is lost on the way ends as unknown, the guest paused, instead of as
    failed."""
    extensions: Extension = ALL_EXTENSIONS
    """What is offered to the destination; one that knows none takes no notice."""
    journal: str | os.PathLike[str] | None = None
    """A directory for the record of who owns the VM; None: none is kept."""
    tls_dir: str | os.PathLike[str] | None = None
    """Mutual TLS 1.3: a directory with `ca-cert.pem`, `client-cert.pem` and `client-key.pem`. The
    destination's certificate must be for the address' host. None: no TLS."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    """How long to wait for what."""
    limits: Limits = field(default_factory=Limits)
    """What the peer may ask of this side at the most."""

    def __post_init__(self) -> None:
        if not 1 <= self.connections <= self.limits.max_connections:
            raise UsageError(
                f"connections must be 1 to {self.limits.max_connections}, not {self.connections}"
            )
        if self.downtime_ms < 1 or self.timeout_s < 1:
            raise UsageError("downtime_ms and timeout_s must be at least 1")
        if self.rate_limit and self.rate_limit < _MIN_RATE:
            raise UsageError(
                f"rate_limit must be 0 or at least {_MIN_RATE} bytes/s, not {self.rate_limit}"
            )
        if not 0 <= self.throttle_cap_percent <= MAX_THROTTLE_PERCENT:
            raise UsageError(
                f"throttle_cap_percent must be 0 to {MAX_THROTTLE_PERCENT}, "
                f"not {self.throttle_cap_percent}"
            )
        if self.chunk_bytes < 4096 or self.chunk_bytes % 4096:
            raise UsageError(f"chunk_bytes must be a multiple of 4096, not {self.chunk_bytes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveOptions:
    """Options of a destination. UsageError for a value that cannot be meant."""

    allow_lanes_from: tuple[str, ...] = ()
    """Networks (`10.0.0.0/8`) that lanes may come from besides the main connection's address."""
    linger_s: float = 120.0
    """How long to stay, after the answer to Complete, for the source to confirm that it read it or
    to ask who owns the VM; and after a failure that the source may not know of, for it to ask."""
    extensions: Extension = ALL_EXTENSIONS
    """What is accepted of the source's offer."""
    journal: str | os.PathLike[str] | None = None
    """A directory for the record of who owns the VM; None: none is kept."""
    tls_dir: str | os.PathLike[str] | None = None
    """Mutual TLS 1.3: a directory with `ca-cert.pem`, `server-cert.pem` and `server-key.pem`. A
    source, and each of its lanes, must show a certificate. None: no TLS."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    """How long to wait for what."""
    limits: Limits = field(default_factory=Limits)
    """What the peer may ask of this side at the most."""

    def __post_init__(self) -> None:
        for network in self.allow_lanes_from:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise UsageError(f"allow_lanes_from: {error}") from None
        if not self.linger_s > 0:
            raise UsageError(f"linger_s must be more than 0 seconds, not {self.linger_s!r}")
