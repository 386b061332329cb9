"""Network namespaces without names: they are gone with the last descriptor, socket and process in
them, also after a kill -9. Nothing of them is visible to other programs.

A namespace is a property of a thread (setns(2)), so work inside of one is done by a thread that
entered it: a socket belongs for ever to the namespace in which it was made, and a process to that
of the thread which started it.
"""

import ctypes
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

__all__ = ["LinkUnavailable", "Namespace"]

CLONE_NEWNET = 0x40000000
"""From linux/sched.h; Python has os.setns and os.unshare from 3.12 on."""

P = ParamSpec("P")
T = TypeVar("T")


class LinkUnavailable(Exception):
    """Namespaces or links cannot be made here; the message is one sentence that says why."""


class Namespace:
    """A network namespace of its own with a loopback device. A context manager.

    Raises `LinkUnavailable` where the kernel does not allow one.
    """

    def __init__(self) -> None:
        with ThreadPoolExecutor(1) as thread:
            try:
                self.fd = thread.submit(_new).result()
                """Its descriptor, which keeps it."""
            except OSError as error:
                raise LinkUnavailable(
                    "no network namespace can be made (unshare(2), which needs CAP_SYS_ADMIN): "
                    f"{error.strerror}"
                ) from error
        try:
            self.ip("link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` with `args` and `kwargs` in a thread inside of the namespace, and wait:
        `call(socket.socket)`, `call(subprocess.Popen, [...])`, `call(asyncio.run, main())`.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="aiomigrate-netns") as thread:
            thread.submit(_checked, "setns", self.fd, CLONE_NEWNET).result()
            return thread.submit(function, *args, **kwargs).result()

    def ip(self, *arguments: str, pass_fds: Sequence[int] = ()) -> None:
        """Run iproute2's `ip` with `arguments` in here; it has the descriptors `pass_fds`, too.

        Raises `LinkUnavailable` with what it says.
        """
        try:
            self.call(
                subprocess.run,
                ["ip", *arguments],
                check=True,
                capture_output=True,
                text=True,
                pass_fds=pass_fds,
            )
        except FileNotFoundError as error:
            raise LinkUnavailable("iproute2's `ip` is not installed") from error
        except subprocess.CalledProcessError as error:
            command = " ".join(("ip", *arguments))
            raise LinkUnavailable(f"`{command}`: {error.stderr.strip()}") from error


def _new() -> int:
    _checked("unshare", CLONE_NEWNET)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _checked(function: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function)
