"""The dirty logging of KVM as its documentation has it (Documentation/virt/kvm/api.rst): a model
that a test can write to between any two calls. `ioctl` takes the place of fcntl's.
"""

import ctypes
import errno
import struct
from collections.abc import Callable

__all__ = ["FakeKvm"]

_SET_REGION, _GET, _CLEAR = 0x4020AE46, 0x4010AE42, 0xC018AEC0
_CHECK, _ENABLE = 0xAE03, 0x4068AEA3
_MANUAL_PROTECT2 = 168
_LOG_DIRTY = 1


class FakeKvm:
    """One slot, 0, of `pages` pages; `can_protect` is KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2."""

    def __init__(self, pages: int, *, can_protect: bool) -> None:
        self.pages = pages
        self.logging = False
        self.manual = False
        self._can_protect = can_protect
        self._bits = 0
        self.calls: list[str] = []

    def write(self, page: int) -> None:
        """A vCPU writes."""
        if self.logging:
            self._bits |= 1 << page

    def ioctl(self, _vm: int, request: int, argument: bytes | int) -> int:
        """What KVM does; OSError as it gives them."""
        name, handle = self._handlers()[request]
        self.calls.append(name)
        return handle(argument) or 0

    def _handlers(self) -> dict[int, tuple[str, Callable[..., int | None]]]:
        return {
            _CHECK: ("check", self._check),
            _ENABLE: ("enable", self._enable),
            _SET_REGION: ("region", self._region),
            _GET: ("get", self._get),
            _CLEAR: ("clear", self._clear),
        }

    def _check(self, capability: int) -> int:
        assert capability == _MANUAL_PROTECT2
        return 3 if self._can_protect else 0

    def _enable(self, argument: bytes) -> None:
        capability, flags, value = struct.unpack_from("=IIQ", argument)
        assert (len(argument), capability, flags) == (104, _MANUAL_PROTECT2, 0)
        if not self._can_protect or value not in (0, 1):
            raise OSError(errno.EINVAL, "Invalid argument")
        self.manual = bool(value)

    def _region(self, argument: bytes) -> None:
        slot, flags, gpa, size, _ = struct.unpack("=IIQQQ", argument)
        assert (slot, gpa, size) == (0, 0, 4096 * self.pages)
        self.logging = bool(flags & _LOG_DIRTY)
        self._bits = 0

    def _words(self, address: int, count: int) -> "ctypes.Array[ctypes.c_uint64]":
        return (ctypes.c_uint64 * -(-count // 64)).from_address(address)

    def _get(self, argument: bytes) -> None:
        slot, _, address = struct.unpack("=IIQ", argument)
        if slot != 0 or not self.logging:
            raise OSError(errno.ENOENT, "No such file or directory")
        for index, words in enumerate([self._words(address, self.pages)] * -(-self.pages // 64)):
            words[index] = self._bits >> 64 * index & 2**64 - 1
        if not self.manual:
            self._bits = 0

    def _clear(self, argument: bytes) -> None:
        slot, count, first, address = struct.unpack("=IIQQ", argument)
        whole = count % 64 == 0 or first + count == self.pages
        if slot != 0 or not self.manual or first % 64 or not whole or first + count > self.pages:
            raise OSError(errno.EINVAL, "Invalid argument")
        for index, word in enumerate(self._words(address, count)):
            self._bits &= ~(word << first + 64 * index)
