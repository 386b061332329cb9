"""Receive into a VMM of your own: python examples/embed_destination.py tcp:HOST:PORT

Its memory is memfds, as for KVM: the engine reads from the socket straight into their mappings.
"""

import asyncio
import hashlib
import os
import sys

from aiomigrate import GuestMemory, VmConfig, make_memfds, receive


class TinyVmm:
    """An aiomigrate.Destination."""

    def __init__(self) -> None:
        self.files: dict[int, int] = {}

    async def configure(self, config: VmConfig, source: str) -> GuestMemory:
        """Memory for each slot, all zeros. This VMM would register it with KVM here."""
        self.files = make_memfds(config)
        self.memory = GuestMemory.over_files(config.memory_map, self.files, writable=True)
        return self.memory

    async def restore(self, state: bytes) -> None:
        """All memory is here: make vCPUs and devices of their state."""
        self.memory.close()  # our mapping; KVM has the memfds

    async def resume(self) -> None:
        """Run. Until this returns, the source is not told."""
        self.report("runs")

    async def keep_paused(self) -> None:
        """The source sent it paused."""
        self.report("is paused")

    async def confirmed(self) -> None:
        """The source has ended its VM."""

    async def discard(self, reason: BaseException) -> None:
        """It failed before the VM was ours."""
        print(f"discarded: {reason}", flush=True)

    def report(self, state: str) -> None:
        for slot, fd in self.files.items():
            print(slot, hashlib.sha256(os.pread(fd, os.fstat(fd).st_size, 0)).hexdigest())
        print(f"the VM {state}", flush=True)


async def main() -> None:
    async with receive(TinyVmm(), sys.argv[1]) as migration:
        print(f"listening on {migration.address}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
