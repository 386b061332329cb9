"""What a migration's connections show of themselves: the `tls_dir` of its options, read.

It is read in a thread, before anything is sent; a file that is of no use is a UsageError.
"""

import os
import ssl
from collections.abc import Callable

from aiomigrate.errors import UsageError
from aiomigrate.executor import JobExecutor
from aiomigrate.transport import (
    Address,
    Identity,
    TcpAddress,
    TlsFilesError,
    destination_context,
    source_context,
)

__all__ = ["destination_identity", "read_context", "source_identity"]

_Directory = str | os.PathLike[str]


async def source_identity(tls_dir: _Directory | None, address: Address) -> Identity | None:
    """What a source shows at `address`, whose host must prove that it is that; the caller closes
    it. UsageError.
    """
    if tls_dir is None:
        return None
    host = _host_of(address)
    return Identity(await read_context(source_context, tls_dir), host)


async def destination_identity(tls_dir: _Directory | None, address: Address) -> Identity | None:
    """What a destination shows; the caller closes it. UsageError."""
    if tls_dir is None:
        return None
    _host_of(address)
    return Identity(await read_context(destination_context, tls_dir))


def _host_of(address: Address) -> str:
    if not isinstance(address, TcpAddress):
        raise UsageError(f"{address}: TLS is for tcp addresses, a unix socket has none")
    return address.host


async def read_context(
    load: Callable[[_Directory], ssl.SSLContext], directory: _Directory
) -> ssl.SSLContext:
    """`load` it (`source_context`, `destination_context`) in a thread. UsageError."""
    with JobExecutor() as jobs:
        try:
            return await jobs.run(load, directory)
        except TlsFilesError as error:
            raise UsageError(str(error)) from None
