"""A source's lanes as a whole: what they wait for, and for how long."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from aiomigrate.executor import JobExecutor
from aiomigrate.lane import Lane, Shared
from aiomigrate.lanes import Lanes
from aiomigrate.options import SendOptions
from aiomigrate.progress import Tracker
from aiomigrate.rate import RateLimit
from tests.support.turns import turns, until
from tests.support.vms import Guest


class _Main:
    """A main connection that answers RetireLane when it is told to."""

    def __init__(self) -> None:
        self.retiring: list[int] = []
        self.fenced = {1: asyncio.Event(), 2: asyncio.Event()}

    async def retire(self, number: int) -> None:
        self.retiring.append(number)
        await self.fenced[number].wait()

    async def carry(self, _: object) -> None:
        await asyncio.Event().wait()


def idle(number: int) -> Lane:
    connection = SimpleNamespace(abort=lambda: None)
    lane = SimpleNamespace(
        name=f"lane {number}", number=number, unanswered_chunks=(), connection=connection
    )
    return cast("Lane", lane)


async def test_closing_waits_for_every_fence() -> None:
    """The second lane is lost in the moment in which the first one has been fenced."""
    main: Any = _Main()
    with Guest() as guest, JobExecutor() as executor:
        shared = Shared(guest.memory, Tracker(), SendOptions(connections=2))
        async with asyncio.TaskGroup() as group:
            lanes = Lanes(main, shared, cast("Any", None), executor, group, RateLimit(0))
            lanes._live = [idle(1), idle(2)]
            error = ConnectionResetError()
            group.create_task(lanes._fence(lanes.lanes[0], error))
            await until(lambda: main.retiring)
            closing = group.create_task(lanes.close())
            await asyncio.sleep(0)
            main.fenced[1].set()
            group.create_task(lanes._fence(lanes.lanes[0], error))
            await until(lambda: len(main.retiring) > 1)
            await turns()
            assert not closing.done()
            main.fenced[2].set()
            await closing
            await lanes.stop()
