"""What a `FaultRelay` does to connections, as data, and as the text of its command line.

A fault aims at one connection, counted from 0 in the order in which the relay accepts them, or at
every one; and, where it concerns bytes, at one direction or at each of both. A fault at a byte
strikes when exactly so many bytes of its direction have reached the other end.

    conn=2,dir=up,cut=1000000     both ends of connection 2 read an end of stream
    dir=down,reset=0              every connection is reset before its first answer
    conn=1,dir=up,stall=65536     nothing more moves towards the target until it is released
    conn=1,dir=up,half-close=8    the target reads an end of stream, answers still come back
    delay=0.05,jitter=0.01        50 to 60 ms, each way
    dir=up,rate=1e6               bytes a second, of each connection by itself
    conn=3,refuse                 accepted and ended; refuse=reset: and reset
    conn=3,hold                   not accepted, nor is any later one, until it is released
    conn=1,behind=2               connection 2 reaches the target first
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "AtByte",
    "Behind",
    "Cut",
    "Delay",
    "Direction",
    "Fault",
    "HalfClose",
    "Hold",
    "Rate",
    "Refuse",
    "Reset",
    "Stall",
    "parse_fault",
]


class Direction(StrEnum):
    """Which way bytes go."""

    UP = "up"
    """Towards the target."""
    DOWN = "down"
    """Back to who connected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is done to a connection. `str()` gives the text that `parse_fault` reads.

    ValueError for a field that cannot be meant.
    """

    connection: int | None = None
    """By order of acceptance, from 0; None: every one."""

    def __post_init__(self) -> None:
        if self.connection is not None and self.connection < 0:
            raise ValueError(f"connections count from 0, not {self.connection}")

    def aims_at(self, connection: int) -> bool:
        """Whether that connection, by its number, is meant."""
        return self.connection in {None, connection}

    def __str__(self) -> str:
        fields = [] if self.connection is None else [f"conn={self.connection}"]
        if isinstance(self, _OnBytes) and self.direction is not None:
            fields.append(f"dir={self.direction}")
        return ",".join([*fields, self._what()])

    def _what(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class _OnBytes(Fault):
    direction: Direction | None = None
    """None: each of both."""

    def goes(self, direction: Direction) -> bool:
        """Whether that direction is meant."""
        return self.direction in {None, direction}


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay(_OnBytes):
    """Each byte arrives `seconds` later, and up to `jitter_s` more; the order stays."""

    seconds: float
    jitter_s: float = 0.0

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        if not (self.seconds >= 0 and self.jitter_s >= 0):
            raise ValueError(f"a delay is 0 s or more, not {self.seconds!r} and {self.jitter_s!r}")

    def _what(self) -> str:
        jitter = f",jitter={self.jitter_s!r}" if self.jitter_s else ""
        return f"delay={self.seconds!r}{jitter}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate(_OnBytes):
    """At most `bytes_per_s` bytes a second."""

    bytes_per_s: float

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        if not self.bytes_per_s > 0:
            raise ValueError(f"a rate is more than 0 bytes a second, not {self.bytes_per_s!r}")

    def _what(self) -> str:
        return f"rate={self.bytes_per_s!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtByte(_OnBytes):
    """A fault that strikes once exactly `after` bytes have got through."""

    after: int

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        if self.after < 0:
            raise ValueError(f"a fault strikes after 0 bytes or more, not {self.after}")

    def _what(self) -> str:
        return f"{_NAMES[type(self)]}={self.after}"


class Cut(AtByte):
    """Both ends read an end of stream. What either still writes is discarded."""

    __slots__ = ()


class Reset(AtByte):
    """Both ends are reset, once the bytes are acknowledged (those of the other direction may be
    lost). A unix socket has no reset: there it is an end of stream.
    """

    __slots__ = ()


class Stall(AtByte):
    """Nothing more is read in this direction until the relay's `release`."""

    __slots__ = ()


class HalfClose(AtByte):
    """The direction ends, the other one goes on. What still comes in this one is discarded."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse(Fault):
    """The connection is ended as soon as it has been accepted; with `reset`, it is reset."""

    reset: bool = False

    def _what(self) -> str:
        return "refuse=reset" if self.reset else "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold(Fault):
    """The connection stays in the accept queue until the relay's `release`, and so does every later
    one: the queue is one. Strikes once those before it have been accepted.
    """

    def _what(self) -> str:
        return "hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind(Fault):
    """The connection reaches the target only after number `other` has (or never will)."""

    other: int

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        if self.connection is None or self.connection == self.other or self.other < 0:
            raise ValueError(f"one connection goes behind another: {self.connection}, {self.other}")

    def _what(self) -> str:
        return f"behind={self.other}"


_AT_BYTE: dict[str, type[AtByte]] = {
    "cut": Cut,
    "reset": Reset,
    "stall": Stall,
    "half-close": HalfClose,
}
_NAMES: dict[type[AtByte], str] = {kind: name for name, kind in _AT_BYTE.items()}


def parse_fault(text: str) -> Fault:
    """Read a fault (the forms are at the top of this module).

    Raises `ValueError` with a sentence that quotes the text.
    """
    fields: dict[str, str] = {}
    for field in text.split(","):
        key, _, value = field.partition("=")
        if key in fields:
            raise ValueError(f"{text!r}: {key!r} is there twice")
        fields[key] = value
    try:
        fault = _fault(fields)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if fields:
        raise ValueError(f"{text!r}: {next(iter(fields))!r} does not belong there")
    return fault


def _fault(fields: dict[str, str]) -> Fault:
    """The fault; what belongs to it is taken out of `fields`."""

    def take(key: str, read: Callable[[str], float]) -> float:
        value = fields.pop(key)
        try:
            return read(value)
        except ValueError:
            raise ValueError(f"{key!r} needs a number, not {value!r}") from None

    def whole(key: str) -> int:
        return int(take(key, int))

    connection = whole("conn") if "conn" in fields else None
    if "refuse" in fields:
        how = fields.pop("refuse")
        if how not in {"", "reset"}:
            raise ValueError(f"write 'refuse' or 'refuse=reset', not {how!r}")
        return Refuse(connection=connection, reset=how == "reset")
    if "hold" in fields and not fields["hold"]:
        del fields["hold"]
        return Hold(connection=connection)
    if "behind" in fields:
        return Behind(connection=connection, other=whole("behind"))
    direction = Direction(fields.pop("dir")) if "dir" in fields else None
    if "delay" in fields:
        seconds = take("delay", float)
        jitter_s = take("jitter", float) if "jitter" in fields else 0.0
        return Delay(connection=connection, direction=direction, seconds=seconds, jitter_s=jitter_s)
    if "rate" in fields:
        rate = take("rate", float)
        return Rate(connection=connection, direction=direction, bytes_per_s=rate)
    for name, kind in _AT_BYTE.items():
        if name in fields:
            return kind(connection=connection, direction=direction, after=whole(name))
    raise ValueError("no fault is named")
