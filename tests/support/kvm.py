"""A virtual machine of one vCPU that writes to the pages that it is told, on a real KVM.

32-bit code without paging, entered directly: no BIOS and no device. Structures and numbers are
those of include/uapi/linux/kvm.h and asm/kvm.h on x86-64.
"""

import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Iterable
from fcntl import ioctl
from typing import Self

__all__ = ["PAGES", "SLOT", "WRITABLE", "TinyGuest", "why_not"]

PAGES = 1000
"""Of the guest; the last word of its bitmap is partial."""
SLOT = 3
_CODE_AT, _LIST_AT = 0x1000, 0x2000
WRITABLE = range(8, PAGES)
"""Pages that hold neither the code nor its list."""
_CODE = bytes.fromhex(
    "be00200000"  # start: mov esi, 0x2000
    "ad"  #         next:  lodsd
    "83f8ff"  #            cmp eax, -1
    "7407"  #              je done
    "c1e00c"  #            shl eax, 12
    "ff00"  #              inc dword [eax]
    "ebf3"  #              jmp next
    "f4"  #         done:  hlt
    "ebeb"  #              jmp start
)
_CREATE_VM, _VCPU_MMAP_SIZE, _CREATE_VCPU, _RUN = 0xAE01, 0xAE04, 0xAE41, 0xAE80
_SET_USER_MEMORY_REGION, _SET_REGS = 0x4020AE46, 0x4090AE82
_GET_SREGS, _SET_SREGS = 0x8138AE83, 0x4138AE84
_EXIT_HLT = 5


def why_not() -> str:
    """Why no guest can run here; empty if one can."""
    if platform.machine() != "x86_64":
        return "the tiny guest is x86-64 code"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is missing or not ours to use"
    return ""


class TinyGuest:
    """A context manager. `memory` is the guest's memory, `vm` the VM's descriptor."""

    def __enter__(self) -> Self:
        self._kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self.vm = ioctl(self._kvm, _CREATE_VM, 0)
        self.memory = mmap.mmap(-1, PAGES * 4096)
        hold = ctypes.c_char.from_buffer(self.memory)
        self.address = ctypes.addressof(hold)
        del hold
        region = struct.pack("=IIQQQ", SLOT, 0, 0, PAGES * 4096, self.address)
        ioctl(self.vm, _SET_USER_MEMORY_REGION, region)
        self.memory[_CODE_AT : _CODE_AT + len(_CODE)] = _CODE
        self._vcpu = ioctl(self.vm, _CREATE_VCPU, 0)
        self._run = mmap.mmap(self._vcpu, ioctl(self._kvm, _VCPU_MMAP_SIZE, 0))
        sregs = bytearray(312)
        ioctl(self._vcpu, _GET_SREGS, sregs)
        # Flat 32-bit segments (struct kvm_segment), and cr0.PE.
        for index, (selector, kind) in enumerate([(8, 11)] + [(16, 3)] * 5):
            segment = struct.pack("=QIH10B", 0, 2**32 - 1, selector, kind, *b"\1\0\1\1\0\1\0\0\0")
            sregs[24 * index : 24 * index + 24] = segment
        sregs[224] |= 1
        ioctl(self._vcpu, _SET_SREGS, bytes(sregs))
        ioctl(self._vcpu, _SET_REGS, struct.pack("=18Q", *[0] * 16, _CODE_AT, 2))
        return self

    def __exit__(self, *exc: object) -> None:
        self._run.close()
        for fd in (self._vcpu, self.vm, self._kvm):
            os.close(fd)
        self.memory.close()

    def write(self, pages: Iterable[int]) -> None:
        """Let the vCPU add one to the first word of each of these pages."""
        numbers = (*pages, 2**32 - 1)
        self.memory[_LIST_AT : _LIST_AT + 4 * len(numbers)] = struct.pack(
            f"={len(numbers)}I", *numbers
        )
        ioctl(self._vcpu, _RUN, 0)
        (reason,) = struct.unpack_from("=I", self._run, 8)
        assert reason == _EXIT_HLT, f"the guest ended with exit reason {reason}"
