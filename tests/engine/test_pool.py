import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiomigrate.pool as pool_module
from aiomigrate.executor import JobExecutor
from aiomigrate.memory.ranges import Table, make_table
from aiomigrate.pool import Chunk, WorkPool, Zeros, chunks_of
from aiomigrate.progress import Tracker
from aiomigrate.rate import RateLimit
from tests.support.clock import VirtualClockLoop
from tests.support.turns import until
from tests.support.vms import MIB, Guest

_PAGE = 4096


@given(
    ranges=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 64)), min_size=1, max_size=50)
)
@settings(max_examples=100)
def test_chunks_are_the_tables_cut(ranges: list[tuple[int, int]]) -> None:
    pairs = [(gpa * _PAGE, pages * _PAGE) for gpa, pages in ranges]
    chunks = list(chunks_of(iter([make_table(pairs)]), 16 * _PAGE))
    assert all(0 < chunk.nbytes <= 16 * _PAGE for chunk in chunks)
    assert [chunk.nbytes for chunk in chunks] == [int(c.table["length"].sum()) for c in chunks]
    assert _pages(chunks) == [
        page for gpa, length in pairs for page in range(gpa // _PAGE, (gpa + length) // _PAGE)
    ]


def _pages(chunks: list[Chunk]) -> list[int]:
    return [
        page
        for chunk in chunks
        for gpa, length in chunk.table.tolist()
        for page in range(gpa // _PAGE, (gpa + length) // _PAGE)
    ]


def test_a_chunk_has_a_bounded_table_however_short_its_ranges_are() -> None:
    table = make_table([(2 * page * _PAGE, _PAGE) for page in range(40000)])
    chunks = list(chunks_of(iter([table]), 1 << 40))
    assert [len(chunk.table) for chunk in chunks] == [16384, 16384, 7232]


def test_tables_are_cut_one_by_one() -> None:
    made = []

    def tables() -> Iterator[Table]:
        for number in range(3):
            made.append(number)
            yield make_table([(number * MIB, MIB)])

    chunks = chunks_of(tables(), 4 * MIB)
    next(chunks)
    assert made == [0]
    assert [chunk.nbytes for chunk in chunks] == [MIB, MIB]


async def test_chunks_are_made_as_they_are_taken(
    no_leaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_JOB_S", 60.0)  # a job ends by number, not by time
    made = 0

    def tables() -> Iterator[Table]:
        nonlocal made
        for number in range(64):
            made += 1
            yield make_table([(number * _PAGE, _PAGE)])

    with Guest() as guest, JobExecutor() as executor:
        pool = WorkPool(guest.memory, executor, 2, Tracker(), RateLimit(0))
        producing = asyncio.create_task(pool.produce(chunks_of(tables(), MIB)))
        taken: list[Chunk] = []
        # Two chunks a lane are ready, and as many wait for their place.
        await until(lambda: pool._queue.qsize() == 4 and made == 8)
        for _ in range(64):  # as many jobs as it would need for all of them
            await executor.run(lambda: None)
        assert (pool._queue.qsize(), made) == (4, 8)
        assert not producing.done()
        while len(taken) < 64:
            taken.append(await pool.take())
            pool.done()
            assert made <= len(taken) + 4 + 4 + 2
        await pool.drained()
        assert await producing == sum(chunk.nbytes for chunk in taken) == 64 * _PAGE
        assert _pages(taken) == list(range(64))


async def test_every_chunk_is_resident_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with Guest() as guest, JobExecutor() as executor:
        populated: list[list[tuple[int, int]]] = []
        loops_thread = threading.get_ident()

        def populate(table: Table) -> None:
            assert threading.get_ident() != loops_thread
            populated.append(table.tolist())

        monkeypatch.setattr(guest.memory, "populate_read", populate)
        pool = WorkPool(guest.memory, executor, 1, Tracker(), RateLimit(0))
        table = make_table([(0, MIB), (2 * MIB, MIB)])
        producing = asyncio.create_task(pool.produce(chunks_of(iter([table]), MIB // 2)))
        for _ in range(4):
            assert (await pool.take()).table.tolist() in populated
        assert await producing == 2 * MIB
        assert len(populated) == 4


async def test_the_gate_waits_for_every_answer_and_for_what_is_put_back() -> None:
    with Guest() as guest, JobExecutor() as executor:
        pool = WorkPool(guest.memory, executor, 1, Tracker(), RateLimit(0))
        table = make_table([(page * _PAGE, _PAGE) for page in range(4)])
        producing = asyncio.create_task(pool.produce(chunks_of(iter([table]), _PAGE)))
        first, second = await pool.take(), await pool.take()
        # The lane that took both is lost; there is room for that however full the pool is.
        pool.put_back([first, second])
        gate = asyncio.create_task(pool.drained())
        again = [await pool.take() for _ in range(4)]
        assert await producing == 4 * _PAGE
        assert sorted(_pages(again)) == [0, 1, 2, 3]
        for _ in range(3):
            pool.done()
        await asyncio.wait([gate], timeout=0)
        assert not gate.done()
        pool.done()
        await gate
        # What was put back took no room from the producer.
        assert pool._room._value == 2


async def test_a_slow_disk_does_not_hold_back_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "_JOB_S", 0.0)  # every chunk takes longer than that
    with Guest() as guest, JobExecutor() as executor:
        pool = WorkPool(guest.memory, executor, 1, Tracker(), RateLimit(0))
        batches = iter(chunks_of(iter([make_table([(0, MIB)])]), MIB // 4))
        assert len(pool._next_batch(batches, Zeros.SENT, None)) == 1
        monkeypatch.setattr(pool_module, "_JOB_S", 60.0)
        assert len(pool._next_batch(batches, Zeros.SENT, None)) == 2


async def test_an_error_of_the_producer_comes_out() -> None:
    def broken() -> Iterator[Table]:
        yield make_table([(0, _PAGE)])
        raise OSError(5, "the disk is gone")

    with Guest() as guest, JobExecutor() as executor:
        pool = WorkPool(guest.memory, executor, 1, Tracker(), RateLimit(0))
        with pytest.raises(OSError, match="the disk is gone"):
            await pool.produce(chunks_of(broken(), MIB))


def test_a_chunk_is_a_slice_of_its_table() -> None:
    table = make_table([(0, MIB), (2 * MIB, MIB)])
    chunks = list(chunks_of(iter([table]), 4 * MIB))
    assert [chunk.nbytes for chunk in chunks] == [2 * MIB]
    assert np.array_equal(chunks[0].table, table)


@pytest.mark.asyncio(loop_factories=["virtual"])
async def test_lanes_that_wait_for_the_limit_go_ahead_one_by_one(clock: VirtualClockLoop) -> None:
    taken: list[float] = []

    async def lane(pool: WorkPool) -> None:
        await pool.take()
        taken.append(clock.time())
        pool.done()

    with Guest() as guest, JobExecutor() as executor:
        pool = WorkPool(guest.memory, executor, 4, Tracker(), RateLimit(MIB))
        table = make_table([(0, 4 * MIB)])
        async with asyncio.TaskGroup() as group:
            group.create_task(pool.produce(chunks_of(iter([table]), MIB)))
            for _ in range(4):
                group.create_task(lane(pool))
    assert taken == [pytest.approx(1000.0 + second) for second in range(4)]
