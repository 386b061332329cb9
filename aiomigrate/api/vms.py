"""What a service needs of a VM: an embedder's, or a stored one (`api.stored`).

A `Vm` is a place for one virtual machine, as a Cloud Hypervisor process is: there is one in it, or
not yet, or no more. Snapshots and restoring need no more than this: `api.copying` makes them of
`source` and `destination`.
"""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from aiomigrate import Destination, Source

__all__ = ["Refusal", "Vm", "VmInfo", "VmState"]


class VmState(StrEnum):
    """Cloud Hypervisor's states of a VM, as far as they matter here."""

    RUNNING = "Running"
    """The guest runs."""
    PAUSED = "Paused"
    """The guest is there, and does not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmInfo:
    """A virtual machine, as `vm.info` tells it."""

    config: Mapping[str, Any]
    """Cloud Hypervisor's VmConfig; goes into JSON as it is."""
    state: VmState
    """Whether the guest runs."""
    memory_actual_size: int
    """RAM in bytes."""


class Refusal(Exception):
    """What was asked for cannot be done now, with the VM as it is. The message is a sentence."""


@runtime_checkable
class Vm(Protocol):
    """A place for a virtual machine. The service calls one of these at a time."""

    async def info(self) -> VmInfo | None:
        """The virtual machine that is there, or None."""
        ...

    async def pause(self) -> None:
        """Stop the guest; it is there, and runs."""
        ...

    async def resume(self) -> None:
        """Let the guest run; it is there, and is paused."""
        ...

    def source(self) -> AbstractAsyncContextManager[Source]:
        """What is there, to be sent; entered for the time of the migration."""
        ...

    def destination(self) -> AbstractAsyncContextManager[Destination]:
        """Where a VM can come to, since there is none; entered for the time of the migration."""
        ...
