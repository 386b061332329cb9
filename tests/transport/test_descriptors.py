"""Descriptors beside bytes: what comes is given to who asks for it, or closed."""

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiomigrate.transport import (
    Connection,
    DescriptorError,
    connect,
    listen,
    parse_address,
)
from tests.support.leaks import Resources

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Connection, Connection]]:
    """A connecting and an accepted end of a unix socket."""
    listener = await listen(parse_address(f"unix:{tmp_path}/socket"))
    near = await connect(listener.address)
    far = await listener.accept()
    listener.close()
    yield near, far
    near.close()
    far.close()


@contextmanager
def memfds(count: int) -> Iterator[list[int]]:
    """Descriptors to pass; at the end none of these files is open but by them."""
    fds = [os.memfd_create(f"passed-{number}", os.MFD_CLOEXEC) for number in range(count)]
    before = Resources.now()
    try:
        yield fds
        assert Resources.left_since(before) == []
    finally:
        for fd in fds:
            os.close(fd)


async def settle(turns: int = 5) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


def _inode(fd: int) -> int:
    return os.fstat(fd).st_ino


async def test_a_descriptor_comes_with_its_bytes(pair: tuple[Connection, Connection]) -> None:
    near, far = pair
    with memfds(1) as (fd,):
        await near.write(b"header")
        await near.write(b"slot", descriptor=fd)
        await near.write(b"next")
        assert await far.read_exactly(6) == b"header"
        assert far.take_descriptors(0) == []
        buffer = bytearray(4)
        await far.read_into(buffer)
        assert buffer == b"slot"
        (taken,) = far.take_descriptors(1)
        assert _inode(taken) == _inode(fd)
        assert not os.get_inheritable(taken)
        assert await far.read_some(100) == b"next"
        assert far.take_descriptors(0) == []
        os.close(taken)
    assert near.written == far.received == 14


async def test_it_waits_with_its_bytes(pair: tuple[Connection, Connection]) -> None:
    near, far = pair
    with memfds(1) as (fd,):
        reading = asyncio.create_task(far.read_exactly(8))
        await settle(5)
        await near.write(b"slot", descriptor=fd)
        await settle(5)
        await near.write(b"more")
        assert await reading == b"slotmore"
        os.close(*far.take_descriptors(1))


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("at_once", [True, False])
async def test_another_number_is_refused_and_closed(
    pair: tuple[Connection, Connection], count: int, at_once: bool
) -> None:
    near, far = pair
    with memfds(count) as fds:
        if at_once:
            socket.send_fds(near._sock, [b"slot"], fds)
        else:
            for fd, byte in zip(fds, b"sl", strict=False):
                await near.write(bytes([byte]), descriptor=fd)
            await near.write(b"slot"[count:])
        assert await far.read_exactly(4) == b"slot"
        with pytest.raises(DescriptorError) as caught:
            far.take_descriptors(1)
    assert (caught.value.expected, caught.value.got) == (1, str(count))
    assert far.take_descriptors(0) == []


async def test_three_at_once_are_cut_off_and_closed(pair: tuple[Connection, Connection]) -> None:
    near, far = pair
    with memfds(3) as fds:
        socket.send_fds(near._sock, [b"slot"], fds)
        await far.read_exactly(4)
        with pytest.raises(DescriptorError, match="MSG_CTRUNC"):
            far.take_descriptors(1)


async def test_one_that_finds_no_room_in_our_table_is_an_error(
    pair: tuple[Connection, Connection],
) -> None:
    near, far = pair
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with memfds(1) as (fd,):
        await near.write(b"slot", descriptor=fd)
        spare = os.dup(fd)
        os.close(spare)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
            data = await far.read_exactly(4)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert data == b"slot"
        with pytest.raises(DescriptorError, match="MSG_CTRUNC"):
            far.take_descriptors(1)


async def test_many_one_after_the_other_do_not_pile_up(
    pair: tuple[Connection, Connection],
) -> None:
    near, far = pair
    with memfds(1) as (fd,):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            await near.write(b"x", descriptor=fd)
            await far.read_exactly(1)
        assert len(os.listdir("/proc/self/fd")) <= before + 2
        with pytest.raises(DescriptorError, match="no descriptor is due, got 2"):
            far.take_descriptors(0)


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_what_nobody_takes_is_closed_with_the_connection(
    pair: tuple[Connection, Connection], end: str
) -> None:
    near, far = pair
    read, write = os.pipe()
    os.set_blocking(read, False)
    await near.write(b"slot", descriptor=write)
    os.close(write)
    await far.read_exactly(4)
    with pytest.raises(BlockingIOError):
        os.read(read, 1)
    getattr(far, end)()
    assert os.read(read, 1) == b""  # nobody has the writing end any more
    os.close(read)


async def test_a_connecting_end_takes_none(pair: tuple[Connection, Connection]) -> None:
    near, far = pair
    with memfds(1) as (fd,):
        await far.write(b"answer", descriptor=fd)
        assert await near.read_exactly(6) == b"answer"
        with pytest.raises(DescriptorError, match="none"):
            near.take_descriptors(1)


async def test_none_comes_over_tcp() -> None:
    listener = await listen(parse_address("tcp:127.0.0.1:0", listening=True))
    near = await connect(listener.address)
    far = await listener.accept()
    await near.write(b"slot")
    await far.read_exactly(4)
    assert far.take_descriptors(0) == []
    with pytest.raises(DescriptorError, match="no unix socket"):
        far.take_descriptors(1)
    for end in (near, far, listener):
        end.close()
