"""KVM's dirty log: which pages of a VM its vCPUs wrote. Facts from Documentation/virt/kvm/api.rst.

A memory slot with KVM_MEM_LOG_DIRTY_PAGES is write-protected, and a vCPU's write to a protected
page sets its bit. KVM_GET_DIRTY_LOG copies a slot's bitmap out and, left to itself, clears and
re-protects all of it under KVM's lock. With KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 it only copies, and
KVM_CLEAR_DIRTY_LOG clears and re-protects the bits that it is given, a slice at a time: the guest
waits less, and writes between the two calls are not reported again. Only bits that were got are
given, so that no other is ever cleared.

A bit that was cleared is a write that was seen: pages are read only after that. What the VMM and
its devices write goes past KVM and is in no bit.

Nothing here runs long: methods are generators that make one bounded system call, or a few short
ones, between two `yield`s, to be driven in an executor. (KVM_GET_DIRTY_LOG copies a slot at once:
32 MiB for a slot of 1 TiB.)
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fcntl import ioctl

import numpy as np

from aiomigrate.memory import bitmap_kernels
from aiomigrate.memory.bitmaps import Bitmap
from aiomigrate.memory.errors import DirtyLogError
from aiomigrate.memory.map import PAGE_BYTES

__all__ = ["KvmLog", "KvmSlot"]

# include/uapi/linux/kvm.h
_CHECK_EXTENSION = 0xAE03
_SET_USER_MEMORY_REGION = 0x4020AE46
_GET_DIRTY_LOG = 0x4010AE42
_ENABLE_CAP = 0x4068AEA3
_CLEAR_DIRTY_LOG = 0xC018AEC0
_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168
_MANUAL_PROTECT_ENABLE = 1
_MEM_LOG_DIRTY_PAGES = 1

_CLEAR_PAGES = 64 * 1024
"""Pages re-protected by one call: 256 MiB. KVM holds its lock meanwhile, some milliseconds when all
of them are mapped. KVM wants multiples of 64.
"""


@dataclass(frozen=True, slots=True)
class KvmSlot:
    """A memory slot as the VMM made it (struct kvm_userspace_memory_region); addresses, bytes."""

    slot: int
    """Its number, with the address space in the upper 16 bits."""
    gpa: int
    """Where it begins in the guest's physical memory."""
    size: int
    """Its length in bytes."""
    address: int
    """Where the VMM's process has it mapped (userspace_addr)."""
    flags: int = 0
    """What else it was made with, without KVM_MEM_LOG_DIRTY_PAGES."""


class KvmLog:
    """The dirty logs of some slots of a VM.

    `vm` is the VM's descriptor and stays the caller's; this must run in the process that made the
    VM, since KVM refuses others (EIO). ValueError for slots that are not made of whole pages, and
    on a machine whose pages are not of 4096 bytes. All methods raise DirtyLogError.
    """

    def __init__(self, vm: int, slots: Sequence[KvmSlot]) -> None:
        if mmap.PAGESIZE != PAGE_BYTES:
            raise ValueError(f"KVM logs pages of {mmap.PAGESIZE} bytes here, not {PAGE_BYTES}")
        for slot in slots:
            if slot.size <= 0 or slot.size % PAGE_BYTES:
                raise ValueError(f"KVM slot {slot.slot}: {slot.size} bytes are not whole pages")
        self._vm = vm
        self._slots = tuple(slots)
        self._logging: list[KvmSlot] = []
        self._manual = False

    def bitmaps(self) -> list[Bitmap]:
        """Empty bitmaps, one a slot, for `collect`."""
        return [np.zeros(-(-slot.size // PAGE_BYTES // 64), np.uint64) for slot in self._slots]

    def start(self) -> Iterator[None]:
        """Turn logging on, slot by slot."""
        found = self._call("KVM_CHECK_EXTENSION", _CHECK_EXTENSION, _CAP_MANUAL_DIRTY_LOG_PROTECT2)
        self._manual = bool(found & _MANUAL_PROTECT_ENABLE)
        if self._manual:
            self._set_manual(_MANUAL_PROTECT_ENABLE)
        for slot in self._slots:
            self._set_flags(slot, slot.flags | _MEM_LOG_DIRTY_PAGES)
            self._logging.append(slot)
            yield

    def collect(self, into: Sequence[Bitmap]) -> Iterator[None]:
        """Mark in `into` what was written since the last call, and re-protect it."""
        for slot, bitmap in zip(self._slots, into, strict=True):
            got = np.zeros_like(bitmap)
            arguments = struct.pack("=IIQ", slot.slot, 0, _address_of(got))
            self._call(f"KVM_GET_DIRTY_LOG of slot {slot.slot}", _GET_DIRTY_LOG, arguments)
            bitmap_kernels.unite(bitmap, got)
            yield
            if self._manual:
                yield from self._clear(slot, got)

    def _clear(self, slot: KvmSlot, got: Bitmap) -> Iterator[None]:
        """Re-protect the pages that were got, and no others: later writes are in other bits."""
        pages = slot.size // PAGE_BYTES
        for first in range(0, pages, _CLEAR_PAGES):
            part = got[first // 64 : (first + _CLEAR_PAGES) // 64]
            if part.any():
                count = min(_CLEAR_PAGES, pages - first)
                arguments = struct.pack("=IIQQ", slot.slot, count, first, _address_of(part))
                self._call(f"KVM_CLEAR_DIRTY_LOG of slot {slot.slot}", _CLEAR_DIRTY_LOG, arguments)
                yield

    def stop(self) -> Iterator[None]:
        """Turn logging off where it is on. KVM then clears on KVM_GET_DIRTY_LOG, its default."""
        while self._logging:
            slot = self._logging.pop()
            self._set_flags(slot, slot.flags)
            yield
        if self._manual:
            self._manual = False
            self._set_manual(0)

    def _set_flags(self, slot: KvmSlot, flags: int) -> None:
        arguments = struct.pack("=IIQQQ", slot.slot, flags, slot.gpa, slot.size, slot.address)
        call = f"KVM_SET_USER_MEMORY_REGION of slot {slot.slot}"
        self._call(call, _SET_USER_MEMORY_REGION, arguments)

    def _set_manual(self, value: int) -> None:
        arguments = struct.pack("=II4Q64x", _CAP_MANUAL_DIRTY_LOG_PROTECT2, 0, value, 0, 0, 0)
        self._call("KVM_ENABLE_CAP of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", _ENABLE_CAP, arguments)

    def _call(self, name: str, request: int, arguments: bytes | int) -> int:
        try:
            result = ioctl(self._vm, request, arguments)
        except OSError as error:
            code = error.errno or 0
            raise DirtyLogError("KVM's dirty log", name, code, os.strerror(code)) from error
        return result if isinstance(result, int) else 0


def _address_of(words: Bitmap) -> int:
    address: int = words.__array_interface__["data"][0]
    return address
