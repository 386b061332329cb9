"""A virtual machine of KVM with one CPU, by system calls: linux/kvm.h in ctypes.

Only what a 32-bit guest without interrupts needs. Such a guest's CPU is its general and special
registers; a VMM for other guests also saves MSRs, FPU, local APIC, pending events and the clock.
Facts are from the kernel's Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import threading
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

from aiomigrate.tiny_vmm.cpu import Exit

__all__ = ["KvmCpu", "KvmUnusable", "why_unusable"]

_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_GET_VCPU_MMAP_SIZE = 0xAE04
_CREATE_VCPU = 0xAE41
_SET_USER_MEMORY_REGION = 0x4020AE46
_SET_TSS_ADDR = 0xAE47
_RUN = 0xAE80
_GET_REGS, _SET_REGS = 0x8090AE81, 0x4090AE82
_GET_SREGS, _SET_SREGS = 0x8138AE83, 0x4138AE84
_API_VERSION = 12
_EXIT_IO, _EXIT_HLT = 2, 5
_IO_OUT = 1
_TSS_ADDRESS = 0x7FFFD000
"""Three pages that KVM needs on Intel's CPUs, where guest memory does not reach. Others put them
just below 4 GiB; fcntl.ioctl's argument is an int."""
_KICK = signal.SIGRTMIN
"""Brings a thread out of KVM_RUN."""

_REGS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
         "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags")  # fmt: skip
_SEGMENT_BYTES = ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable", "padding")
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_CONTROLS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")

_libc = ctypes.CDLL(None, use_errno=True)


class KvmUnusable(Exception):
    """/dev/kvm cannot be used here; says why."""


class _Run(ctypes.Structure):  # struct kvm_run, as far as it is used
    _fields_ = (
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("flags", c_uint32),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    )


class _MemoryRegion(ctypes.Structure):
    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


class _Regs(ctypes.Structure):
    _fields_ = tuple((name, c_uint64) for name in _REGS)


class _Segment(ctypes.Structure):
    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        *((name, c_uint8) for name in _SEGMENT_BYTES),
    )


class _Table(ctypes.Structure):
    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


class _Sregs(ctypes.Structure):
    _fields_ = (
        *((name, _Segment) for name in _SEGMENTS),
        ("gdt", _Table),
        ("idt", _Table),
        *((name, c_uint64) for name in _CONTROLS),
        ("interrupt_bitmap", c_uint64 * 4),
    )


def why_unusable() -> str:
    """Why no machine can be made here; empty if one can."""
    try:
        for fd in _make_machine():
            os.close(fd)
    except KvmUnusable as error:
        return str(error)
    return ""


def _make_machine() -> tuple[int, int]:
    """Descriptors of /dev/kvm and of a new machine. KvmUnusable."""
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise KvmUnusable(f"/dev/kvm: {error.strerror}") from error
    try:
        version = fcntl.ioctl(kvm, _GET_API_VERSION)
        if version != _API_VERSION:
            raise KvmUnusable(f"/dev/kvm: its interface is {version}, not {_API_VERSION}")
        return kvm, fcntl.ioctl(kvm, _CREATE_VM, 0)
    except BaseException as error:
        os.close(kvm)
        if isinstance(error, OSError):
            raise KvmUnusable(f"/dev/kvm: {error.strerror}") from error
        raise


class KvmCpu:
    """A virtual machine of KVM with one CPU, which begins at `entry` with its stack at `stack`.

    Slot 0 is `memory`, from guest address 0 on; it must stay mapped until `close`. To be made in
    the main thread, the only one that may say what a signal does. KvmUnusable.
    """

    def __init__(self, memory: mmap.mmap, entry: int, stack: int) -> None:
        self._entry, self._stack = entry, stack
        signal.signal(_KICK, lambda *_: None)
        kvm, self.machine = _make_machine()
        run_bytes = fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE)
        os.close(kvm)
        self._hold = ctypes.c_char.from_buffer(memory)
        self.address = ctypes.addressof(self._hold)
        """Where slot 0 is in this process."""
        region = _MemoryRegion(0, 0, 0, len(memory), self.address)
        fcntl.ioctl(self.machine, _SET_TSS_ADDR, _TSS_ADDRESS)
        fcntl.ioctl(self.machine, _SET_USER_MEMORY_REGION, region)
        self._fd = fcntl.ioctl(self.machine, _CREATE_VCPU, 0)
        self._area = mmap.mmap(self._fd, run_bytes)
        self._run = _Run.from_buffer(self._area)
        self._thread = 0
        self.reset()

    def close(self) -> None:
        """End it; its memory may be unmapped then."""
        del self._run  # it points into the area, as `_hold` does into memory
        self._area.close()
        os.close(self._fd)
        os.close(self.machine)
        del self._hold

    def run(self) -> Exit | None:
        """Run the guest: KVM_RUN. OSError or RuntimeError if that cannot go on."""
        # Not by fcntl.ioctl, which may try again after a signal.
        if _libc.ioctl(self._fd, _RUN, 0) < 0:
            code = ctypes.get_errno()
            if code == errno.EINTR:
                return None
            raise OSError(code, f"KVM_RUN: {os.strerror(code)}")
        if self._run.exit_reason == _EXIT_HLT:
            return Exit(None)
        if self._run.exit_reason != _EXIT_IO:
            reason = self._run.exit_reason
            raise RuntimeError(f"the guest's CPU has stopped: KVM's exit reason {reason}")
        if self._run.direction != _IO_OUT:
            return Exit(self._run.port)
        at, size = self._run.data_offset, self._run.size * self._run.count
        return Exit(self._run.port, self._area[at : at + size])

    def answer(self, value: int) -> None:
        """What the guest reads: KVM gives it to the CPU when it runs again."""
        at, size = self._run.data_offset, self._run.size
        self._area[at : at + size] = value.to_bytes(size, "little")

    def interrupt(self) -> None:
        """Bring the CPU's thread out of KVM_RUN, or keep it from getting in."""
        self._run.immediate_exit = 1
        if self._thread:
            signal.pthread_kill(self._thread, _KICK)

    def rearm(self) -> None:
        """Let this thread run the guest."""
        self._thread = threading.get_ident()
        self._run.immediate_exit = 0

    def reset(self) -> None:
        """32-bit protected mode, flat segments."""
        sregs = _Sregs()
        fcntl.ioctl(self._fd, _GET_SREGS, sregs)
        sregs.cs = _Segment(limit=0xFFFFFFFF, selector=8, type=11, present=1, db=1, s=1, g=1)
        data = _Segment(limit=0xFFFFFFFF, selector=16, type=3, present=1, db=1, s=1, g=1)
        sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
        sregs.cr0 |= 1  # protected mode
        fcntl.ioctl(self._fd, _SET_SREGS, sregs)
        # Bit 1 of the flags is always set.
        fcntl.ioctl(self._fd, _SET_REGS, _Regs(rip=self._entry, rsp=self._stack, rflags=2))

    def capture(self) -> dict[str, str]:
        """Its registers, as KVM's structures in hexadecimal."""
        regs, sregs = _Regs(), _Sregs()
        fcntl.ioctl(self._fd, _GET_REGS, regs)
        fcntl.ioctl(self._fd, _GET_SREGS, sregs)
        return {"regs": bytes(regs).hex(), "sregs": bytes(sregs).hex()}

    def restore(self, state: dict[str, str]) -> None:
        """Go on from captured registers."""
        fcntl.ioctl(self._fd, _SET_SREGS, bytes.fromhex(state["sregs"]))
        fcntl.ioctl(self._fd, _SET_REGS, bytes.fromhex(state["regs"]))
