"""What systemd hands to a service and is told by it: sd_listen_fds(3), sd_notify(3).

Both are a few environment variables, and nothing happens where they are not set.
"""

import os
import socket
from contextlib import suppress

__all__ = ["notify", "passed_socket"]

_FIRST_FD = 3  # SD_LISTEN_FDS_START


def passed_socket() -> socket.socket | None:
    """The socket of our unit; None if there is none. UsageError if there are more."""
    from aiomigrate.errors import UsageError

    count = os.environ.pop("LISTEN_FDS", "")
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()) or not count:
        return None  # it was meant for our parent
    if count != "1":
        raise UsageError(f"the service manager passed {count} sockets, and one is needed")
    os.set_inheritable(_FIRST_FD, False)
    return socket.socket(fileno=_FIRST_FD)


def notify(state: str) -> None:
    """Tell the service manager, if there is one that wants to know: `READY=1`, `STATUS=...`."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        # A name that begins with @ is in the abstract namespace.
        sock.sendto(state.encode(), "\0" + path[1:] if path[0] == "@" else path)
