"""A link between two network namespaces, on which TCP behaves as TCP does on that path.

Without delay and rate it is a pair of veth devices. With them it is a TUN device in each namespace
and a process that carries packets between the two (aiomigrate.testing.forwarding), as there are
kernels without netem. The devices take segments of up to 64 KiB, as network cards do (TSO), so that
Python carries gigabits; each side cuts them to the MTU of 1,500.

Interfaces and addresses are made by iproute2. All packets stay in the two namespaces.
"""

import fcntl
import os
import struct
import subprocess
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Self, final

from aiomigrate.testing.namespaces import LinkUnavailable, Namespace

__all__ = ["Link"]

NEAR, FAR = "10.0.0.1", "10.0.0.2"
DEVICE = "link0"

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02


@final
class Link:
    """Two namespaces, `near` and `far`, and a link between them. A context manager.

    `delay_s` is one way; `rate` in bytes a second, each way, with a queue of `queue_s` (what comes
    when it is full is dropped, as by a router). Entering raises `LinkUnavailable` where the machine
    does not allow a link.
    """

    near_address = NEAR
    """The address of the interface in `near`."""
    far_address = FAR
    """The address of the interface in `far`."""

    def __init__(
        self, *, delay_s: float = 0.0, rate: float | None = None, queue_s: float = 0.1
    ) -> None:
        self._shape = (delay_s, rate, queue_s) if delay_s or rate else None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.near = stack.enter_context(Namespace())
            self.far = stack.enter_context(Namespace())
            if self._shape is None:
                there = f"/proc/self/fd/{self.far.fd}"
                peer = ("peer", "name", DEVICE, "netns", there)
                self.near.ip("link", "add", DEVICE, "type", "veth", *peer, pass_fds=[self.far.fd])
            else:
                self._forward(stack, *self._shape)
            self.near.ip("address", "add", f"{NEAR}/24", "dev", DEVICE)
            self.far.ip("address", "add", f"{FAR}/24", "dev", DEVICE)
            self.up()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def down(self) -> None:
        """Take the interfaces down at both ends: no packet passes. Connections that are there learn
        nothing of it; a new one fails at once (ENETUNREACH).
        """
        self._set("down")

    def up(self) -> None:
        """Bring the interfaces up again."""
        self._set("up")

    def _set(self, state: str) -> None:
        for namespace in (self.near, self.far):
            namespace.ip("link", "set", DEVICE, state)

    def _forward(
        self, stack: ExitStack, delay_s: float, rate: float | None, queue_s: float
    ) -> None:
        with ExitStack() as opened:
            fds = []
            for namespace in (self.near, self.far):
                fds.append(namespace.call(_open_tun))
                opened.callback(os.close, fds[-1])
            numbers = [*fds, delay_s, rate or 0, queue_s]
            process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", "aiomigrate.testing.forwarding", *map(str, numbers)],
                pass_fds=fds,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,  # Ctrl-C is for us
            )
        # It ends with its standard input too, and so does not outlive us.
        stack.enter_context(process)
        stack.callback(process.kill)
        if process.stdout is None or not process.stdout.readline():
            raise LinkUnavailable("the process that carries packets ended at once")


def _open_tun() -> int:
    """A TUN device in the namespace of this thread, there as long as the descriptor is."""
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise LinkUnavailable(f"/dev/net/tun: {error.strerror}") from error
    try:
        flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), flags))
        fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    except OSError as error:
        os.close(fd)
        raise LinkUnavailable(f"no TUN device can be made: {error.strerror}") from error
    return fd
