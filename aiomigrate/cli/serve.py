"""`aiomigrate serve`: a service for the stored VMs of a directory, until a signal ends it."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from aiomigrate.cli.output import Output, open_output
from aiomigrate.cli.receive import DISK_S
from aiomigrate.cli.running import Settings, attempting, load_kernels
from aiomigrate.cli.status import ExitStatus

if TYPE_CHECKING:
    import socket

    from aiomigrate.api import Service

__all__ = ["run"]


def run(
    api_socket: str,
    vms: str,
    listen: tuple[str | None, bool],
    journal: str | None,
    settings: Settings,
) -> ExitStatus:
    """Serve. `listen`: a tcp address, and whether that it is insecure is known."""
    replace(settings, verbosity=settings.verbosity + 1).configure_logs()
    output = open_output(settings.progress, "serve")
    with attempting(output, settings) as attempt, ExitStack() as stack:
        load_kernels()
        import uvloop

        from aiomigrate import Deadlines, ReceiveOptions, SendOptions, UsageError
        from aiomigrate.api import Service, open_tcp, open_unix

        if not os.path.isdir(vms):
            raise UsageError(f"{vms}: no such directory")
        deadlines = Deadlines(embedder_s=DISK_S)
        service = Service(
            stored=os.path.abspath(vms),
            sending=SendOptions(journal=journal, deadlines=deadlines),
            receiving=ReceiveOptions(journal=journal, deadlines=deadlines),
        )
        listeners = [stack.enter_context(open_unix(api_socket))]
        address, insecure = listen
        if address is not None:
            if not insecure:
                raise UsageError(f"{address}: whoever reaches it may do everything: --insecure")
            listeners.append(stack.enter_context(open_tcp(address)))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(service, listeners, output))
    return attempt.status


async def _serve(service: "Service", listeners: "list[socket.socket]", output: Output) -> None:
    from aiomigrate.api import serve

    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ending.set)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serve(service, *listeners))
        for listener in listeners:
            output.tell("listening", address=_address(listener))
        await ending.wait()
        output.say("ending: migrations are cancelled, or waited for where a VM is changing hands")


def _address(listener: "socket.socket") -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"
