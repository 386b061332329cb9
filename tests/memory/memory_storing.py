"""A VM that is stored: its steps up to `sync`, or all of them, and what is in a directory then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import VmConfig
from aiomigrate.memory.ranges import make_table
from aiomigrate.memory.storing import StoredVmWriter

__all__ = ["MIB", "STATE", "ConfigMaker", "committed", "names", "write_vm"]

MIB = 1 << 20
STATE = b'{"snapshots":{}, "snapshot_data":null}'
ConfigMaker = Callable[..., bytes]


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def write_vm(writer: StoredVmWriter, config: VmConfig) -> GuestMemory:
    """All that comes before `sync`: Config, State and some memory."""
    memory = writer.configure(config)
    memory.populate_write(make_table([(4096, 1)]))
    writer.write_state(STATE)
    (partial,) = Path(writer.path).parent.glob(".vm.partial-*")
    with open(partial / "memory-7", "r+b") as file:
        file.write(b"high memory")
    return memory


def committed(target: Path, config: VmConfig) -> StoredVmWriter:
    writer = StoredVmWriter(target)
    write_vm(writer, config).close()
    writer.sync()
    writer.commit(True, "tcp:10.0.0.1:6000")
    return writer
