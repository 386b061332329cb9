import socket
from collections.abc import Iterator

import pytest

from aiomigrate.testing import forwarding

Devices = tuple[socket.socket, socket.socket]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(forwarding, "monotonic", made)
    return made


@pytest.fixture
def near() -> Iterator[Devices]:
    """What stands for a device: packets, and the forwarder's descriptor of it."""
    yield from _device()


@pytest.fixture
def far() -> Iterator[Devices]:
    yield from _device()


def _device() -> Iterator[Devices]:
    kernel, descriptor = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, descriptor:
        kernel.setblocking(False)
        descriptor.setblocking(False)
        yield kernel, descriptor


def arrived(device: Devices) -> list[bytes]:
    packets = []
    while True:
        try:
            packets.append(device[0].recv(forwarding.PACKET_BYTES))
        except BlockingIOError:
            return packets


def way(near: Devices, far: Devices, *shape: float) -> forwarding.Way:
    return forwarding.Way(near[1].fileno(), far[1].fileno(), *shape)


def test_packets_arrive_in_order_after_the_delay(near: Devices, far: Devices, clock: Clock) -> None:
    there = way(near, far, 0.5, 0.0, 1.0)
    assert there.due == float("inf")
    for number in range(3):
        near[0].send(bytes([number]))
    there.take()
    assert there.due == 100.5
    clock.now = 100.4
    there.land()
    assert arrived(far) == []
    clock.now = 100.5
    there.land()
    assert arrived(far) == [b"\0", b"\1", b"\2"]
    assert there.due == float("inf")


def test_the_rate_spaces_them_and_a_full_queue_drops(
    near: Devices, far: Devices, clock: Clock
) -> None:
    there = way(near, far, 10.0, 1000.0, 1.0)  # a packet of 500 bytes takes 0.5 s
    for number in range(5):
        near[0].send(bytes([number]) * 500)
    there.take()
    dues, packets = [], []
    while there.due < float("inf"):
        dues.append(there.due)
        clock.now = there.due
        there.land()
        packets += arrived(far)
    assert dues == [110.5, 111.0, 111.5]
    assert [packet[0] for packet in packets] == [0, 1, 2]
    # The queue is empty by now.
    near[0].send(bytes(500))
    there.take()
    assert there.due == clock.now + 10.5


def test_what_a_device_does_not_take_is_lost(near: Devices, far: Devices, clock: Clock) -> None:
    there = way(near, far, 0.0, 0.0, 1.0)
    near[0].send(b"packet")
    far[0].close()
    there.take()
    there.land()
    assert there.due == float("inf")
