import asyncio

import pytest

from aiomigrate.tasks import outlive, root_cause, settle
from tests.support.turns import turns


async def test_settling_waits_however_often_it_is_cancelled(no_leaks: None) -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    settling = asyncio.create_task(settle(future))
    for _ in range(3):
        await turns()
        settling.cancel()
    await turns()
    assert not settling.done()
    future.set_result(1)
    assert await settling is True


async def test_settling_without_a_cancellation() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_exception(ValueError("its own affair"))
    assert await settle(future) is False
    assert isinstance(future.exception(), ValueError)


async def test_what_outlives_ends_before_the_cancellation_is_raised(no_leaks: None) -> None:
    gate, ended = asyncio.Event(), asyncio.Event()

    async def work() -> int:
        await gate.wait()
        ended.set()
        return 7

    task = asyncio.create_task(outlive(work()))
    await turns()
    task.cancel()
    await turns()
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_what_outlives_gives_its_result() -> None:
    async def work() -> int:
        return 7

    assert await outlive(work()) == 7


async def test_its_own_error_comes_before_the_cancellation(no_leaks: None) -> None:
    gate = asyncio.Event()

    async def work() -> None:
        await gate.wait()
        raise ValueError("first")

    task = asyncio.create_task(outlive(work()))
    await turns()
    task.cancel()
    gate.set()
    with pytest.raises(ValueError, match="first"):
        await task


def test_the_root_of_nested_groups_is_their_first() -> None:
    first, second = ValueError("first"), KeyError("second")
    inner = ExceptionGroup("inner", [first, second])
    assert root_cause(BaseExceptionGroup("outer", [inner, KeyboardInterrupt()])) is first
    assert root_cause(first) is first
