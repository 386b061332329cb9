import asyncio
import threading
from collections.abc import Generator

import pytest

from aiomigrate.executor import JobExecutor
from tests.support.turns import turns

pytestmark = pytest.mark.usefixtures("no_leaks")


def _fail() -> None:
    raise ValueError("in the job")


async def test_a_job_runs_in_a_thread_of_its_own() -> None:
    with JobExecutor() as executor:
        name, total = await executor.run(
            lambda a, b: (threading.current_thread().name, a + b), 3, 4
        )
        assert name.startswith("aiomigrate-job")
        assert total == 7
        with pytest.raises(ValueError, match="in the job"):
            await executor.run(_fail)


async def test_a_cancelled_wait_ends_with_the_job() -> None:
    running, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def job() -> None:
        loop.call_soon_threadsafe(running.set)
        assert released.wait(20)

    with JobExecutor() as executor:
        task = asyncio.create_task(executor.run(job))
        await running.wait()
        task.cancel()
        await turns()
        assert not task.done()
        released.set()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_the_error_of_a_job_whose_wait_was_cancelled_is_not_lost_in_a_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    running, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def job() -> None:
        loop.call_soon_threadsafe(running.set)
        assert released.wait(20)
        _fail()

    with JobExecutor() as executor:
        task = asyncio.create_task(executor.run(job))
        await running.wait()
        task.cancel()
        released.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert caplog.records == []


async def test_steps_are_a_job_each_and_their_result_comes_back() -> None:
    threads: list[threading.Thread] = []

    def steps() -> Generator[None, None, int]:
        for _ in range(3):
            threads.append(threading.current_thread())
            yield
        return len(threads)

    with JobExecutor() as executor:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turning = asyncio.create_task(turn())
        assert await executor.drive(steps()) == 3
        assert turns >= 3  # the loop ran between the steps
        turning.cancel()
    assert threading.main_thread() not in threads


async def test_steps_that_fail_or_are_cancelled_go_no_further() -> None:
    made: list[int] = []
    begun, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def steps() -> Generator[None, None, None]:
        made.append(1)
        yield
        made.append(2)
        loop.call_soon_threadsafe(begun.set)
        assert released.wait(20)
        yield
        made.append(3)

    def failing() -> Generator[None, None, None]:
        yield
        _fail()

    with JobExecutor() as executor:
        with pytest.raises(ValueError, match="in the job"):
            await executor.drive(failing())
        driving = asyncio.create_task(executor.drive(steps()))
        await begun.wait()
        driving.cancel()
        await turns()
        released.set()
        with pytest.raises(asyncio.CancelledError):
            await driving
        assert made == [1, 2]
