"""A program: one process whose event loop serves the faults of memory that it maps itself.

`python -m tests.engine.own_faults DIR MODE`: the stored VM in DIR is restored on demand into memfds
that are mapped here and registered with userfaultfd. A thread is the guest: it reads all memory, by
system calls, which release the GIL and fault in the kernel. The loop asks for each missing page on
a fault connection whose other end a PageServer on the same loop answers, in MODE `fill` with the
background pass beside it. Whatever touches that memory outside a system call of the guest waits
for ever. Prints the digest of what the guest has read.
"""

import asyncio
import ctypes
import fcntl
import hashlib
import mmap
import os
import socket
import struct
import sys
import threading

import numpy as np

from aiomigrate import Deadlines, JobExecutor, Limits, Mapping, PageServer, StoredVm
from aiomigrate.protocol import FaultSource
from aiomigrate.transport import Connection

PAGE = 4096
# linux/userfaultfd.h, and the system call's number on x86-64 and arm64.
_SYSCALL = {"x86_64": 323, "aarch64": 282}
_API, _REGISTER, _CONTINUE, _WAKE = 0xC018AA3F, 0xC020AA00, 0xC020AA07, 0x8010AA02
_MISSING_SHMEM, _MINOR_SHMEM = 1 << 5, 1 << 10
_MISSING, _MINOR = 1, 4
_libc = ctypes.CDLL(None, use_errno=True)


def open_userfaultfd() -> int:
    """A descriptor for faults of shared memory; OSError where the kernel or our rights lack it."""
    fd = _libc.syscall(_SYSCALL[os.uname().machine], os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    fcntl.ioctl(fd, _API, struct.pack("<QQQ", 0xAA, _MISSING_SHMEM | _MINOR_SHMEM, 0))
    return int(fd)


class Guest:
    """The mapped memory of a VM, and what is missing of it."""

    def __init__(self, mappings: tuple[Mapping, ...]) -> None:
        self.faults = open_userfaultfd()
        self.fds: dict[int, int] = {}
        self.memory: dict[int, mmap.mmap] = {}
        self.places: list[tuple[int, Mapping]] = []
        for mapping in mappings:
            fd = self.fds[mapping.slot] = os.memfd_create("guest")
            os.ftruncate(fd, mapping.file_offset + mapping.size)
            memory = mmap.mmap(fd, mapping.size, mmap.MAP_SHARED, offset=mapping.file_offset)
            self.memory[mapping.slot] = memory
            address = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
            self.places.append((address, mapping))
            registration = struct.pack("<QQQQ", address, mapping.size, _MISSING | _MINOR, 0)
            fcntl.ioctl(self.faults, _REGISTER, registration)

    def read_all(self) -> str:
        """Read every page, the last one first."""
        whole = hashlib.sha256()
        into = os.memfd_create("read")
        for _, mapping in self.places:
            memory = memoryview(self.memory[mapping.slot])
            for at in range(mapping.size - PAGE, -1, -PAGE):
                os.pwrite(into, memory[at : at + PAGE], 0)
                whole.update(os.pread(into, PAGE, 0))
        return whole.hexdigest()

    def take_faults(self) -> list[tuple[int, int]]:
        """(host address, gpa) of the pages that are waited for."""
        found: list[tuple[int, int]] = []
        while True:
            try:
                message = os.read(self.faults, 32)
            except BlockingIOError:
                return found
            (fault,) = struct.unpack_from("<Q", message, 16)
            fault -= fault % PAGE
            for address, mapping in self.places:
                if address <= fault < address + mapping.size:
                    found.append((fault, mapping.gpa + fault - address))

    def map_page(self, address: int) -> None:
        """Map a page that is in its memfd now."""
        try:
            fcntl.ioctl(self.faults, _CONTINUE, struct.pack("<QQQq", address, PAGE, 0, 0))
        except FileExistsError:
            fcntl.ioctl(self.faults, _WAKE, struct.pack("<QQ", address, PAGE))


async def restore(path: str, *, fills: bool) -> str:
    """Serve a guest that reads all its memory; the digest of that."""
    loop = asyncio.get_running_loop()
    vm = StoredVm.open(path)
    guest = Guest(vm.config.memory_map.mappings)
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    ours.setblocking(False)
    theirs.setblocking(False)
    missed = asyncio.Event()
    loop.add_reader(guest.faults, missed.set)

    async def ask() -> None:
        while True:
            await missed.wait()
            missed.clear()
            for address, gpa in guest.take_faults():
                await loop.sock_sendall(theirs, struct.pack("<H6xQQQ", 9, 16, gpa, PAGE))
                assert await loop.sock_recv(theirs, 16) == struct.pack("<H14x", 1)
                guest.map_page(address)

    core = FaultSource(Limits())
    core.open()
    with JobExecutor() as executor:
        server = PageServer(vm, guest.fds, executor)
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.answer(Connection(ours, "", ""), core, Deadlines()))
            asking = group.create_task(ask())
            if fills:
                group.create_task(server.fill())
            read: asyncio.Future[str] = loop.create_future()
            threading.Thread(
                target=lambda: loop.call_soon_threadsafe(read.set_result, guest.read_all()),
                daemon=True,
            ).start()
            digest = await read
            asking.cancel()
            theirs.close()
            await serving
    return digest


if __name__ == "__main__":
    print(asyncio.run(restore(sys.argv[1], fills=sys.argv[2] == "fill")))  # noqa: T201  # its result
