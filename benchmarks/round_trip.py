"""A long round trip: pipelined requests beside a sender that waits for each answer, and beside TCP.

    python -m benchmarks.round_trip [--rtt-ms 100] [--mib-s 100 200] [--chunk-kib 1024] \
        [--memory-mib 2048]

The link is aiomigrate.testing's, of two network namespaces: TCP behaves on it as on a long path.
How much of a connection may be on the way is bound by net.ipv4.tcp_rmem and tcp_wmem there, so
everything is measured with the kernel's own limits and with higher ones; with its own, where each
connection is slow, it carries a quarter of the memory. MiB/s of the memory (from its first byte on
the wire to its last answer), of as many bare sockets whose bytes are read and dropped, and what
chunk / (chunk / rate + round trip) says.
"""

import argparse
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

from aiomigrate import Phase, SendOptions, send
from aiomigrate.testing import Link, LinkUnavailable, Namespace
from aiomigrate.window import Window
from benchmarks.results import Recording, skip
from benchmarks.rig import Receiver, run, source_of

MIB = 1 << 20
WAITING_SIZE = 32 * MIB  # of each connection: it takes as long
HIGH_LIMITS = "4096 1048576 134217728"  # least, first, most; in bytes


class OneAtATime(Window):
    """A window of one chunk: the next leaves when the last is answered."""

    @property
    def has_room(self) -> bool:
        """Whether nothing is unanswered."""
        return not self.unanswered


def limits(namespace: Namespace, new: str | None) -> str:
    """Set what TCP may buffer, if anything; what is in force, in words."""
    found = []
    for name in ("tcp_rmem", "tcp_wmem"):
        path = Path("/proc/sys/net/ipv4") / name
        if new is not None:
            namespace.call(path.write_text, new)
        found.append(f"{int(namespace.call(path.read_text).split()[2]) / MIB:g} MiB")
    return ", ".join(found) + ("" if new else " (the kernel's)")


def migrated(link: Link, size: int, connections: int, chunk: int, *, waits: bool) -> float:
    """MiB/s of a migration."""

    async def main() -> float:
        async with source_of(size) as source:
            settings = SendOptions(connections=connections, chunk_bytes=chunk)
            with mock.patch("aiomigrate.lane.Window", OneAtATime if waits else Window):
                async with send(source, receiver.address, settings) as migration:
                    began = ended = 0.0
                    async for progress in migration:
                        if progress.phase is Phase.PRECOPY and not began:
                            began = progress.elapsed_s
                        if progress.bytes_done < size:
                            ended = progress.elapsed_s
                    report = await migration.result()
            assert report.bytes == size
            return size / MIB / (ended - began)

    with link.far.call(Receiver, size, listen=f"tcp:{link.far_address}:0") as receiver:
        rate: float = link.near.call(run, main)
        return rate


def bare(link: Link, size: int, connections: int) -> float:
    """MiB/s of sockets whose bytes are read and dropped; the last answer is one byte."""
    data = memoryview(bytes(size // connections))

    def drop(far: socket.socket) -> None:
        room, left = bytearray(MIB), len(data)
        while left:
            left -= far.recv_into(room)
        far.sendall(b"k")

    def carry(near: socket.socket) -> None:
        near.sendall(data)
        near.recv(1)

    with ExitStack() as opened:
        listener = link.far.call(socket.create_server, (link.far_address, 0))
        opened.enter_context(listener)
        threads = []
        for _ in range(connections):
            near = link.near.call(socket.create_connection, listener.getsockname())
            far, _ = listener.accept()
            for work, end in ((carry, near), (drop, far)):
                opened.enter_context(end)
                threads.append(threading.Thread(target=work, args=(end,)))
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return size / MIB / (time.perf_counter() - began)


def measure(record: Recording, rate: float, options: argparse.Namespace) -> None:
    """All of it on a link of so many MiB/s."""
    chunk, rtt = options.chunk_kib / 1024, options.rtt_ms / 1000
    for new in (None, HIGH_LIMITS):
        for connections in (1, 4):
            with Link(delay_s=rtt / 2, rate=rate * MIB) as link:
                limits(link.near, new)
                setting = limits(link.far, new)
                size = options.chunk_kib << 10
                memory = options.memory_mib * MIB // (1 if new else 4 // connections)
                waits = migrated(link, connections * WAITING_SIZE, connections, size, waits=True)
                pipelined = migrated(link, memory, connections, size, waits=False)
                plain = bare(link, memory, connections)
            record.row(
                "rates",
                link_mib_s=rate,
                connections=connections,
                most_in_tcp_rmem_and_tcp_wmem=setting,
                pipelined_mib_s=pipelined,
                of_the_link_percent=100 * pipelined / rate,
                bare_sockets_mib_s=plain,
                waiting_mib_s=waits,
                formula_mib_s=connections * chunk / (chunk / (rate / connections) + rtt),
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtt-ms", type=float, default=100)
    parser.add_argument("--mib-s", type=float, nargs="+", default=[100.0, 200.0])
    parser.add_argument("--chunk-kib", type=int, default=1024)
    parser.add_argument("--memory-mib", type=int, default=2048)
    options = parser.parse_args()
    try:
        with Link():
            pass
    except LinkUnavailable as error:
        skip(str(error))
    arguments = vars(options) | {"mib_s": " ".join(f"{rate:g}" for rate in options.mib_s)}
    with Recording("round_trip", "benchmarks.round_trip", arguments) as record:
        for rate in options.mib_s:
            measure(record, rate, options)


if __name__ == "__main__":
    main()
