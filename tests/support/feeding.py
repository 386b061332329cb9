"""Feeding a receiving core as a driver does: never more than it wants."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from aiomigrate.protocol import Request

__all__ = ["Receiver", "cuts_of", "every_way", "feed", "header"]

E_co = TypeVar("E_co", covariant=True)


class Receiver(Protocol[E_co]):
    @property
    def wanted(self) -> int: ...

    def receive_data(self, data: bytes | bytearray | memoryview) -> E_co | None: ...


def header(command: int, length: int = 0, headers: bytes = bytes(6)) -> bytes:
    return Request(command, length, headers).encode()


def feed(core: Receiver[E_co], data: bytes, cuts: Iterable[int] = ()) -> list[E_co]:
    """Feed `data`, cut at the given offsets besides; the events, which end the feeding."""
    events: list[E_co] = []
    at = 0
    for end in sorted({*(cut for cut in cuts if cut < len(data)), len(data)}):
        while at < end:
            assert core.wanted > 0, f"{len(data) - at} bytes are too many"
            piece = data[at : min(end, at + core.wanted)]
            at += len(piece)
            event = core.receive_data(piece)
            if event is not None:
                events.append(event)
    return events


def cuts_of(size: int) -> Iterator[tuple[int, ...]]:
    """Ways of cutting a sample: not at all, between any two bytes, and at each offset."""
    yield ()
    yield tuple(range(1, size))
    for at in range(1, size):
        yield (at,)


def every_way(data: bytes) -> list[tuple[int, ...]]:
    return list(cuts_of(len(data)))
