"""VMs for the engine's tests: stored ones of any shape, a running one whose writes the test makes,
and a place where one arrives. Guest memory is compared by digests that are made here, from the
memfds, and not by the engine.
"""

import asyncio
import hashlib
import inspect
import json
import mmap
import os
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

import aiomigrate
import aiomigrate.migration  # its kernels are loaded before a loop runs
from aiomigrate import GuestMemory, ReceiveOptions, Report, SendOptions, VmConfig
from tests.support.image import PAGE, Mapping

__all__ = [
    "MIB",
    "ONE",
    "STATE_JSON",
    "Bitmap",
    "Guest",
    "Handing",
    "Landing",
    "config_of",
    "file_bytes",
    "migrate",
    "store_vm",
]

MIB = 1 << 20
STATE_JSON = b'{"snapshots": {"cpu": {"registers": [1, 2, 3]}}, "snapshot_data": null}'
ONE = (Mapping(0, 0, 4 * MIB, "mem0", virtio_mem=False, file_offset=0),)
Bitmap = NDArray[np.uint64]
Action = Callable[[], object]


def config_of(mappings: Iterable[Mapping], file_zones: Iterable[str] = ()) -> bytes:
    """A Config with these mappings, as Cloud Hypervisor lays it out."""
    mappings, file_zones = tuple(mappings), set(file_zones)
    zones = [
        {"id": zone, "size": 0} | ({"file": "/dev/shm/zone"} if zone in file_zones else {})  # noqa: S108
        for zone in sorted({mapping.zone_id for mapping in mappings})
    ]
    document = {
        "vm_config": {"memory": {"size": 0, "zones": zones}},
        "memory_manager_data": {"guest_ram_mappings": [vars(mapping) for mapping in mappings]},
    }
    return json.dumps(document).encode()


def store_vm(
    path: Path, mappings: Iterable[Mapping], *, file_zones: Iterable[str] = (), seed: int = 1
) -> Path:
    """A stored VM as the offload daemon writes it, without a manifest.

    Each MiB of memory is, by turns, random data, a hole, and pages of random data and of zeros.
    """
    mappings = tuple(mappings)
    path.mkdir(mode=0o700)
    (path / "migration_config.json").write_bytes(config_of(mappings, file_zones))
    (path / "state.json").write_bytes(STATE_JSON)
    chance = random.Random(seed)
    for mapping in mappings:
        with (path / f"memory-{mapping.slot}").open("xb") as file:
            file.truncate(mapping.size)
            for at in range(0, mapping.size, MIB):
                block = bytearray(chance.randbytes(min(MIB, mapping.size - at)))
                if at // MIB % 3 == 1:
                    continue
                if at // MIB % 3 == 2:
                    for page in range(0, len(block), 2 * PAGE):
                        block[page : page + PAGE] = bytes(PAGE)
                file.seek(at)
                file.write(block)
    return path


def file_bytes(directory: Path, *, whole: Iterable[int] = ()) -> int:
    """Bytes of the memory files that are not holes; all bytes of the slots in `whole`."""
    total = 0
    for file in directory.glob("memory-*"):
        size = file.stat().st_size
        if int(file.name.removeprefix("memory-")) in whole:
            total += size
            continue
        fd = os.open(file, os.O_RDONLY)
        try:
            at = 0
            while at < size:
                try:
                    begin = os.lseek(fd, at, os.SEEK_DATA)
                except OSError:
                    break
                at = os.lseek(fd, begin, os.SEEK_HOLE)
                total += at - begin
        finally:
            os.close(fd)
    return total


async def migrate(
    source: aiomigrate.Source,
    destination: aiomigrate.Destination,
    *,
    sending: SendOptions | None = None,
    receiving: ReceiveOptions | None = None,
) -> tuple[Report | BaseException, Report | BaseException]:
    """Migrate over loopback: the source's outcome and the destination's."""
    async with (
        aiomigrate.receive(destination, "tcp:127.0.0.1:0", receiving) as reception,
        aiomigrate.send(source, str(reception.address), sending) as migration,
    ):
        sent, received = await asyncio.gather(
            migration.result(), reception.result(), return_exceptions=True
        )
    return sent, received


class _Hooks:
    """Notes every call by name; `script[name]` is called first and may write, wait or raise."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.script: dict[str, Action] = {}
        self._news = asyncio.Event()

    async def called(self, name: str) -> None:
        """Wait, without limit, until it has been called."""
        while name not in self.calls:
            await self._news.wait()

    async def _hook(self, name: str) -> None:
        self.calls.append(name)
        self._news.set()
        self._news = asyncio.Event()
        action = self.script.get(name)
        if action is not None:
            result = action()
            if inspect.isawaitable(result):
                await _of(result)


async def _of(awaitable: Awaitable[object]) -> None:
    await awaitable


class Handing(_Hooks):
    """The hooks of a source that has a running VM, all but its memory and its dirty log."""

    def __init__(self, config: bytes, *, resumes: bool) -> None:
        super().__init__()
        self.config_bytes = config
        self.resumes = resumes
        self.running = True
        self.ended = False
        self.reasons: list[BaseException] = []
        self.destination = ""

    async def config(self) -> bytes:
        await self._hook("config")
        return self.config_bytes

    async def pause(self) -> None:
        await self._hook("pause")
        self.running = False

    async def capture(self) -> bytes:
        await self._hook("capture")
        return STATE_JSON

    async def hand_over(self, destination: str) -> None:
        self.destination = destination
        await self._hook("hand_over")

    async def take_back(self, reason: BaseException) -> None:
        self.reasons.append(reason)
        await self._hook("take_back")

    async def resume(self) -> None:
        await self._hook("resume")
        self.running = True

    async def release(self) -> None:
        await self._hook("release")
        self.ended = True

    async def lost(self, reason: BaseException) -> None:
        self.reasons.append(reason)
        await self._hook("lost")


class _Memfds:
    """A memfd a slot, seen by the test through mappings of its own."""

    def __init__(self) -> None:
        self.fds: dict[int, int] = {}
        self.views: dict[int, mmap.mmap] = {}

    def make(self, slot: int, size: int) -> None:
        fd = self.fds[slot] = os.memfd_create(f"guest-{slot}", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        self.views[slot] = mmap.mmap(fd, size)

    def digest(self) -> dict[int, str]:
        return {
            slot: hashlib.blake2b(view, digest_size=16).hexdigest()
            for slot, view in self.views.items()
        }

    def close(self) -> None:
        for view in self.views.values():
            view.close()
        for fd in self.fds.values():
            os.close(fd)
        self.views.clear()
        self.fds.clear()


class _Log:
    """The guest's dirty log: bitmaps that are handed over by swapping them."""

    def __init__(self, guest: "Guest") -> None:
        self._guest = guest
        self.on = False
        self.bitmaps: list[Bitmap] = self.fresh()

    def fresh(self) -> list[Bitmap]:
        sizes = [mapping.size for mapping in self._guest.mappings]
        return [np.zeros(-(-size // PAGE // 64), np.uint64) for size in sizes]

    async def start(self) -> None:
        await self._guest._hook("start")
        self.on = True

    async def collect(self) -> Sequence[Bitmap]:
        guest = self._guest
        guest.collects += 1
        await guest._hook(f"collect {guest.collects}")
        handed, self.bitmaps = self.bitmaps, self.fresh()
        # What the guest writes from here on is in the next bitmaps, and may be read with these.
        if action := guest.script.get(f"collected {guest.collects}"):
            action()
        return guest.tamper(handed)

    async def stop(self) -> None:
        await self._guest._hook("stop")
        self.on = False


class Guest(Handing):
    """A running VM with a dirty log. A context manager: it holds memfds, the first half of each
    random data unless it is not to be `filled`.

    Hooks by name: config, start, "collect N" (from 1), pause, capture, hand_over, take_back,
    resume, release, lost, stop.
    """

    def __init__(
        self,
        mappings: Sequence[Mapping] = ONE,
        *,
        resumes: bool = True,
        file_zones: Iterable[str] = (),
        buffers: bool = False,
        filled: bool = True,
    ) -> None:
        super().__init__(config_of(mappings, file_zones), resumes=resumes)
        self.mappings = tuple(sorted(mappings, key=lambda mapping: mapping.gpa))
        self.collects = 0
        self._filled = filled
        self.tamper: Callable[[list[Bitmap]], Sequence[Bitmap]] = lambda bitmaps: bitmaps
        self.at_pause: dict[int, str] = {}
        self._memfds = _Memfds()
        chance = random.Random(7)
        for mapping in self.mappings:
            self._memfds.make(mapping.slot, mapping.size)
            if filled:
                half = mapping.size // 2
                self._memfds.views[mapping.slot][:half] = chance.randbytes(half)
        config = VmConfig.parse(self.config_bytes)
        if buffers:
            self.memory = GuestMemory.over_buffers(config.memory_map, self._memfds.views)
        else:
            self.memory = GuestMemory.over_files(
                config.memory_map,
                self._memfds.fds,
                writable=False,
                file_zones=config.file_zones,
            )
        self.dirty = _Log(self)

    def write(self, gpa: int, data: bytes) -> None:
        """The guest writes: it runs, or its devices do while they are captured."""
        index, mapping = next(
            (index, mapping)
            for index, mapping in enumerate(self.mappings)
            if mapping.gpa <= gpa < mapping.gpa + mapping.size
        )
        at = gpa - mapping.gpa
        self._memfds.views[mapping.slot][at : at + len(data)] = data
        if self.dirty.on:
            for page in range(at // PAGE, (at + len(data) - 1) // PAGE + 1):
                self.dirty.bitmaps[index][page // 64] |= np.uint64(1 << page % 64)

    def digest(self) -> dict[int, str]:
        return self._memfds.digest()

    async def hand_over(self, destination: str) -> None:
        if self._filled:  # reading the whole of a sparse guest would fill it
            self.at_pause = self.digest()
        await super().hand_over(destination)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.close()
        self._memfds.close()


class Landing(_Hooks):
    """A VMM that takes a VM. A context manager: it holds memfds.

    Hooks by name: configure, restore, resume, keep_paused, confirmed, discard. Memory of zones that
    are backed by a file begins with `garbage`.
    """

    def __init__(self, garbage: bytes = b"\xa5") -> None:
        super().__init__()
        self.config = b""
        self.state = b""
        self.source = ""
        self.runs: bool | None = None
        self.discarded: list[BaseException] = []
        self.memory: GuestMemory | None = None
        self._garbage = garbage
        self._memfds = _Memfds()

    def digest(self) -> dict[int, str]:
        return self._memfds.digest()

    def view(self, slot: int) -> mmap.mmap:
        return self._memfds.views[slot]

    async def configure(self, config: VmConfig, source: str) -> GuestMemory:
        await self._hook("configure")
        self.config, self.source = config.raw, source
        for mapping in config.memory_map.mappings:
            self._memfds.make(mapping.slot, mapping.size)
            if mapping.zone_id in config.file_zones:
                self._memfds.views[mapping.slot][:] = self._garbage * mapping.size
        self.memory = GuestMemory.over_files(
            config.memory_map, self._memfds.fds, writable=True, file_zones=config.file_zones
        )
        return self.memory

    async def restore(self, state: bytes) -> None:
        await self._hook("restore")
        self.state = state

    async def resume(self) -> None:
        await self._hook("resume")
        self.runs = True

    async def keep_paused(self) -> None:
        await self._hook("keep_paused")
        self.runs = False

    async def confirmed(self) -> None:
        await self._hook("confirmed")

    async def discard(self, reason: BaseException) -> None:
        self.discarded.append(reason)
        await self._hook("discard")
        if self.memory is not None:
            await self.memory.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.memory is not None:
            self.memory.close()
        self._memfds.close()
