"""A machine that begins before its memory has come: what takes one from `offload restore
--on-demand`, or from Cloud Hypervisor's own daemon.

The engine has no destination for that. This one takes a single migration from a single source,
by descriptor, and serves its main connection request by request; `migrate` is how it is done with
the engine.
"""

from __future__ import annotations

import asyncio

from aiomigrate import Deadlines, Extension, Limits, MigrationFailed, VmConfig
from aiomigrate.passed_memory import PassedMemory
from aiomigrate.protocol import (
    ROLE_BYTES,
    AbandonReceived,
    CompleteReceived,
    ConfigReceived,
    DestinationMain,
    Event,
    MemoryFdReceived,
    RemoteProtocolError,
    Role,
    StartReceived,
    StateReceived,
)
from aiomigrate.requests import read_request
from aiomigrate.tasks import outlive
from aiomigrate.tiny_vmm.devices import Output
from aiomigrate.tiny_vmm.pager import Pager
from aiomigrate.tiny_vmm.vmm import Vm
from aiomigrate.transport import Connection, Listener

__all__ = ["restore_on_demand"]


async def restore_on_demand(listener: Listener, output: Output) -> Vm:
    """Take a machine, whose memory comes while it runs (`Vm.settled`), for the caller to close.

    MigrationFailed, or whatever else went wrong: then the source has it, having been told.
    """
    return await _Restoring(listener, output).run()


class _Restoring:
    def __init__(self, listener: Listener, output: Output) -> None:
        self._listener = listener
        self._output = output
        self._deadlines = Deadlines()
        self._passed = PassedMemory()
        self._vm: Vm | None = None

    async def run(self) -> Vm:
        connection = await self._listener.accept()
        core = DestinationMain(Limits(), willing=Extension.NONE)
        try:
            while True:
                async with asyncio.timeout(self._deadlines.idle_s):
                    event = await read_request(connection, core, self._deadlines)
                await self._take(connection, event)
                await connection.write(core.answer(ok=True), self._deadlines.pace)
                if isinstance(event, AbandonReceived):
                    raise MigrationFailed("the source abandoned the migration")
                if isinstance(event, CompleteReceived) and self._vm is not None:
                    return self._vm
        except BaseException as error:
            if self._vm is not None:
                await outlive(self._vm.close())  # before the source is told that it may resume
            reply = error.reply if isinstance(error, RemoteProtocolError) else b""
            if isinstance(error, Exception) and not core.between_requests:
                reply = reply or core.answer(ok=False)
            if reply:
                await outlive(self._refuse(connection, reply))
            raise
        finally:
            connection.close()
            self._passed.close()

    async def _refuse(self, connection: Connection, reply: bytes) -> None:
        await connection.write(reply, self._deadlines.pace)
        await connection.close_lingering(self._deadlines.linger_s)

    async def _take(self, connection: Connection, event: Event) -> None:
        match event:
            case StartReceived() | AbandonReceived():
                pass
            case MemoryFdReceived(slot=slot):
                (fd,) = connection.take_descriptors(1)
                self._passed.add(slot, fd)
            case ConfigReceived(payload=payload):
                config = VmConfig.parse(payload)
                self._vm = Vm(config, self._output, self._passed.check(config.memory_map)[0])
            case StateReceived(payload=payload) if self._vm is not None:
                # From here on its memory is touched.
                pager = Pager(self._vm.ram, await self._fault_connection(), self._deadlines)
                self._vm.page_with(pager)
                self._vm.restore(payload)
            case CompleteReceived(paused=paused) if self._vm is not None:
                if not paused:
                    self._vm.resume()
            case _:
                raise MigrationFailed("memory is to come by descriptor, and nothing else")

    async def _fault_connection(self) -> Connection:
        """The source has opened it before it sent State."""
        within = self._deadlines.header_s
        async with asyncio.timeout(within):
            connection = await self._listener.accept()
            try:
                role = await connection.read_exactly(ROLE_BYTES, rest_within=within)
                if int.from_bytes(role, "little") != Role.FAULT:
                    raise MigrationFailed("what connected is no fault connection")
            except BaseException:
                connection.close()
                raise
        return connection
