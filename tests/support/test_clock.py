import asyncio
import socket
import threading

import pytest

from tests.support.captures import load
from tests.support.clock import VirtualClockLoop
from tests.support.peer import Peer

pytestmark = pytest.mark.asyncio(loop_factories=["virtual"])


async def test_a_deadline_passes_at_once(clock: VirtualClockLoop) -> None:
    """Else it would not end in time."""
    begin = clock.time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(300):
            await asyncio.Event().wait()
    assert clock.time() - begin == pytest.approx(300)


async def test_timers_run_in_order(clock: VirtualClockLoop) -> None:
    seen: list[tuple[int, float]] = []
    begin = clock.time()

    async def after(seconds: int) -> None:
        await asyncio.sleep(seconds)
        seen.append((seconds, clock.time() - begin))

    await asyncio.gather(after(30), after(10), after(20))
    assert [seconds for seconds, _ in seen] == [10, 20, 30]
    assert [moment for _, moment in seen] == pytest.approx([10, 20, 30])


async def test_the_clock_stands_still_while_bytes_flow(clock: VirtualClockLoop) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        begin = clock.time()
        async with asyncio.timeout(1):
            for _ in range(100):
                await clock.sock_sendall(left, b"x")
                assert await clock.sock_recv(right, 1) == b"x"
        assert clock.time() == begin


async def test_a_job_in_an_executor_holds_the_clock(clock: VirtualClockLoop) -> None:
    begin = clock.time()
    released = threading.Event()
    # Real time, and ten times the loop's patience.
    timer = threading.Timer(10 * clock.patience, released.set)
    timer.start()
    async with asyncio.timeout(5):
        assert await asyncio.to_thread(released.wait, 20)
    assert clock.time() == begin
    timer.join()


async def test_a_cancelled_job_holds_the_clock_until_it_ends(clock: VirtualClockLoop) -> None:
    started, released = threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        released.wait(20)

    task = asyncio.create_task(asyncio.to_thread(job))
    assert await asyncio.to_thread(started.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.busy()
    released.set()
    begin = clock.time()
    await asyncio.sleep(30)
    assert clock.time() - begin == pytest.approx(30)


async def test_a_watched_thread_holds_the_clock(clock: VirtualClockLoop) -> None:
    working = threading.Event()
    working.set()
    clock.watch(working.is_set)
    timer = threading.Timer(10 * clock.patience, working.clear)
    timer.start()
    await asyncio.sleep(30)
    assert not working.is_set()
    timer.join()


async def test_who_ends_while_it_is_asked_is_not_missed(clock: VirtualClockLoop) -> None:
    """The wait for descriptors is over by then, and what ended has woken the loop."""
    ended = asyncio.Event()

    def busy() -> bool:
        clock.call_soon_threadsafe(ended.set)
        return False

    clock.watch(busy)
    begin = clock.time()
    async with asyncio.timeout(300):
        await ended.wait()
    assert clock.time() == begin


async def test_a_silent_peer_does_not_hold_the_clock(clock: VirtualClockLoop) -> None:
    config = load("one").streams[0]
    begin = clock.time()
    with Peer() as peer:
        clock.watch(peer.busy)
        reader, writer = await asyncio.open_connection(*_host_and_port(peer.address))
        writer.write(config.data[:24])
        assert await reader.readexactly(16) == config.answers[:16]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(300):
                await reader.read(1)
        writer.close()
        await writer.wait_closed()
    assert clock.time() - begin == pytest.approx(300)


def _host_and_port(address: str) -> tuple[str, int]:
    _, host, port = address.split(":")
    return host, int(port)
