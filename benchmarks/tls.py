"""Mutual TLS on loopback: a random guest over 1 and 4 connections, beside a pipe in C.

    python -m benchmarks.tls [--gib 1] [--rounds 5]

The pipe (`tls_pipe.c`, built with gcc and OpenSSL's headers) moves as much memory between two
processes, with a thread a stream, the same certificates and the same cipher: OpenSSL chooses it on
both sides, and each run prints it. It writes and reads 256 KiB at a time. In turn, so that ratios
within a run count. Prints GiB/s of each round, the medians and their ratio, then the longest
callbacks of both event loops in a further run on asyncio's own loop, as a table.
"""

import argparse
import ssl
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import trustme

from aiomigrate import SendOptions
from benchmarks.callbacks import CallbackMeter
from benchmarks.rig import GIB, Receiver, headline, run, source_of, timed_send

PIECE_BYTES = 256 << 10
HOST = "127.0.0.1"


def certificates(path: Path) -> Path:
    """Both sides' files, with ECDSA keys."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(path / "ca-cert.pem")
    for side in ("client", "server"):
        leaf = authority.issue_cert(HOST)
        leaf.cert_chain_pems[0].write_to_path(path / f"{side}-cert.pem")
        leaf.private_key_pem.write_to_path(path / f"{side}-key.pem")
    return path


def build(into: Path) -> Path:
    """Compile the pipe."""
    program = into / "tls_pipe"
    source = Path(__file__).with_name("tls_pipe.c")
    subprocess.run(
        ["gcc", "-O2", "-pthread", "-o", program, source, "-lssl", "-lcrypto"], check=True
    )
    return program


def pipe(program: Path, tls_dir: Path, nbytes: int, streams: int) -> tuple[str, float]:
    """The cipher, and GiB/s of the pipe."""
    command = [str(program), str(tls_dir), str(nbytes), str(streams), str(PIECE_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    cipher, rate = done.stdout.split()
    return cipher, float(rate)


def ours(tls_dir: Path, nbytes: int, connections: int) -> float:
    """GiB/s that a whole migration moves, handshakes and completion included."""

    async def main() -> float:
        async with source_of(nbytes) as source:
            options = SendOptions(connections=connections, tls_dir=tls_dir)
            seconds, report = await timed_send(source, receiver.address, options)
            assert report.bytes == nbytes
            return nbytes / seconds / GIB

    with Receiver(nbytes, tls_dir=tls_dir) as receiver:
        rate: float = run(main)
        return rate


def callbacks(tls_dir: Path, nbytes: int, connections: int) -> list[tuple[str, Any]]:
    """The longest callbacks at both ends."""
    meter = CallbackMeter()

    async def main() -> None:
        async with source_of(nbytes) as source:
            options = SendOptions(connections=connections, tls_dir=tls_dir)
            with meter:
                await timed_send(source, receiver.address, options)

    with Receiver(nbytes, meter="asyncio", tls_dir=tls_dir) as receiver:
        run(main, meter)
        return [("source", meter.figures()), ("destination", receiver.figures())]


def measure(directory: Path, nbytes: int, rounds: int) -> None:
    """Measure and print."""
    tls_dir = certificates(directory)
    program = build(directory)
    rates, longest = [], []
    for connections in (1, 4):
        pairs = []
        for _ in range(rounds):
            cipher, beside = pipe(program, tls_dir, nbytes, connections)
            pairs.append((ours(tls_dir, nbytes, connections), beside))
            print(f"{connections} connections: ours {pairs[-1][0]:.2f}, C {beside:.2f} ({cipher})")
        mine, c = (statistics.median(column) for column in zip(*pairs, strict=True))
        rates.append(f"| {connections} | {mine:.2f} | {c:.2f} | {mine / c:.2f} |")
        for end, met in callbacks(tls_dir, nbytes, connections):
            cells = (met[name] for name in ("wall_p99_ms", "cpu_p99_ms", "wall_max_ms"))
            longest.append(
                f"| {connections}, {end} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |"
            )
    print(f"\n{headline()}")
    print(f"ours: {ssl.OPENSSL_VERSION}\n")
    print("| connections | ours, GiB/s | C, GiB/s | ratio |", "| --- " * 4 + "|", sep="\n")
    print(*rates, "", sep="\n")
    print(
        "| connections, end | wall p99, ms | thread CPU p99 | wall max |",
        "| --- " * 4 + "|",
        sep="\n",
    )
    print(*longest, sep="\n")


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measure(Path(directory), arguments.gib * GIB, arguments.rounds)


if __name__ == "__main__":
    main()
