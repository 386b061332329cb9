"""Faults on memory that is not there yet, told and mended from user space: linux/userfaultfd.h.

The memory is a memfd's, mapped here, into which somebody else writes its pages. A page that the
file has not got is *missing*, one that it has and that is not mapped yet is a *minor* fault; in
both cases whoever touched it stands still until the file's page is mapped (UFFDIO_CONTINUE). The
device is used rather than the system call, because only so the kernel's own faults are told to
whoever may open it: KVM touches guest memory in the kernel.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

__all__ = ["Userfaultfd", "UserfaultfdUnusable", "why_unusable"]

_DEVICE = "/dev/userfaultfd"
_NEW = 0xAA00
_API = 0xC018AA3F
_REGISTER, _CONTINUE, _WAKE = 0xC020AA00, 0xC020AA07, 0x8010AA02
_VERSION = 0xAA
_MISSING_SHMEM, _MINOR_SHMEM = 1 << 5, 1 << 10  # features, Linux 4.11 and 5.14
_MISSING, _MINOR = 1 << 0, 1 << 2
_PAGEFAULT = 0x12
_MESSAGE = struct.Struct("=B7xQQQ")
"""struct uffd_msg of a page fault: event, flags, address, thread."""
_MESSAGES = 16


class UserfaultfdUnusable(Exception):
    """Faults cannot be served here; says why."""


def why_unusable() -> str:
    """Why faults cannot be served here; empty if they can."""
    try:
        Userfaultfd().close()
    except UserfaultfdUnusable as error:
        return str(error)
    return ""


class Userfaultfd:
    """A descriptor `fd`, readable when somebody stands still at a fault. To be closed, after which
    what was registered is ordinary memory again. UserfaultfdUnusable.
    """

    def __init__(self) -> None:
        self.fd = -1
        try:
            device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
            try:
                self.fd = fcntl.ioctl(device, _NEW, os.O_CLOEXEC | os.O_NONBLOCK)
            finally:
                os.close(device)
            asked = struct.pack("=QQQ", _VERSION, _MISSING_SHMEM | _MINOR_SHMEM, 0)
            fcntl.ioctl(self.fd, _API, asked)
        except OSError as error:
            self.close()
            raise UserfaultfdUnusable(f"{_DEVICE}: {error.strerror}") from error

    def close(self) -> None:
        """Let those that stand still touch what is in the file, or zeros. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def register(self, address: int, size: int) -> None:
        """Be told of faults on whole pages of this process' memory."""
        fcntl.ioctl(self.fd, _REGISTER, struct.pack("=QQQQ", address, size, _MISSING | _MINOR, 0))

    def read(self) -> list[int]:
        """Addresses that somebody stands still at; none if it would have to be waited for."""
        try:
            data = os.read(self.fd, _MESSAGES * _MESSAGE.size)
        except BlockingIOError:
            return []
        return [address for event, _, address, _ in _MESSAGE.iter_unpack(data)
                if event == _PAGEFAULT]  # fmt: skip

    def map(self, address: int, size: int) -> None:
        """Map a page that is in the file, and wake who stands still there."""
        try:
            fcntl.ioctl(self.fd, _CONTINUE, struct.pack("=QQQq", address, size, 0, 0))
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            self.wake(address, size)  # somebody was there before us

    def wake(self, address: int, size: int) -> None:
        """Wake who stands still at a page that is mapped."""
        fcntl.ioctl(self.fd, _WAKE, struct.pack("=QQ", address, size))
