"""A long round trip: pipelined requests beside a sender that waits for each answer.

    python -m benchmarks.round_trip [--rtt-ms 100] [--mib-s 200] [--chunk-kib 1024]

The link is benchmarks.link. Prints MiB/s of the memory (from its first byte on the wire to its
last answer), as a share of the link, and what chunk / (chunk / rate + round trip) says.
"""

import argparse
from unittest import mock

from aiomigrate import Phase, SendOptions, send
from aiomigrate.window import Window
from benchmarks.link import Link
from benchmarks.rig import Receiver, run, source_of

MIB = 1 << 20


class OneAtATime(Window):
    """A window of one chunk: the next leaves when the last is answered."""

    @property
    def has_room(self) -> bool:
        """Whether nothing is unanswered."""
        return not self.unanswered


def measure(size: int, connections: int, options: argparse.Namespace, *, waits: bool) -> float:
    """MiB/s."""

    async def main() -> float:
        async with source_of(size) as source:
            settings = SendOptions(connections=connections, chunk_bytes=options.chunk_kib << 10)
            with mock.patch("aiomigrate.lane.Window", OneAtATime if waits else Window):
                async with send(source, link.address, settings) as migration:
                    began = ended = 0.0
                    async for progress in migration:
                        if progress.phase is Phase.PRECOPY and not began:
                            began = progress.elapsed_s
                        if progress.bytes_done < size:
                            ended = progress.elapsed_s
                    report = await migration.result()
            assert report.bytes == size
            return size / MIB / (ended - began)

    with (
        Receiver(size) as receiver,
        Link(receiver.address, rate=options.mib_s * MIB, delay_s=options.rtt_ms / 2000) as link,
    ):
        rate: float = run(main, meter=False)
        return rate


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtt-ms", type=float, default=100)
    parser.add_argument("--mib-s", type=float, default=200)
    parser.add_argument("--chunk-kib", type=int, default=1024)
    options = parser.parse_args()
    chunk, rtt = options.chunk_kib / 1024, options.rtt_ms / 1000
    for connections in (1, 4):
        share = options.mib_s / connections
        formula = connections * chunk / (chunk / share + rtt)
        waits = measure(connections * 64 * MIB, connections, options, waits=True)
        pipelined = measure(2048 * MIB, connections, options, waits=False)
        print(
            f"{connections} connections, {options.rtt_ms:g} ms, link {options.mib_s:g} MiB/s, "
            f"chunks of {options.chunk_kib} KiB: pipelined {pipelined:.1f} MiB/s "
            f"({100 * pipelined / options.mib_s:.0f} %), waiting {waits:.1f}, formula {formula:.1f}"
        )


if __name__ == "__main__":
    main()
