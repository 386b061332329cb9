"""What the kernel says a TCP connection spent its time on, by struct tcp_info (linux/tcp.h).

A sender is busy while it has unacknowledged data; for a part of that it could not send because the
receiver's window was full: whoever reads at the other end did not read (Linux 4.10).
"""

import socket
import struct
from typing import NamedTuple

__all__ = ["TcpTimes", "tcp_times"]

_BUSY_TIME = 168
"""Where tcpi_busy_time is, and tcpi_rwnd_limited behind it: microseconds, 64 bits each."""
_TIMES = struct.Struct("=QQ")


class TcpTimes(NamedTuple):
    """Seconds since the connection was made."""

    busy_s: float
    """With data on its way."""
    receiver_s: float
    """Of these, with the receiver's window full."""


def tcp_times(sock: socket.socket) -> TcpTimes | None:
    """None where the kernel does not say: a unix socket, an old kernel, a closed one."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BUSY_TIME + _TIMES.size)
        busy, receiver = _TIMES.unpack_from(info, _BUSY_TIME)
    except (OSError, struct.error):
        return None
    return TcpTimes(busy / 1e6, receiver / 1e6)
