"""Anything at all, to `receive`: it ends well, and takes bounded memory."""

import asyncio
import subprocess
import sys
import textwrap

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiomigrate
from aiomigrate import (
    MigrationFailed,
    Owner,
    Phase,
)
from tests.engine.engine_hostile import GOOD, LOCAL
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import (
    ROLE_FAULT,
    ROLE_MEMORY,
    memory,
    migrate_whole,
    raw_sources,
    request,
    table,
)
from tests.support.image import PAGE
from tests.support.peer import (
    ABANDON,
    COMPLETE,
    COMPLETE_PAUSED,
    MEMORY,
)
from tests.support.vms import Landing

pytestmark = pytest.mark.usefixtures("no_leaks")

_MOST = 2**64 - 1


_BOUNDED = """
    import asyncio, resource, struct
    import aiomigrate
    from tests.support.hostile import *
    from tests.support.image import Mapping
    from tests.support.vms import Landing, STATE_JSON, config_of

    TIB = 1 << 40
    BIG = config_of([Mapping(0, 0, TIB, "mem0", False, 0)])

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    async def attack(state, data, rest, answer):
        with Landing() as landing:
            landing._memfds.make = sparse(landing)
            try:
                async with aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception:
                    with await Raw.connect(reception.address) as raw:
                        for request in state:
                            await raw.ask(request)
                        await raw.send_in_vain(data)
                        for piece in rest:
                            await raw.send_in_vain(piece)
                        raw.end()
                        got = await raw.rest()
                        assert got == (answer, "eof"), got
            except aiomigrate.MigrationFailed as error:
                print(str(error)[:120])
            else:
                raise AssertionError("not refused")

    def sparse(landing):
        import os
        def make(slot, size):  # no mapping of the test's own
            landing._memfds.fds[slot] = os.memfd_create("big", os.MFD_CLOEXEC)
            os.ftruncate(landing._memfds.fds[slot], size)
        return make

    start, config, ram = request(1), request(2, BIG), memory([(0, 4096)])
    page = table([(0, 4096)])
    attacks = [
        ([start], request(2, length=TIB), [], ERROR),
        ([start, config, ram], request(3, length=TIB), [], ERROR),
        ([start, config], request(4, length=TIB), [], ERROR),
        # As much as is allowed, and little of it comes.
        ([start], request(2, length=4 << 20), [bytes(1 << 20)], b""),
        ([start, config, ram], request(3, length=1 << 30), [bytes(1 << 20)], b""),
        # A table of 8 GiB is allowed for this guest: 64 MiB of it come, and go to a file.
        ([start, config], request(4, length=8 << 30), [page * 65536] * 64, b""),
    ]
    for attack_ in attacks[:1]:
        asyncio.run(attack(*attack_))  # warm
    before = peak()
    for attack_ in attacks:
        asyncio.run(attack(*attack_))
        print((peak() - before) >> 20, "MiB")
    assert peak() - before < 24 << 20, (peak() - before) >> 20
"""


def test_memory_use_is_bounded_whatever_is_claimed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_BOUNDED)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Anything at all.

_MESSAGES = st.one_of(
    st.sampled_from(list(GOOD.values())),
    st.sampled_from(list(GOOD.values())),
    st.sampled_from([request(COMPLETE), request(COMPLETE_PAUSED), request(ABANDON)]),
    st.sampled_from(
        [ROLE_MEMORY, ROLE_FAULT, memory([(PAGE, PAGE)]), ROLE_MEMORY + GOOD["Memory"]]
    ),
    st.builds(
        lambda command, payload, length: request(command, payload, length=length),
        st.integers(0, 11),
        st.binary(max_size=40),
        st.none() | st.integers(0, 64) | st.sampled_from([_MOST, _MOST - 15, 1 << 40]),
    ),
    st.builds(
        lambda pairs: request(MEMORY, table(pairs)),
        st.lists(st.tuples(st.integers(0, _MOST), st.integers(0, _MOST)), max_size=4),
    ),
    st.binary(min_size=1, max_size=40),
    st.builds(lambda data, at: data[:at], st.sampled_from(list(GOOD.values())), st.integers(1, 40)),
)
_MOVES = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 2]), _MESSAGES), max_size=12)
_OPENING = st.integers(0, 4).map(lambda n: [(0, data) for data in list(GOOD.values())[:n]])


@given(opening=_OPENING, moves=_MOVES)
@settings(
    max_examples=120,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_comes_ends_well(
    opening: list[tuple[int, bytes]], moves: list[tuple[int, bytes]]
) -> None:
    with asyncio.Runner(loop_factory=lambda: VirtualClockLoop(patience=0.002)) as runner:
        runner.run(_play(opening + moves))


async def _play(moves: list[tuple[int, bytes]]) -> None:
    """Three connections say what they say and end; the listener is unharmed or the error named."""
    with Landing() as landing:
        outcome: object = None
        try:
            async with aiomigrate.receive(landing, LOCAL) as reception:
                async with raw_sources(reception.address, 3) as raws:
                    for number, data in moves:
                        await raws[number].send_in_vain(data)
                        await asyncio.sleep(0.01)  # virtual: everything else has come to rest
                    for raw in raws:
                        raw.close()
                    await asyncio.wait([reception._task], timeout=0.01)
                if not reception._task.done() and reception.progress.phase is Phase.WAITING:
                    await migrate_whole(reception.address)
                outcome = await reception.result()
        except MigrationFailed as error:
            assert error.owner is Owner.SOURCE
            assert not error.what.startswith("destination: "), error  # what no code expected
            assert landing.runs is None
            assert len(landing.discarded) == ("configure" in landing.calls)
        else:
            assert isinstance(outcome, aiomigrate.Report)
            assert landing.runs is outcome.running
            assert not landing.discarded
