"""Asking a destination whether it would take a VM, without giving it one.

Start and Config are sent, Abandon follows: the destination has read the whole configuration, built
its memory map and looked whether there is room, and throws that away again. It costs the
destination its wait: a stock Cloud Hypervisor stops listening after an abandoned migration, and so
does `receive`.
"""

import asyncio

from aiomigrate.credentials import source_identity
from aiomigrate.embedding import Source
from aiomigrate.errors import MigrationError, MigrationFailed, UsageError
from aiomigrate.executor import JobExecutor
from aiomigrate.lane import Shared
from aiomigrate.main_connection import MainConnection
from aiomigrate.options import SendOptions
from aiomigrate.progress import Tracker
from aiomigrate.protocol import Extension, ProtocolError
from aiomigrate.tasks import outlive, root_cause
from aiomigrate.transport import (
    Address,
    AddressError,
    Connection,
    TransportError,
    connect,
    parse_address,
)

__all__ = ["check"]


async def check(source: Source, address: str, options: SendOptions | None = None) -> None:
    """Have the destination at `address` accept the Config of `source`, then abandon.

    Neither pauses the guest nor reads its memory. Raises UsageError for an address or a `tls_dir`
    that cannot be meant, MigrationFailed if the destination cannot be reached or refuses.
    """
    options = options or SendOptions()
    try:
        where = parse_address(address)
    except AddressError as error:
        raise UsageError(str(error)) from None
    try:
        await _ask(source, where, options)
    except UsageError:
        raise
    except Exception as error:
        cause = root_cause(error)
        match cause:
            case MigrationError():
                raise cause from None
            case TransportError() | ProtocolError():
                raise MigrationFailed(str(cause)) from cause
            case _:
                raise MigrationFailed(f"source: {cause!r}") from cause


async def _ask(source: Source, address: Address, options: SendOptions) -> None:
    identity = await source_identity(options.tls_dir, address)
    try:
        within = options.deadlines.connect_s
        connection = await connect(address, within=within, identity=identity)
        await _ask_at(connection, source, options)
    finally:
        if identity is not None:
            identity.close()


async def _ask_at(connection: Connection, source: Source, options: SendOptions) -> None:
    deadlines = options.deadlines
    main = MainConnection(connection, Shared(source.memory, Tracker(), options))
    try:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(main.read_answers())
            # More is not offered: it would only have to be kept to.
            offer = options.extensions & Extension.GUEST_DATA
            await main.request("Start", lambda: main.main.start(offer))
            async with asyncio.timeout(deadlines.embedder_s):
                config = await source.config()
            with JobExecutor() as jobs:
                holds = await jobs.run(source.memory.held_bytes)
            await main.request("Config", lambda: main.main.config(len(config), holds), config)
            reading.cancel()
    finally:
        await outlive(main.abandon())
