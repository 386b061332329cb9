"""Where `offload snapshot` listens: at a path that it claims, or on systemd's socket.

As Cloud Hypervisor's reference daemon does, and so that the two exclude each other: whoever holds a
write lock on `<path>.lock` (an open file description lock; the file stays) may remove the socket
file that an earlier daemon left behind when it was killed.
"""

import fcntl
import os
import stat
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

from aiomigrate.cli.systemd import passed_socket

if TYPE_CHECKING:
    from aiomigrate.transport import Listener

__all__ = ["claimed", "listening"]

_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock of 64-bit Linux (fcntl(2)): type, whence, start, length, pid."""


@contextmanager
def claimed(path: str) -> Iterator[None]:
    """Hold the lock of a socket's path, where no stale socket file is left. UsageError if another
    daemon has it.
    """
    from aiomigrate.errors import UsageError

    fd = os.open(f"{path}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except (BlockingIOError, PermissionError) as error:
            raise UsageError(f"unix:{path}: another offload daemon listens there") from error
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        yield
    finally:
        os.close(fd)


@asynccontextmanager
async def listening(address: str) -> "AsyncIterator[Listener]":
    """Listen at `unix:PATH`, or on the socket that the service manager passed, which is to be
    there. UsageError, TransportError.
    """
    from aiomigrate.errors import UsageError
    from aiomigrate.transport import Listener, UnixAddress, listen

    passed = passed_socket()
    if passed is None:
        with claimed(path := _path_of(address)):
            listener = await listen(UnixAddress(path))
            try:
                yield listener
            finally:
                listener.close()
        return
    try:
        listener = Listener.of_socket(passed)
        if str(listener.address) != address:
            raise UsageError(f"the service manager listens at {listener.address}, not at {address}")
        yield listener
    finally:
        passed.close()


def _path_of(address: str) -> str:
    from aiomigrate.errors import UsageError
    from aiomigrate.transport import AddressError, UnixAddress, parse_address

    try:
        found = parse_address(address, listening=True)
    except AddressError as error:
        raise UsageError(str(error)) from None
    if not isinstance(found, UnixAddress):
        raise UsageError(f"{address}: descriptors are passed over unix sockets only: unix:PATH")
    return found.path
