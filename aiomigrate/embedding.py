"""What a VMM gives to be migrated away or to receive: the protocols of embedding.

The engine calls these one at a time, each with a deadline (`Deadlines.embedder_s`): one that does
not return in time is cancelled, and has to end then. That and any exception ends the migration; on
the source's side before the commit point the guest then resumes where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # numba comes with these; whoever only embeds need not wait for it
    import numpy as np
    from numpy.typing import NDArray

    from aiomigrate.memory.guest import GuestMemory
    from aiomigrate.memory.map import VmConfig
    from aiomigrate.serving import PageServer

__all__ = [
    "CleanLog",
    "Destination",
    "DirtyLog",
    "OnDemand",
    "Recorded",
    "Source",
    "TakesMemory",
    "Throttled",
]


class DirtyLog(Protocol):
    """Which pages of 4096 bytes were written."""

    async def start(self) -> None:
        """Begin to log. Called before the first byte of memory is read."""
        ...

    async def collect(self) -> Sequence[NDArray[np.uint64]]:
        """Hand over what was written since the last call, and re-protect it.

        One bitmap a mapping, in the order of the memory map: shape (ceil(pages / 64),), dtype
        uint64, bit i of word w for page 64 * w + i. The arrays are the engine's from here on:
        nobody else writes to them any more, and it may.
        """
        ...

    async def stop(self) -> None:
        """End logging. Called once, however the migration ends."""
        ...


class CleanLog:
    """The dirty log of a guest that does not run: nothing is ever written."""

    async def start(self) -> None:
        """Nothing to begin."""

    async def collect(self) -> Sequence[NDArray[np.uint64]]:
        """No bitmaps: nothing is dirty."""
        return ()

    async def stop(self) -> None:
        """Nothing to end."""


class Source(Protocol):
    """A VM that is migrated away."""

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory, laid out as the Config says."""
        ...

    @property
    def dirty(self) -> DirtyLog:
        """What the guest and its devices write to it."""
        ...

    @property
    def resumes(self) -> bool:
        """Whether the destination is to run the guest (Complete) or to keep it paused."""
        ...

    async def config(self) -> bytes:
        """The VM's configuration, as Cloud Hypervisor's `VmMigrationConfig` JSON."""
        ...

    async def pause(self) -> None:
        """Stop the guest; it writes no memory afterwards."""
        ...

    async def capture(self) -> bytes:
        """The VM's state, as the snapshot tree's JSON. May write guest memory."""
        ...

    async def hand_over(self, destination: str) -> None:
        """Give up what both sides cannot hold (disk locks, network) to `destination`, which is its
        address; no guest memory changes.
        """
        ...

    async def take_back(self, reason: BaseException) -> None:
        """Undo `hand_over`: the destination does not have the VM, for `reason`."""
        ...

    async def resume(self) -> None:
        """Let the guest run on: `pause` was called and the migration failed.

        Called even if `take_back` failed. A guest that was paused before `pause` is to stay so:
        the embedder tells these apart.
        """
        ...

    async def release(self) -> None:
        """The destination has the VM: end it here."""
        ...

    async def lost(self, reason: BaseException) -> None:
        """The outcome is unknown, for `reason`: keep the guest paused and what `hand_over` gave up,
        given.
        """
        ...


class Destination(Protocol):
    """A VMM that receives a VM."""

    async def configure(self, config: VmConfig, source: str) -> GuestMemory:
        """Build the VM's memory, all zeros, as `config` wants it; `source` names the peer.

        The GuestMemory is the embedder's to close, from `restore` or `discard` on: the engine does
        not touch it any more then.
        """
        ...

    async def restore(self, state: bytes) -> None:
        """Build the VM from its state; all memory is in place. No guest instruction runs."""
        ...

    async def resume(self) -> None:
        """Run the guest. Raise GuestNotStarted only if no guest instruction has run."""
        ...

    async def keep_paused(self) -> None:
        """Own the guest without running it."""
        ...

    async def confirmed(self) -> None:
        """The source knows that the VM is here."""
        ...

    async def discard(self, reason: BaseException) -> None:
        """Throw away what was built, for `reason`; called at most once, at any point before the VM
        is owned.
        """
        ...


@runtime_checkable
class Recorded(Protocol):
    """What a Source or a Destination may offer besides, to be found again after a crash."""

    @property
    def vm_name(self) -> str:
        """What the journal is to call the VM here: its id, the path of its socket."""
        ...

    @property
    def vm_is_stored(self) -> bool:
        """Whether that is the absolute path of a stored VM's directory, which a destination makes
        appear exactly when it takes the VM over.
        """
        ...

    def identify(self, migration: str) -> None:
        """The migration's id, as the journals of both sides name it: before `capture` at a source,
        before `configure` or `adopt` at a destination.
        """
        ...


@runtime_checkable
class OnDemand(Protocol):
    """What a Source may offer besides, with `SendOptions.local`: files that are empty yet.

    They are filled while the guest runs at the destination, which asks for what it misses over a
    fault connection (Cloud Hypervisor's `memory_mode=postcopy`). The migration is over when it has
    all of them.
    """

    @property
    def pages(self) -> PageServer:
        """What writes pages into the files that are passed."""
        ...


@runtime_checkable
class TakesMemory(Protocol):
    """What a Destination may offer besides: memory that the source gives by descriptor.

    Over a unix socket a source can pass the files of its guest's memory instead of their content
    (`SendOptions.local`; Cloud Hypervisor's `local=on`). Both sides then have the same memory. The
    source's guest runs on in it until the State comes, and again if the migration fails: so nothing
    is written to it here before `resume` or `keep_paused`, and nothing after a `discard`.
    """

    async def adopt(self, config: VmConfig, source: str, fds: Mapping[int, int]) -> None:
        """Build the VM over the source's memory, in the place of `configure`.

        `fds` has a readable file for each slot of the map, checked to be long enough: the mapping
        begins at its `file_offset` there, and several can be in one file. `GuestMemory.over_files`
        maps them: `over_files(config.memory_map, fds, writable=True,
        offsets=config.memory_map.file_offsets)`. The descriptors are closed when this returns or
        fails: map or duplicate them. Who passed them can also cut the files, if they are not sealed
        against that: then touching the memory is a SIGBUS, and reading the file is not.
        """
        ...


@runtime_checkable
class Throttled(Protocol):
    """What a Source may offer besides: a guest that can be slowed down until it converges."""

    async def throttle(self, percent: int) -> None:
        """Let the guest's processors run only 100 - `percent` of the time; 0: as before.

        1 to 99 while memory is sent, which is going on meanwhile (0 if the cap was lowered to
        that). Called with 0 at the end if it was called at all: before the guest resumes here, or
        once the destination has it. If it raises the migration fails: without it the guest would
        not converge.
        """
        ...
