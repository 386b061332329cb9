"""Loopback: a random guest over 1 and 4 connections, beside iperf3 with as many streams, in turn.

    python -m benchmarks.loopback [--gib 2] [--rounds 5]

GiB/s of each round, the medians and their ratio, then the longest callbacks of both event loops in
a further run on asyncio's own loop.
"""

import argparse
import json
import statistics
import subprocess

from aiomigrate import SendOptions
from benchmarks.callbacks import CallbackMeter, longest
from benchmarks.results import Recording, need_programs
from benchmarks.rig import Receiver, run, source_of, timed_send

GIB = 1 << 30
IPERF_PORT = 5299


def iperf3(nbytes: int, streams: int) -> float:
    """GiB/s that iperf3 moves with as many streams."""
    with subprocess.Popen(
        ["iperf3", "-s", "-1", "--forceflush", "-B", "127.0.0.1", "-p", str(IPERF_PORT)],
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if "listening" in line:
                    break
            command = ["iperf3", "-c", "127.0.0.1", "-p", str(IPERF_PORT), "-J"]
            command += ["-P", str(streams), "-n", str(nbytes), "-l", "1M"]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
            end = json.loads(done.stdout)["end"]["sum_received"]
            return float(end["bytes"] / end["seconds"] / GIB)
        finally:
            server.kill()


def ours(nbytes: int, connections: int) -> float:
    """GiB/s that a whole migration moves, handshake and completion included."""

    async def main() -> float:
        async with source_of(nbytes) as source:
            seconds, report = await timed_send(
                source, receiver.address, SendOptions(connections=connections)
            )
            assert report.bytes == nbytes
            return nbytes / seconds / GIB

    with Receiver(nbytes) as receiver:
        rate: float = run(main)
        return rate


def callbacks(record: Recording, nbytes: int, connections: int) -> None:
    """The longest callbacks at both ends."""
    meter = CallbackMeter()

    async def main() -> None:
        async with source_of(nbytes) as source:
            with meter:
                await timed_send(source, receiver.address, SendOptions(connections=connections))

    with Receiver(nbytes, meter="asyncio") as receiver:
        run(main, meter)
        for end, figures in (("source", meter.figures()), ("destination", receiver.figures())):
            record.row("callbacks", connections=connections, end=end, **longest(figures))


def measure(record: Recording, nbytes: int, rounds: int) -> None:
    """Both in turn, and the callbacks."""
    for connections in (1, 4):
        pairs = []
        for number in range(1, rounds + 1):
            pair = ours(nbytes, connections), iperf3(nbytes, connections)
            pairs.append(pair)
            record.row(
                "rounds",
                connections=connections,
                round=number,
                ours_gib_s=pair[0],
                iperf3_gib_s=pair[1],
            )
        mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        record.row(
            "medians",
            connections=connections,
            ours_gib_s=mine,
            iperf3_gib_s=theirs,
            ratio=mine / theirs,
        )
    for connections in (1, 4):
        callbacks(record, nbytes, connections)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    need_programs("iperf3")
    with Recording("loopback", "benchmarks.loopback", vars(arguments)) as record:
        measure(record, arguments.gib * GIB, arguments.rounds)


if __name__ == "__main__":
    main()
