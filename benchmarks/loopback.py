"""Loopback: a random guest over 1 and 4 connections, beside iperf3 with as many streams, in turn.

    python -m benchmarks.loopback [--gib 2] [--rounds 5]

Prints GiB/s of each round, the medians and their ratio, then the longest callbacks of both event
loops in a further run on asyncio's own loop.
"""

import argparse
import json
import statistics
import subprocess

from aiomigrate import SendOptions
from benchmarks.callbacks import CallbackMeter
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


def callbacks(nbytes: int, connections: int) -> None:
    """Print the longest callbacks at both ends."""
    meter = CallbackMeter()

    async def main() -> None:
        async with source_of(nbytes) as source:
            with meter:
                await timed_send(source, receiver.address, SendOptions(connections=connections))

    with Receiver(nbytes, meter="asyncio") as receiver:
        run(main, meter)
        print(f"  source      {json.dumps(meter.figures())}")
        print(f"  destination {json.dumps(receiver.figures())}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    nbytes = arguments.gib * GIB
    for connections in (1, 4):
        pairs = []
        for _ in range(arguments.rounds):
            pairs.append((ours(nbytes, connections), iperf3(nbytes, connections)))
            print(f"{connections} connections: ours {pairs[-1][0]:.2f}, iperf3 {pairs[-1][1]:.2f}")
        medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
        print(
            f"{connections} connections, medians in GiB/s: ours {medians[0]:.2f}, "
            f"iperf3 {medians[1]:.2f}, ratio {medians[0] / medians[1]:.2f}"
        )
        print(f"{connections} connections, callbacks:")
        callbacks(nbytes, connections)


if __name__ == "__main__":
    main()
