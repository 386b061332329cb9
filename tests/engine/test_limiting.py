"""What limited the speed, said of migrations that something slows down."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from aiomigrate import Account, MigrationCancelled, Report, SendOptions, receive, send
from aiomigrate.executor import JobExecutor
from aiomigrate.limiting import PoolState, Waits
from aiomigrate.testing import Delay, Direction, FaultRelay, Rate
from aiomigrate.transport import Connection, TcpTimes
from tests.support.clock import VirtualClockLoop
from tests.support.vms import MIB, Guest, Landing
from tests.testing.link_rig import connected, link

_LOCAL = "tcp:127.0.0.1:0"


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _never() -> float:
    """How long the writes of a connection have waited."""
    return 0.0


def _seconds(waits: Waits) -> dict[str, float]:
    judged = waits.judge()
    assert judged is not None
    return {limit: round(spent, 6) for limit, spent in judged.seconds.items() if spent}


def test_the_time_of_all_lanes_is_shared_out() -> None:
    clock = _Clock()
    waits = Waits(clock)
    assert waits.judge() is None, "no lane has spent any time"
    one, two = TcpTimes(0, 0), TcpTimes(0, 0)
    waited = 7.0  # by then
    with waits.carrying(lambda: one, lambda: waited), waits.carrying(lambda: two, _never):
        clock.now += 1
        with waits.chunk:
            clock.now += 2
            waits.pool(PoolState.PRODUCING)
            clock.now += 4
            with waits.payment:
                clock.now += 8
            with waits.chunk:
                clock.now += 16
            waits.pool(PoolState.DRAINING)
            clock.now += 32
        with waits.answers:
            clock.now += 64
        waited += 128
        clock.now += 128
        assert _seconds(waits) == {
            "between_iterations": 2,
            "memory": 4 + 2 * 16,
            "rate_limit": 8,
            "destination": 32 + 64 + 128,
            "processor": 1 * 2 + 2 + 4 + 8 + 32 + 64 + 128,
        }
        one, two = TcpTimes(100, 90), TcpTimes(1, 0)  # 11 s on the way to who would have taken more
        assert _seconds(waits)["link"] == 11
        assert _seconds(waits)["destination"] == 32 + 64 + 128 - 11
    one, two = TcpTimes(500, 0), TcpTimes(0, 0)
    assert _seconds(waits)["link"] == 11, "that was when it ended"
    clock.now += 1000
    judged = waits.judge()
    assert judged is not None
    assert sum(judged.seconds.values()) == 2 * 255, "a lane that is over spends no time"
    assert judged.cause == "processor"
    assert judged.share == (2 + 2 + 4 + 8 + 32 + 64 + 128) / (2 * 255)


def test_a_connection_that_carries_again_is_not_counted_twice() -> None:
    """The kernel's figures are those since it was made: the main one carries before the last pass,
    and in it.
    """
    clock = _Clock()
    waits = Waits(clock)
    times = TcpTimes(1, 0)  # of what came before all memory
    with waits.carrying(lambda: times, _never), waits.answers:
        clock.now += 10
        times = TcpTimes(5, 0)
        assert _seconds(waits) == {"link": 4, "destination": 6}
    assert _seconds(waits) == {"link": 4, "destination": 6}
    with waits.carrying(lambda: times, _never), waits.answers:
        clock.now += 1
        times = TcpTimes(6, 0)
        assert _seconds(waits) == {"link": 5, "destination": 6}
    assert _seconds(waits) == {"link": 5, "destination": 6}


async def _sent(
    options: SendOptions, faults: list[Any] | None = None, vm: Guest | None = None
) -> Report:
    landing = Landing()
    with vm or Guest() as guest, landing:
        async with (
            receive(landing, _LOCAL) as reception,
            FaultRelay(str(reception.address), faults=faults or ()) as relay,
            send(guest, relay.address, options) as migration,
        ):
            report = await migration.result()
            await reception.result()
        assert landing.digest() == guest.digest()
    return report


@pytest.mark.asyncio(loop_factories=["virtual"])
@pytest.mark.parametrize("connections", [1, 4])
async def test_the_rate_limit(clock: VirtualClockLoop, connections: int) -> None:
    report = await _sent(SendOptions(rate_limit=MIB, connections=connections))
    assert report.limited_by is not None
    assert report.limited_by.cause == "rate_limit"
    assert report.limited_by.share > 0.9
    assert json.loads(json.dumps(report.as_dict()))["limited_by"]["cause"] == "rate_limit"


@pytest.mark.asyncio(loop_factories=["virtual"])
async def test_a_disk_that_is_slow(
    clock: VirtualClockLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job that reads memory takes a second of the virtual clock."""
    run = JobExecutor.run

    async def slow(self: JobExecutor, job: Callable[..., Any], *arguments: Any) -> Any:
        if getattr(job, "__name__", "") == "_next_batch":
            await asyncio.sleep(1)
        return await run(self, job, *arguments)

    monkeypatch.setattr(JobExecutor, "run", slow)
    report = await _sent(SendOptions())
    assert report.limited_by is not None
    assert report.limited_by.cause == "memory"
    assert report.limited_by.share > 0.9
    assert report.limited_by.reading_s > 0


@pytest.mark.asyncio(loop_factories=["virtual"])
@pytest.mark.parametrize(
    "fault",
    [
        Delay(direction=Direction.DOWN, seconds=5.0),
        Rate(direction=Direction.UP, bytes_per_s=MIB),
    ],
    ids=str,
)
async def test_a_destination_that_reads_or_answers_slowly(
    clock: VirtualClockLoop, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel, whose clock is another one, says that nothing was on its way."""
    monkeypatch.setattr(Connection, "times", lambda _: TcpTimes(0, 0))
    report = await _sent(SendOptions(chunk_bytes=MIB), [fault])
    assert report.limited_by is not None
    assert report.limited_by.cause == "destination"
    assert report.limited_by.share > 0.9


@pytest.mark.asyncio(loop_factories=["virtual"])
async def test_a_vmm_that_takes_its_time_between_iterations(clock: VirtualClockLoop) -> None:
    guest = Guest()
    guest.script["collect 1"] = lambda: asyncio.sleep(20)
    report = await _sent(SendOptions(), vm=guest)
    assert report.limited_by is not None
    assert report.limited_by.cause == "between_iterations"


@pytest.mark.asyncio(loop_factories=["virtual"])
async def test_a_cancelled_one_says_it_too(clock: VirtualClockLoop) -> None:
    with Guest() as guest, Landing() as landing:
        async with receive(landing, _LOCAL) as reception:
            with contextlib.suppress(MigrationCancelled):
                async with send(
                    guest, str(reception.address), SendOptions(rate_limit=MIB)
                ) as migration:
                    while migration.progress.bytes_done < MIB:
                        await asyncio.sleep(0.1)  # virtual: the next bytes are paid for
                    migration.cancel()
                    await migration.result()
            account: Account = migration.account()
            with contextlib.suppress(Exception):
                await reception.result()
            assert reception.account().limited_by is None, "a destination does not know"
    assert account.limited_by is not None
    assert account.limited_by.cause == "rate_limit"


@pytest.mark.asyncio(loop_factories=["virtual"])
async def test_a_write_that_stalls_is_told_while_it_does(clock: VirtualClockLoop) -> None:
    """Not only when it ends: until then it would be the processor's time."""
    near, far = socket.socketpair()
    near.setblocking(False)
    connection = Connection(near, "far", "")
    waits = Waits(clock.time)
    with far, waits.carrying(lambda: None, lambda: connection.write_wait_s):
        writing = asyncio.create_task(connection.write(bytes(4 * MIB)))
        await asyncio.sleep(20)
        assert _seconds(waits) == {"destination": 20}
        writing.cancel()
        await asyncio.wait([writing])
        connection.abort()
    assert _seconds(waits) == {"destination": 20}


def test_the_network_itself() -> None:
    """A real one of 4 MB/s, whose far end reads all that comes."""
    with link(rate=4e6, delay_s=0.005) as over, connected(over) as (near, far):
        assert asyncio.run(_judge_writing(near, far, 2 * MIB)) == "link"


def test_a_reader_that_does_not_read() -> None:
    """The kernel's own figures: nothing is read until it says that the window was full for long."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        with near, far:
            judged = asyncio.run(_judge_writing(near, far, 32 * MIB, full_s=1.0))
            assert judged == "destination"


async def _judge_writing(
    near: socket.socket, far: socket.socket, nbytes: int, full_s: float = 0.0
) -> str:
    """Write to `far`, which reads all of it once its window was full for so long: the limit that is
    named.
    """
    near.setblocking(False)
    connection = Connection(near.dup(), "far", "")

    def read() -> None:
        while (times := connection.times()) is not None and times.receiver_s < full_s:
            time.sleep(0.01)  # only the kernel knows
        left = nbytes
        while left:
            left -= len(far.recv(min(left, MIB)))

    reader = threading.Thread(target=read)
    reader.start()
    waits = Waits(asyncio.get_running_loop().time)
    try:
        with waits.carrying(connection.times, lambda: connection.write_wait_s):
            await connection.write(bytes(nbytes))
        judged = waits.judge()
    finally:
        connection.abort()
        reader.join()
    assert judged is not None
    return judged.cause
