"""Mutual TLS on loopback: a random guest over 1 and 4 connections, beside a pipe in C.

    python -m benchmarks.tls [--gib 1] [--rounds 5]

The pipe (`tls_pipe.c`, built with gcc and OpenSSL's headers) moves as much memory between two
processes, with a thread a stream, the same certificates and the same cipher: OpenSSL chooses it on
both sides, and each round says it. It writes and reads 256 KiB at a time. In turn, so that ratios
within a run count. GiB/s of each round, the medians and their ratio, then the longest callbacks of
both event loops in a further run on asyncio's own loop.
"""

import argparse
import ssl
import statistics
import subprocess
import tempfile
from pathlib import Path

import trustme

from aiomigrate import SendOptions
from benchmarks.callbacks import CallbackMeter, longest
from benchmarks.results import Recording, need_programs, skip
from benchmarks.rig import GIB, Receiver, run, source_of, timed_send

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
    """Compile the pipe, or skip."""
    need_programs("gcc")
    program = into / "tls_pipe"
    source = Path(__file__).with_name("tls_pipe.c")
    done = subprocess.run(
        ["gcc", "-O2", "-pthread", "-o", program, source, "-lssl", "-lcrypto"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        skip(f"{source.name} cannot be built (it needs OpenSSL's headers): {done.stderr}")
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


def callbacks(record: Recording, tls_dir: Path, nbytes: int, connections: int) -> None:
    """The longest callbacks at both ends."""
    meter = CallbackMeter()

    async def main() -> None:
        async with source_of(nbytes) as source:
            options = SendOptions(connections=connections, tls_dir=tls_dir)
            with meter:
                await timed_send(source, receiver.address, options)

    with Receiver(nbytes, meter="asyncio", tls_dir=tls_dir) as receiver:
        run(main, meter)
        for end, figures in (("source", meter.figures()), ("destination", receiver.figures())):
            record.row("callbacks", lanes=connections, end=end, **longest(figures))


def measure(record: Recording, program: Path, tls_dir: Path, nbytes: int, rounds: int) -> None:
    """Both in turn, and the callbacks."""
    record.row("library", ours=ssl.OPENSSL_VERSION)
    for connections in (1, 4):
        pairs = []
        for number in range(1, rounds + 1):
            cipher, beside = pipe(program, tls_dir, nbytes, connections)
            pairs.append((ours(tls_dir, nbytes, connections), beside))
            record.row(
                "rounds",
                lanes=connections,
                round=number,
                cipher=cipher,
                ours_gib_s=pairs[-1][0],
                c_gib_s=beside,
            )
        mine, c = (statistics.median(column) for column in zip(*pairs, strict=True))
        record.row("medians", lanes=connections, ours_gib_s=mine, c_gib_s=c, ratio=mine / c)
    for connections in (1, 4):
        callbacks(record, tls_dir, nbytes, connections)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        tls_dir, program = certificates(Path(directory)), build(Path(directory))
        with Recording("tls", "benchmarks.tls", vars(arguments)) as record:
            measure(record, program, tls_dir, arguments.gib * GIB, arguments.rounds)


if __name__ == "__main__":
    main()
