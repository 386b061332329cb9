"""`aiomigrate serve`: a service for the stored VMs of a directory, until a signal ends it.

Under systemd its unix socket is the unit's, and the manager is told when it is ready, what it does
and that it is ending.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aiomigrate.cli.output import Output, open_output
from aiomigrate.cli.receive import DISK_S
from aiomigrate.cli.running import Settings, attempting, load_kernels
from aiomigrate.cli.status import ExitStatus
from aiomigrate.cli.systemd import notify, passed_socket

if TYPE_CHECKING:
    import socket

    from aiomigrate.api import Service

__all__ = ["Doors", "run"]


@dataclass(frozen=True, slots=True)
class Doors:
    """Where to listen."""

    api_socket: str
    listen: str | None
    """A tcp address ..."""
    tls_dir: str | None
    """... with TLS of these files ..."""
    insecure: bool
    """... or known to be without."""


def run(doors: Doors, vms: str, journal: str | None, settings: Settings) -> ExitStatus:
    """Serve."""
    replace(settings, verbosity=settings.verbosity + 1).configure_logs()
    output = open_output(settings.progress, "serve")
    with attempting(output, settings) as attempt, ExitStack() as stack:
        load_kernels()
        import uvloop

        from aiomigrate import Deadlines, ReceiveOptions, SendOptions, UsageError
        from aiomigrate.api import Service, open_tcp

        if doors.tls_dir is not None and doors.listen is None:
            raise UsageError("--tls-dir is for --listen, and there is none")
        if not os.path.isdir(vms):
            raise UsageError(f"{vms}: no such directory")
        deadlines = Deadlines(embedder_s=DISK_S)
        service = Service(
            stored=os.path.abspath(vms),
            sending=SendOptions(journal=journal, deadlines=deadlines),
            receiving=ReceiveOptions(journal=journal, deadlines=deadlines),
        )
        listeners = [stack.enter_context(_open(doors.api_socket))]
        if doors.listen is not None:
            listeners.append(stack.enter_context(open_tcp(doors.listen)))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(service, listeners, doors, output))
    return attempt.status


@contextmanager
def _open(path: str) -> "Iterator[socket.socket]":
    """The unit's socket, if systemd started us, else one of our own. UsageError."""
    from aiomigrate import UsageError
    from aiomigrate.api import open_unix

    passed = passed_socket()
    if passed is None:
        with open_unix(path) as listener:
            yield listener
        return
    with passed:
        if passed.getsockname() != path:
            raise UsageError(f"the service manager listens at {_address(passed)}, not at {path}")
        yield passed


async def _serve(
    service: "Service", listeners: "list[socket.socket]", doors: Doors, output: Output
) -> None:
    from aiomigrate.api import serve

    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ending.set)
    serving = serve(service, *listeners, tls_dir=doors.tls_dir, insecure=doors.insecure)
    async with serving, asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(_tell_status(service))
        for listener in listeners:
            output.tell("listening", address=_address(listener))
        notify("READY=1")
        await ending.wait()
        telling.cancel()
        what = "ending: migrations are cancelled, or waited for where a VM is changing hands"
        notify(f"STOPPING=1\nSTATUS={what}")
        output.say(what)


async def _tell_status(service: "Service") -> None:
    """Tell the service manager how many migrations run, whenever that changes."""
    told = -1
    with service.bus.listen() as listener:
        while True:
            running = sum(not entry.over.is_set() for entry in service.migrations)
            if running != told:
                told = running
                notify(f"STATUS=migrations that run: {running}")
            await listener.take()


def _address(listener: "socket.socket") -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"
