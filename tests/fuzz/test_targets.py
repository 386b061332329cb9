"""Each target on its corpus and on a few thousand changes of it, the same ones each time.

Fuzzing with libFuzzer takes hours and is `make fuzz`; this shows that the targets work, that they
see what is wrong, and that what was found once stays mended.
"""

import asyncio
import gc
import logging
import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate import Phase
from aiomigrate.memory.map import VmConfig
from aiomigrate.protocol.machine import RequestReceiver
from aiomigrate.receiving import Receiving
from fuzz.corpus import seeds
from fuzz.mutation import STRUCTURED, mutate_bytes
from fuzz.parsers import PARSERS, Broken
from fuzz.reception import CONNECTIONS, Move, Player, decode_moves, encode_moves, receive
from fuzz.targets import TARGETS

CHANGES = 3000
RECEPTIONS = 600


def changed(name: str, count: int, seed: int = 1) -> Iterator[bytes]:
    """`count` inputs that grew from the corpus: a changed one may be changed again."""
    chance = random.Random(seed)
    pool = seeds(name)
    structured = STRUCTURED.get(name, mutate_bytes)
    for _ in range(count):
        data = (structured if chance.randrange(4) else mutate_bytes)(chance.choice(pool), chance)
        if chance.randrange(8) == 0:
            pool.append(data[:4096])
        yield data


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    inputs = seeds(name)
    assert inputs
    for data in inputs:
        TARGETS[name](data)


@pytest.mark.parametrize("name", PARSERS)
def test_a_few_thousand_changes(name: str) -> None:
    for data in changed(name, CHANGES):
        TARGETS[name](data)


def test_a_few_hundred_receptions() -> None:
    for data in changed("receive", RECEPTIONS):
        receive(data)


@pytest.fixture
def no_log() -> Iterator[None]:
    """Without log: pytest keeps what is logged."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("no_log")
def test_receptions_leave_nothing_behind() -> None:
    inputs = [*seeds("receive"), *changed("receive", 60)]

    def objects() -> int:
        for data in inputs:
            receive(data)
        gc.collect()
        return len(gc.get_objects())

    objects()  # caches fill
    before = objects()
    assert objects() - before < len(inputs)


@given(
    st.lists(
        st.builds(
            Move,
            st.integers(0, CONNECTIONS - 1),
            st.binary(max_size=300),
            rest=st.booleans(),
            ends=st.booleans(),
            breaks=st.booleans(),
        )
    )
)
def test_moves_come_back(moves: list[Move]) -> None:
    assert decode_moves(encode_moves(moves)) == moves


class TestWhatTheTargetsSee:
    """A fuzzer that finds nothing has to show that it could."""

    seed = seeds("receive")[0]

    @pytest.fixture
    def player(self) -> Iterator[Player]:
        with Player() as player:
            yield player

    def test_an_exception_that_is_not_documented(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def parse(raw: bytes) -> VmConfig:
            raise KeyError(raw[:1])

        monkeypatch.setattr(VmConfig, "parse", parse)
        with pytest.raises(KeyError):
            TARGETS["config"](seeds("config")[0])
        with Player() as player, pytest.raises(Broken, match="KeyError"):
            player.play(self.seed)

    def test_a_core_that_wants_more_after_it_failed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(RequestReceiver, "wanted", 16)
        with pytest.raises(Broken, match="wants more"):
            TARGETS["destination_main"](b"\0\0" + bytes(16))

    def test_a_reception_that_never_ends(
        self, player: Player, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def run(self: Receiving) -> None:
            self.tracker.phase = Phase.PRECOPY
            await asyncio.Event().wait()

        monkeypatch.setattr(Receiving, "run", run)
        with pytest.raises(TimeoutError):
            player.play(self.seed)

    def test_a_task_that_is_left(self, player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Receiving.run
        left: list[asyncio.Task[bool]] = []

        async def run(self: Receiving) -> object:
            left.append(asyncio.create_task(asyncio.Event().wait()))
            return await real(self)

        monkeypatch.setattr(Receiving, "run", run)
        with pytest.raises(Broken, match="tasks are left"):
            player.play(self.seed)

    def test_a_descriptor_that_is_left(
        self, player: Player, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = Receiving.run
        left: list[int] = []

        async def run(self: Receiving) -> object:
            left.append(os.dup(0))
            return await real(self)

        monkeypatch.setattr(Receiving, "run", run)
        with pytest.raises(Broken, match="descriptor"):
            player.play(self.seed)
        os.close(left[0])
