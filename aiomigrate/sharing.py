"""Giving a guest's memory by descriptor, at the source: a MemoryFd a slot, and no Memory.

Both ends then have the same memory, so nothing is copied and holes stay holes. It also means that
what the destination wrote would be the source's guest's to find: a destination writes none before
it executes Complete, and from its Ok on the guest never runs at the source again.
"""

from aiomigrate.errors import MigrationFailed
from aiomigrate.main_connection import MainConnection
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import VmConfig

__all__ = ["share_memory"]


async def share_memory(main: MainConnection, memory: GuestMemory, config: VmConfig) -> None:
    """Pass the file of each slot of `config`, which has the slots of `memory`. MigrationFailed if
    that is not in files, or elsewhere in them, or is refused.
    """
    offsets = memory.map.file_offsets
    for slot, offset in config.memory_map.file_offsets.items():
        if offset != offsets[slot]:
            raise MigrationFailed(
                f"source: config has slot {slot} at {offset} of its file, its memory at "
                f"{offsets[slot]}"
            )
    try:
        files = memory.files()
    except ValueError as error:
        raise MigrationFailed(f"source: its memory cannot be passed: {error}") from error
    for slot, fd in files.items():
        await main.pass_memory(slot, fd)
