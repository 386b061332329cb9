import asyncio
import threading

import pytest

from aiomigrate.executor import JobExecutor

pytestmark = pytest.mark.usefixtures("no_leaks")


async def _turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


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
        await _turns()
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
