"""A stored VM whose memory is given by descriptor: loaded into memfds, or served into them later.

For `SendOptions.local`. Each mapping has a memfd of its own, in which it begins at its
`file_offset`, as Cloud Hypervisor's offload daemon makes them. They are sealed against being cut or
grown, so that whoever maps them may touch them.
"""

import fcntl
import os
from typing import Self

from aiomigrate.copying import load_memory
from aiomigrate.executor import WORKERS, JobExecutor
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.stored import StoredVm
from aiomigrate.serving import PageServer
from aiomigrate.stored import StoredSource

__all__ = ["LoadedSource", "OnDemandSource"]

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class LoadedSource(StoredSource):
    """A stored VM that is in memory once the context has been entered, read by a number of threads,
    `workers`.

    What `StoredSource` raises; StoredVmError, too, for memory that does not fit its checksum.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        resume: bool = False,
        force: bool = False,
        workers: int = WORKERS,
    ) -> None:
        super().__init__(path, resume=resume, force=force)
        self._executor = JobExecutor(workers)
        self._fds: dict[int, int] = {}
        self._loaded_bytes = 0

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            await self._fill()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    def _map(self, vm: StoredVm) -> GuestMemory:
        memory_map = vm.config.memory_map
        try:
            for mapping in memory_map.mappings:
                fd = os.memfd_create(
                    f"offload-slot-{mapping.slot}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
                )
                self._fds[mapping.slot] = fd
                os.ftruncate(fd, mapping.file_offset + mapping.size)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return GuestMemory.over_files(
                memory_map, self._fds, writable=False, offsets=memory_map.file_offsets
            )
        except BaseException:
            self._close_descriptors()
            raise

    async def _fill(self) -> None:
        """Have the memory in place before anybody is asked to take it."""
        await load_memory(self.vm, self._fds, self._executor, self._count)

    def _count(self, copied: int) -> None:
        self._loaded_bytes += copied

    @property
    def given_bytes(self) -> int:
        """How much of the memory is in the memfds so far, without what is known to be zero."""
        return self._loaded_bytes

    async def _close(self, vm: StoredVm) -> None:
        await super()._close(vm)
        await self._executor.run(self._close_descriptors)

    def _close_descriptors(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])


class OnDemandSource(LoadedSource):
    """A stored VM that runs at its destination while its memory comes: see `OnDemand`."""

    pages: PageServer
    """Once the context has been entered."""

    async def _fill(self) -> None:
        self.pages = PageServer(self.vm, self._fds, self._executor)

    @property
    def given_bytes(self) -> int:
        """How much of the memory is in the memfds so far."""
        return self.pages.served_bytes
