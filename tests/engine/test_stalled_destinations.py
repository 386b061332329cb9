"""Destinations that stop, drip or are slow, on a clock that jumps: every wait of `send` ends, and
honest destinations are not cut. The expected times are those of `Deadlines`' defaults, in seconds
of the loop's clock.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import (
    Deadlines,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    Report,
    SendOptions,
    StoredSource,
)
from tests.engine.engine_stalls import (
    ANSWER,
    LOCAL,
    NO_MEMORY_ANSWER,
    Watch,
    drip,
    exactly,
    files_in,
)
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import (
    OK,
    SMALL,
    Raw,
    Server,
)
from tests.support.image import PAGE, Mapping
from tests.support.peer import ABANDON, COMPLETE, CONFIG, MEMORY, START, STATE
from tests.support.vms import MIB, Guest, Landing, store_vm

pytestmark = [
    pytest.mark.asyncio(loop_factories=["virtual"]),
    pytest.mark.usefixtures("no_leaks"),
]

_KIB = 1024


@dataclass(frozen=True)
class _Halt:
    """The destination stops at `at`: with nothing more read or answered (`read` False), or its
    answer cut after `answered` bytes, each `every` seconds if they drip.
    """

    at: str
    after: tuple[float, float]
    read: bool = True
    answered: int = 0
    every: float = 0.0

    def __str__(self) -> str:
        how = "unread" if not self.read else f"answer[:{self.answered}]"
        return f"{self.at} {how}" + (" drips" if self.every else "")


_COMMANDS = {
    "Start": START,
    "Config": CONFIG,
    "Memory": MEMORY,
    "State": STATE,
    "Complete": COMPLETE,
}
_HALTS = (
    _Halt("Start", exactly(ANSWER)),
    _Halt("Start", exactly(ANSWER), answered=15),
    _Halt("Start", exactly(ANSWER), answered=15, every=25.0),
    _Halt("Start", exactly(ANSWER), read=False),
    _Halt("Config", exactly(ANSWER)),
    _Halt("Config", exactly(ANSWER), answered=8),
    _Halt("Config", exactly(ANSWER), read=False),
    _Halt("Memory", NO_MEMORY_ANSWER),
    _Halt("Memory", NO_MEMORY_ANSWER, answered=1),
    _Halt("Memory", NO_MEMORY_ANSWER, answered=15, every=5.0),
    _Halt("Memory", NO_MEMORY_ANSWER, read=False),
    _Halt("State", exactly(ANSWER)),
    _Halt("State", exactly(ANSWER), answered=15),
    _Halt("State", exactly(ANSWER), answered=15, every=25.0),
    _Halt("State", exactly(ANSWER), read=False),
    _Halt("Complete", exactly(ANSWER)),
    _Halt("Complete", exactly(ANSWER), answered=15),
    _Halt("Complete", exactly(ANSWER), answered=15, every=25.0),
    _Halt("Complete", exactly(ANSWER), read=False),
)


async def _serve(server: Server, halt: _Halt, watch: Watch) -> None:
    """Answer up to `halt`, do as it says, and stay until cancelled."""
    with await server.accept() as raw:
        last_ok = None
        while True:
            watch.restart()
            if last_ok == _BEFORE[halt.at] and not halt.read:
                break
            command, _ = await server.take_memory(raw)
            if command == _COMMANDS[halt.at]:
                break
            last_ok = command
            await raw.send(OK)
        if halt.every:
            await drip(raw, OK[: halt.answered], halt.every)
        else:
            await raw.send(OK[: halt.answered])
        await asyncio.Event().wait()


_BEFORE = {"Start": None, "Config": START, "Memory": CONFIG, "State": MEMORY, "Complete": STATE}


@contextlib.asynccontextmanager
async def _serving(
    halt: _Halt, receive_buffer: int | None = None
) -> AsyncIterator[tuple[str, Watch]]:
    watch = Watch()
    with Server(receive_buffer) as server:
        task = asyncio.create_task(_serve(server, halt, watch))
        try:
            yield server.address, watch
        finally:
            task.cancel()
            await asyncio.wait([task])


def _one_chunk() -> tuple[Mapping, ...]:
    return (Mapping(0, 0, 16 * PAGE, "mem0", virtio_mem=False, file_offset=0),)


@pytest.mark.parametrize("halt", _HALTS, ids=str)
async def test_a_destination_that_stops(halt: _Halt) -> None:
    with Guest(_one_chunk()) as guest:
        async with _serving(halt) as (address, watch):
            error: BaseException | None = None
            try:
                async with aiomigrate.send(guest, address):
                    pass
            except aiomigrate.MigrationError as caught:
                error = caught
            # Where the stream allows it Abandon is sent, and its answer waited for.
            linger = Deadlines().linger_s if halt.at == "Memory" else 0
            watch.took((halt.after[0], halt.after[1] + linger))
        if halt.at == "Complete":
            assert isinstance(error, OutcomeUnknown)
            assert "no answer to Complete in 300 s" in str(error)
            assert not guest.running
            assert guest.calls[-2:] == ["lost", "stop"]
        else:
            assert isinstance(error, MigrationFailed)
            assert error.owner is Owner.SOURCE
            seconds = "30" if halt.at == "Memory" else "300"
            assert f"no answer to {halt.at} in {seconds} s" in str(error)
            assert guest.running
            assert "lost" not in guest.calls
        assert not guest.dirty.on


_BIG = (Mapping(0, 0, 16 * MIB, "mem0", virtio_mem=False, file_offset=0),)
_BUFFER = 64 * _KIB


async def test_a_destination_that_stops_reading_in_the_middle_of_content() -> None:
    """Sockets hold less than a chunk: the write stands still, and the stream is cut in a request,
    where no Abandon belongs.
    """
    with Guest(_BIG) as guest, Server(_BUFFER) as server:

        async def destination() -> None:
            with await server.accept() as raw:
                for _ in range(2):
                    await server.request(raw)
                    await raw.send(OK)
                await server.request(raw)
                await raw.receive(100)
                watch.restart()
                await stopped.wait()
                rest, end = await raw.rest()
                ends.append((len(rest) < 16 * MIB, end))

        watch, stopped, ends = Watch(), asyncio.Event(), list[tuple[bool, str]]()
        task = asyncio.create_task(destination())
        with pytest.raises(MigrationFailed, match=r"stalled|no answer to Memory"):
            async with aiomigrate.send(guest, server.address):
                pass
        watch.took(NO_MEMORY_ANSWER)
        stopped.set()
        await task
        assert ends == [(True, "reset")]
        assert guest.running


async def test_a_destination_that_reads_and_answers_slowly_is_not_cut() -> None:
    """Each answer takes 29 s (Memory) or 299 s (the others)."""
    with Guest(_one_chunk()) as guest, Server() as server:

        async def destination() -> None:
            with await server.accept() as raw:
                while True:
                    command, _ = await server.take_memory(raw)
                    if command == -1:
                        return
                    await asyncio.sleep(29 if command == MEMORY else 299)
                    await raw.send(OK)

        task = asyncio.create_task(destination())
        watch = Watch()
        async with aiomigrate.send(guest, server.address, SendOptions(chunk_bytes=PAGE)) as sending:
            report = await sending.result()
        assert report.iterations >= 1
        assert watch.seconds >= 4 * 299 + 8 * 29
        await task
        assert guest.ended


async def test_acknowledged_bytes_count_though_no_answer_comes() -> None:
    """A chunk of 4 MiB that is read 256 KiB each 29 s has its answer after minutes."""
    with Guest((Mapping(0, 0, 4 * MIB, "mem0", virtio_mem=False, file_offset=0),)) as guest:
        with Server(_BUFFER) as server:

            async def destination() -> None:
                with await server.accept() as raw:
                    for _ in range(2):
                        await server.request(raw)
                        await raw.send(OK)
                    await server.request(raw)
                    for _ in range(8):  # Guest fills the first half
                        await asyncio.sleep(29)
                        assert len(await raw.receive(256 * _KIB)) == 256 * _KIB
                    await raw.send(OK)
                    while (await server.take_memory(raw))[0] != -1:
                        await raw.send(OK)

            task = asyncio.create_task(destination())
            watch = Watch()
            async with aiomigrate.send(guest, server.address) as sending:
                await sending.result()
            assert watch.seconds > 200
            await task
        assert guest.ended


async def test_one_lane_that_is_never_answered_ends_the_migration() -> None:
    with Guest(_BIG) as guest, Server() as server:

        async def lane(raw: Raw, *, answers: bool) -> None:
            await raw.receive(2)
            while (await server.take_memory(raw))[0] == MEMORY:
                if answers:
                    await raw.send(OK)
                else:
                    watch.restart()

        async def destination() -> None:
            with await server.accept() as main:
                for _ in range(2):
                    await server.request(main)
                    await main.send(OK)
                with await server.accept() as one, await server.accept() as two:
                    lanes = (lane(one, answers=True), lane(two, answers=False))
                    await asyncio.gather(give_up(main), *lanes)

        async def give_up(main: Raw) -> None:
            assert await server.request(main) == (ABANDON, b"")
            await main.send(OK)

        watch = Watch()
        task = asyncio.create_task(destination())
        options = SendOptions(connections=2, chunk_bytes=MIB)
        with pytest.raises(MigrationFailed) as caught:
            async with aiomigrate.send(guest, server.address, options):
                pass
        watch.took(NO_MEMORY_ANSWER)
        await task
        assert "lane " in str(caught.value)
        assert "no answer to Memory in 30 s" in str(caught.value)
        assert "1 of 2 lanes were never answered" in caught.value.hint
        assert guest.running


@pytest.mark.parametrize("at", ["Start", "Memory", "State", "Complete"])
async def test_a_stored_vm_is_untouched_by_a_destination_that_stops(
    at: str, tmp_path: Path
) -> None:
    vm = store_vm(tmp_path / "vm", _one_chunk())
    before = files_in(vm)
    halt = next(halt for halt in _HALTS if halt.at == at)
    async with _serving(halt) as (address, _), StoredSource(vm, resume=True) as source:
        with pytest.raises(aiomigrate.MigrationError):
            async with aiomigrate.send(source, address):
                pass
    after = files_in(vm)
    manifest = after.pop("aiomigrate.json", None)
    assert after == before
    if at in ("Start", "Memory"):
        assert manifest is None
        return
    assert manifest is not None
    last = json.loads(manifest)["history"][-1]
    assert last["event"] == "given"
    assert last["outcome"] == ("failed" if at == "State" else "unknown")


# Both ends are ours, and a hook of the embedder never returns.


@pytest.mark.parametrize("hook", ["config", "start", "collect 1", "pause", "capture", "hand_over"])
async def test_a_hook_of_the_source_that_never_returns(hook: str) -> None:
    with Guest(_one_chunk()) as guest, Landing() as landing:
        guest.script[hook] = asyncio.Event().wait
        watch = Watch()
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with pytest.raises(MigrationFailed, match="did not return in 300 s"):
                async with aiomigrate.send(guest, str(reception.address)):
                    pass
            watch.took((300, 301))
            with pytest.raises(MigrationFailed) as caught:
                await reception.result()
        assert "abandoned" in str(caught.value) or "nothing came" in str(caught.value)
        assert guest.running
        assert landing.runs is None


@pytest.mark.parametrize("hook", ["configure", "restore", "keep_paused"])
async def test_a_hook_of_the_destination_that_never_returns(hook: str) -> None:
    """The source waits as long for the answer, and either way it keeps the VM, or knows nothing."""
    with Guest(_one_chunk(), resumes=False) as guest, Landing() as landing:
        landing.script[hook] = asyncio.Event().wait
        options = aiomigrate.ReceiveOptions(deadlines=Deadlines(embedder_s=200.0))
        watch = Watch()
        async with aiomigrate.receive(landing, LOCAL, options) as reception:
            with pytest.raises(MigrationFailed, match="refused"):
                async with aiomigrate.send(guest, str(reception.address)):
                    pass
            watch.took((200, 201))
            with pytest.raises(MigrationFailed, match=f"{hook} did not return in 200 s"):
                await reception.result()
        assert guest.running
        assert landing.runs is None
        assert len(landing.discarded) == 1


async def test_the_clock_stood_still_while_a_migration_worked(clock: VirtualClockLoop) -> None:
    began = clock.time()
    with Guest(SMALL) as guest, Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            async with aiomigrate.send(guest, str(reception.address)) as sending:
                report = await sending.result()
            assert isinstance(report, Report)
            await reception.result()
        assert landing.digest() == guest.digest()
    assert clock.time() == began
