"""A long link in user space: a delay each way and one rate for each direction of all connections.

It ends TCP on both sides, so it shows a sender the pipelining of requests over a long round trip,
not TCP's own behaviour on one. Runs in a process of its own.
"""

import asyncio
import multiprocessing
import socket
from multiprocessing.connection import Connection
from typing import Self

import uvloop

PIECE = 256 << 10
_SLACK_S = 0.002  # below the resolution of the loop's timers sleeping is only noise

_LATE_S = 0.02  # what a busy machine makes this process late is made up for, as by a link's queue


class _Direction:
    """The rate that all connections share in one direction."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def pass_through(self, nbytes: int) -> None:
        """Wait until the link has carried `nbytes` more."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._free_at = max(now - _LATE_S, self._free_at) + nbytes / self._rate
        if self._free_at - now > _SLACK_S:
            await asyncio.sleep(self._free_at - now)


async def _pump(
    source: socket.socket, sink: socket.socket, link: _Direction, delay_s: float
) -> None:
    loop = asyncio.get_running_loop()
    flying: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def land() -> None:
        while True:
            due, data = await flying.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            await loop.sock_sendall(sink, data)

    async with asyncio.TaskGroup() as group:
        group.create_task(land())
        data = b"-"
        while data:
            data = await loop.sock_recv(source, PIECE)
            await link.pass_through(len(data))
            flying.put_nowait((loop.time() + delay_s, data))


async def _serve(pipe: Connection, target: tuple[str, int], rate: float, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    there, back = _Direction(rate), _Direction(rate)

    async def carry(near: socket.socket) -> None:
        with near, socket.socket() as far:
            for end in (near, far):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(far, target)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(near, far, there, delay_s))
                group.create_task(_pump(far, near, back, delay_s))

    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        listener.setblocking(False)
        pipe.send(listener.getsockname()[1])
        async with asyncio.TaskGroup() as group:
            while True:
                near, _ = await loop.sock_accept(listener)
                group.create_task(carry(near))


def _run(pipe: Connection, target: tuple[str, int], rate: float, delay_s: float) -> None:
    uvloop.run(_serve(pipe, target, rate, delay_s))


class Link:
    """A link to `target` (`tcp:host:port`); a context manager. `address` is its near end."""

    def __init__(self, target: str, *, rate: float, delay_s: float) -> None:
        _, host, port = target.split(":")
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, (host, int(port)), rate, delay_s)
        self._process = context.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        self.address = f"tcp:127.0.0.1:{self._pipe.recv()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()
