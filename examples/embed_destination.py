"""Receive into a VMM of your own: python examples/embed_destination.py tcp:HOST:PORT

The guest's memory is memfds, as a VMM would hand them to KVM. Nothing is copied on the way: the
engine reads from the socket straight into the mappings.
"""

import asyncio
import hashlib
import os
import sys

import aiomigrate


class TinyVmm:
    """An aiomigrate.Destination."""

    def __init__(self) -> None:
        self.files: dict[int, int] = {}

    async def configure(self, config: aiomigrate.VmConfig, source: str) -> aiomigrate.GuestMemory:
        """Memory for each slot, all zeros. This VMM would register it with KVM here."""
        print(f"{source} sends a VM of {config.memory_map.total_bytes} bytes", flush=True)
        for mapping in config.memory_map.mappings:
            self.files[mapping.slot] = os.memfd_create(f"slot-{mapping.slot}")
            os.ftruncate(self.files[mapping.slot], mapping.size)
        return aiomigrate.GuestMemory.over_files(config.memory_map, self.files, writable=True)

    async def restore(self, state: bytes) -> None:
        """All memory is here: make vCPUs and devices of their state."""
        print(f"its state has {len(state)} bytes", flush=True)

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

    def report(self, state: str) -> None:  # noqa: D102
        for slot, fd in self.files.items():
            print(slot, hashlib.sha256(os.pread(fd, os.fstat(fd).st_size, 0)).hexdigest())
        print(f"the VM {state}", flush=True)


async def main() -> None:  # noqa: D103
    async with aiomigrate.receive(TinyVmm(), sys.argv[1]) as migration:
        print(f"listening on {migration.address}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
