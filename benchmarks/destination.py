"""Fresh memory at the destination: what it costs, and that what is sparse comes fast and stays so.

    python -m benchmarks.destination [--gib 3] [--rounds 3] [--connections 4] [--place DIR]

First a random guest into memory that was touched beforehand, that is populated ahead of the data in
jobs, and that the event loop's own system calls touch first; with the longest callbacks of the
destination. Then a guest of which 1 % is populated, in single pages all over it, and one of
explicit zeros, each beside sending all of it. Rounds are taken in turn.

`--place DIR` has the first table's memory in a file of DIR instead of a memfd, say in a tmpfs with
huge pages: `unshare -rm sh -c 'mount -t tmpfs -o huge=advise tmpfs /mnt && python -m ...'`.
"""

import argparse
import mmap
import statistics
from collections.abc import Callable

import numpy as np

from aiomigrate import SendOptions
from aiomigrate.protocol import Extension
from benchmarks.results import Recording
from benchmarks.rig import GIB, MIB, PAGE, Fill, Receiver, run, source_of, timed_send

WAYS: dict[str, tuple[bool, bool]] = {
    "touched beforehand": (False, True),
    "populated ahead": (True, True),
    "touched by the loop": (True, False),
}
"""(fresh, ahead) of each."""


def one_percent(view: mmap.mmap) -> None:
    """Random data in one page of a hundred."""
    generator = np.random.default_rng(1)
    for page in range(0, len(view) // PAGE, 100):
        at = PAGE * (page + int(generator.integers(100)))
        if at < len(view):
            view[at : at + PAGE] = generator.bytes(PAGE)


def zeros(view: mmap.mmap) -> None:
    """Zeros that are there."""
    for begin in range(0, len(view), MIB):
        view[begin : begin + MIB] = bytes(MIB)


def move(
    receiver: Receiver, size: int, options: SendOptions, fill: Fill | None = None
) -> tuple[float, int]:
    """Seconds of a whole migration, and the bytes of content that it sent."""

    async def main() -> tuple[float, int]:
        async with source_of(size, fill) as source:
            seconds, report = await timed_send(source, receiver.address, options)
            return seconds, report.bytes

    result: tuple[float, int] = run(main)
    return result


def fresh_memory(
    record: Recording, size: int, rounds: int, options: SendOptions, place: str
) -> None:
    """What the first touch costs, and where it is made."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, (fresh, ahead) in WAYS.items():
            with Receiver(size, fresh=fresh, ahead=ahead, place=place) as receiver:
                seconds[way].append(move(receiver, size, options)[0])
    for way, (fresh, ahead) in WAYS.items():
        with Receiver(size, meter="asyncio", fresh=fresh, ahead=ahead, place=place) as receiver:
            move(receiver, size, options)
            figures = receiver.figures()
        record.row(
            "fresh",
            memory_of_the_destination=way,
            rate_gib_s=size / GIB / statistics.median(seconds[way]),
            callbacks_wall_p99_ms=figures["wall_p99_ms"],
            wall_max_ms=figures["wall_max_ms"],
        )


def sparse_guest(
    record: Recording,
    what: str,
    size: int,
    rounds: int,
    options: SendOptions,
    fill: Callable[[mmap.mmap], None],
) -> None:
    """A guest with its zeros left out, beside all of it as content."""
    everything = SendOptions(
        connections=options.connections,
        destination_is_fresh=False,
        extensions=options.extensions & ~Extension.ZERO_RUNS,
    )
    ours, whole = [], []
    held = sent = 0
    for _ in range(rounds):
        with Receiver(size, fresh=True) as receiver:
            seconds, sent = move(receiver, size, options, fill)
            held = receiver.held_bytes()
        ours.append(seconds)
        with Receiver(size, fresh=True) as receiver:
            seconds, nbytes = move(receiver, size, everything, fill)
            assert nbytes == size
        whole.append(seconds)
    fast, slow = statistics.median(ours), statistics.median(whole)
    record.row(
        "sparse",
        guest=what,
        sent_mib=sent / MIB,
        held_by_the_destination_mib=held / MIB,
        time_s=fast,
        all_of_it_sent_s=slow,
        ratio=slow / fast,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--place", default="")
    arguments = parser.parse_args()
    size = int(arguments.gib * GIB)
    options = SendOptions(connections=arguments.connections)
    with Recording("destination", "benchmarks.destination", vars(arguments)) as record:
        fresh_memory(record, size, arguments.rounds, options, arguments.place)
        sparse_guest(record, "1 % populated", size, arguments.rounds, options, one_percent)
        sparse_guest(record, "explicit zeros", size, arguments.rounds, options, zeros)


if __name__ == "__main__":
    main()
