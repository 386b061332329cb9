"""Peers that stop, drip or are slow, on a clock that jumps: every wait ends, and honest peers are
not cut. The expected times are those of `Deadlines`' defaults, in seconds of the loop's clock.
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
    Pace,
    Phase,
    Report,
    SendOptions,
    StoredDestination,
    StoredSource,
)
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import (
    ERROR,
    OK,
    ROLE_MEMORY,
    SMALL,
    SMALL_CONFIG,
    Raw,
    Server,
    memory,
    migrate_whole,
    request,
)
from tests.support.image import PAGE, Mapping
from tests.support.peer import ABANDON, COMPLETE, CONFIG, MEMORY, START, STATE
from tests.support.vms import MIB, STATE_JSON, Guest, Landing, config_of, store_vm

pytestmark = [
    pytest.mark.asyncio(loop_factories=["virtual"]),
    pytest.mark.usefixtures("no_leaks"),
]

_LOCAL = "tcp:127.0.0.1:0"
_KIB = 1024
# What a destination is sent, in order.
_SENT = {
    "Start": request(START),
    "Config": request(CONFIG, SMALL_CONFIG),
    "Memory": memory([(0, PAGE), (63 * PAGE, PAGE)]),
    "State": request(STATE, STATE_JSON),
    "Complete": request(COMPLETE),
}
_HEADER, _PACE, _ANSWER, _MEMORY_ANSWER = 10, 30, 300, 30
# Silence is looked for four times in its limit: it is known to a quarter.
_IDLE = (300, 375)
_NO_MEMORY_ANSWER = (30, 37.5)


@dataclass(frozen=True)
class _Cut:
    """The source stops after `sent` bytes of `message`; the destination waits `after` seconds."""

    message: str
    sent: int
    after: tuple[float, float]
    says: str

    def __str__(self) -> str:
        return f"{self.message}[:{self.sent}]"


def _exactly(seconds: float) -> tuple[float, float]:
    return (seconds, seconds + 0.001)


_CUTS = (
    _Cut("Config", 0, _IDLE, "nothing came on any connection in 300 s"),
    _Cut("Config", 1, _exactly(_HEADER), "read stalled: 0 bytes in 10 s"),
    _Cut("Config", 15, _exactly(_HEADER), "read stalled: 0 bytes in 10 s"),
    _Cut("Config", 16, _exactly(_PACE), "read stalled: 0 bytes in 30 s"),
    _Cut("Config", 17, _exactly(_PACE), "read stalled: 1 bytes in 30 s"),
    _Cut("Config", len(_SENT["Config"]) - 1, _exactly(_PACE), "in 30 s"),
    _Cut("Memory", 0, _IDLE, "nothing came on any connection in 300 s"),
    _Cut("Memory", 8, _exactly(_HEADER), "read stalled: 0 bytes in 10 s"),
    _Cut("Memory", 16, _exactly(_PACE), "read stalled: 0 bytes in 30 s, at least 32"),
    _Cut("Memory", 32, _exactly(_PACE), "read stalled: 16 bytes in 30 s, at least 32"),
    _Cut("Memory", 48, _exactly(_PACE), "read stalled: 0 bytes in 30 s, at least 8192"),
    _Cut("Memory", 48 + PAGE, _exactly(_PACE), "read stalled: 4096 bytes in 30 s"),
    _Cut("Memory", 47 + 2 * PAGE, _exactly(_PACE), "read stalled: 8191 bytes in 30 s"),
    _Cut("State", 0, _IDLE, "nothing came on any connection in 300 s"),
    _Cut("State", 3, _exactly(_HEADER), "read stalled"),
    _Cut("State", 16, _exactly(_PACE), "read stalled: 0 bytes in 30 s"),
    _Cut("State", 40, _exactly(_PACE), "read stalled: 24 bytes in 30 s"),
    _Cut("Complete", 0, _IDLE, "nothing came on any connection in 300 s"),
    _Cut("Complete", 15, _exactly(_HEADER), "read stalled"),
)


class _Watch:
    """Seconds of the loop's clock."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    @property
    def seconds(self) -> float:
        return self._loop.time() - self._began

    def restart(self) -> None:
        self._began = self._loop.time()

    def took(self, limits: tuple[float, float]) -> None:
        assert limits[0] - 1e-6 <= self.seconds <= limits[1] + 1e-3, self.seconds


# Sources that stop, towards `receive`.


@pytest.mark.parametrize("cut", _CUTS, ids=str)
async def test_a_source_that_stops(cut: _Cut) -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                for name, data in _SENT.items():
                    if name == cut.message:
                        break
                    await raw.ask(data)
                watch = _Watch()
                await raw.send(_SENT[cut.message][: cut.sent])
                with pytest.raises(MigrationFailed) as caught:
                    await reception.result()
                watch.took(cut.after)
                assert (await raw.rest())[0] == b""
                assert f"{raw.name}: " in str(caught.value)
        assert cut.says in str(caught.value)
        assert len(landing.discarded) == (cut.message != "Config")
        assert landing.runs is None


_LANE_CUTS = (
    (ROLE_MEMORY + _SENT["Memory"], len(ROLE_MEMORY + _SENT["Memory"]) + 1, _exactly(_HEADER)),
    (ROLE_MEMORY + _SENT["Memory"], len(ROLE_MEMORY + _SENT["Memory"]) + 16, _exactly(_PACE)),
    (ROLE_MEMORY + _SENT["Memory"], len(ROLE_MEMORY + _SENT["Memory"]) + 32, _exactly(_PACE)),
    (ROLE_MEMORY + _SENT["Memory"], len(ROLE_MEMORY + _SENT["Memory"]) + 48, _exactly(_PACE)),
    (ROLE_MEMORY + _SENT["Memory"], len(ROLE_MEMORY + _SENT["Memory"]) + 5000, _exactly(_PACE)),
    (ROLE_MEMORY + _SENT["Memory"], len(ROLE_MEMORY + _SENT["Memory"]), _IDLE),
    # The first Memory of a lane: once its table is good it is one, and before that a stranger.
    (b"", len(ROLE_MEMORY) + 48, _exactly(_PACE)),
    (b"", len(ROLE_MEMORY) + 32, _IDLE),
    (b"", len(ROLE_MEMORY) + 7, _IDLE),
    (b"", 1, _IDLE),
    (b"", 0, _IDLE),
)


@pytest.mark.parametrize(("before", "sent", "after"), _LANE_CUTS)
async def test_a_lane_that_stops(before: bytes, sent: int, after: tuple[float, float]) -> None:
    stream = (ROLE_MEMORY + _SENT["Memory"] * 2)[:sent]
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with (
                await Raw.connect(reception.address) as main,
                await Raw.connect(reception.address) as lane,
            ):
                await main.ask(_SENT["Start"])
                await main.ask(_SENT["Config"])
                watch = _Watch()
                if before:
                    await lane.ask(before)
                await lane.send(stream[len(before) :])
                with pytest.raises(MigrationFailed) as caught:
                    await reception.result()
                watch.took(after)
                name = main.name if after is _IDLE else lane.name
                assert f"{name}: " in str(caught.value)
        assert len(landing.discarded) == 1


async def test_a_stranger_that_stops_is_dropped_and_the_source_still_comes() -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with (
                await Raw.connect(reception.address) as one,
                await Raw.connect(reception.address) as half,
            ):
                watch = _Watch()
                await one.send(b"\1")
                await half.send(_SENT["Start"][:9])
                assert await one.rest() == (b"", "eof")
                assert await half.rest() == (b"", "eof")
                watch.took(_exactly(_HEADER))
                assert reception.progress.phase is Phase.WAITING
                await asyncio.sleep(100_000)  # a destination waits for its source for ever
                await migrate_whole(reception.address)
            assert (await reception.result()).confirmed


async def test_a_refused_source_that_does_not_close() -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await raw.ask(_SENT["Start"])
                watch = _Watch()
                await raw.send(_SENT["State"])
                assert await raw.rest() == (ERROR, "eof")
                watch.took(_exactly(0))
                with pytest.raises(MigrationFailed, match="got State"):
                    await reception.result()
                watch.took(_exactly(Deadlines().linger_s))


async def test_a_source_that_does_not_confirm() -> None:
    """It has its Ok, perhaps, and does not close: the VM is here, and that is not confirmed."""
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                for data in _SENT.values():
                    await raw.ask(data)
                watch = _Watch()
                report = await reception.result()
                watch.took(_exactly(120))
        assert landing.runs is True
        assert not report.confirmed
        assert "confirmed" not in landing.calls


async def _drip(raw: Raw, data: bytes, every: float) -> None:
    with contextlib.suppress(OSError):
        for byte in data:
            await raw.send(bytes([byte]))
            await asyncio.sleep(every)


@pytest.mark.parametrize(
    ("message", "sent", "after"),
    [
        ("Config", 0, _exactly(_HEADER)),
        ("Config", 16, _exactly(_PACE)),
        ("Memory", 0, _exactly(_HEADER)),
        ("Memory", 16, _exactly(_PACE)),
        ("Memory", 48, _exactly(_PACE)),
        ("State", 16, _exactly(_PACE)),
        ("Complete", 0, _exactly(_HEADER)),
    ],
)
async def test_a_source_that_drips(message: str, sent: int, after: tuple[float, float]) -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                for name, data in _SENT.items():
                    if name == message:
                        break
                    await raw.ask(data)
                watch = _Watch()
                await raw.send(_SENT[message][:sent])
                dripping = asyncio.create_task(_drip(raw, _SENT[message][sent:], 2.0))
                with pytest.raises(MigrationFailed, match="read stalled"):
                    await reception.result()
                watch.took(after)
                dripping.cancel()
                await asyncio.wait([dripping])
        assert landing.runs is None


async def test_a_slow_source_is_not_cut() -> None:
    """64 KiB of content each 29 s, a header in 9 s, and 299 s between requests."""
    ram = 512 * _KIB
    config = config_of([Mapping(0, 0, ram, "mem0", virtio_mem=False, file_offset=0)])
    content = bytes(range(256)) * (ram // 256)
    data = memory([(0, ram)], content)
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await raw.ask(_SENT["Start"])
                await asyncio.sleep(299)
                await raw.ask(request(CONFIG, config))
                await asyncio.sleep(299)
                await raw.send(data[:1])
                await asyncio.sleep(9)
                await raw.send(data[1:16])
                await asyncio.sleep(29)
                await raw.send(data[16:32])
                for at in range(32, len(data), 64 * _KIB):
                    await asyncio.sleep(29)
                    await raw.send(data[at : at + 64 * _KIB])
                assert await raw.receive(16) == OK
                await raw.ask(_SENT["State"])
                await asyncio.sleep(299)
                await raw.ask(_SENT["Complete"])
            await reception.result()
        assert landing.view(0)[:ram] == content


async def test_a_lane_that_moves_keeps_the_silent_main_connection_alive() -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            with (
                await Raw.connect(reception.address) as main,
                await Raw.connect(reception.address) as lane,
            ):
                await main.ask(_SENT["Start"])
                await main.ask(_SENT["Config"])
                await lane.ask(ROLE_MEMORY + _SENT["Memory"])
                watch = _Watch()
                for _ in range(6):
                    await asyncio.sleep(290)
                    await lane.ask(_SENT["Memory"])
                assert watch.seconds > 1700
                await main.ask(_SENT["State"])
                await main.ask(_SENT["Complete"])
            await reception.result()
        assert landing.runs is True


def _files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


async def test_nothing_is_left_of_a_stalled_reception_into_a_directory(tmp_path: Path) -> None:
    watch = _Watch()
    async with (
        StoredDestination(tmp_path / "vm") as destination,
        aiomigrate.receive(destination, _LOCAL) as reception,
    ):
        with await Raw.connect(reception.address) as raw:
            await raw.ask(_SENT["Start"])
            await raw.ask(_SENT["Config"])
            await raw.send(_SENT["Memory"][:100])
            with pytest.raises(MigrationFailed, match="read stalled"):
                await reception.result()
    watch.took(_exactly(_PACE))
    assert _files(tmp_path) == {}


# Destinations that stop, towards `send`.


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
    _Halt("Start", _exactly(_ANSWER)),
    _Halt("Start", _exactly(_ANSWER), answered=15),
    _Halt("Start", _exactly(_ANSWER), answered=15, every=25.0),
    _Halt("Start", _exactly(_ANSWER), read=False),
    _Halt("Config", _exactly(_ANSWER)),
    _Halt("Config", _exactly(_ANSWER), answered=8),
    _Halt("Config", _exactly(_ANSWER), read=False),
    _Halt("Memory", _NO_MEMORY_ANSWER),
    _Halt("Memory", _NO_MEMORY_ANSWER, answered=1),
    _Halt("Memory", _NO_MEMORY_ANSWER, answered=15, every=5.0),
    _Halt("Memory", _NO_MEMORY_ANSWER, read=False),
    _Halt("State", _exactly(_ANSWER)),
    _Halt("State", _exactly(_ANSWER), answered=15),
    _Halt("State", _exactly(_ANSWER), answered=15, every=25.0),
    _Halt("State", _exactly(_ANSWER), read=False),
    _Halt("Complete", _exactly(_ANSWER)),
    _Halt("Complete", _exactly(_ANSWER), answered=15),
    _Halt("Complete", _exactly(_ANSWER), answered=15, every=25.0),
    _Halt("Complete", _exactly(_ANSWER), read=False),
)


async def _serve(server: Server, halt: _Halt, watch: _Watch) -> None:
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
            await _drip(raw, OK[: halt.answered], halt.every)
        else:
            await raw.send(OK[: halt.answered])
        await asyncio.Event().wait()


_BEFORE = {"Start": None, "Config": START, "Memory": CONFIG, "State": MEMORY, "Complete": STATE}


@contextlib.asynccontextmanager
async def _serving(
    halt: _Halt, receive_buffer: int | None = None
) -> AsyncIterator[tuple[str, _Watch]]:
    watch = _Watch()
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

        watch, stopped, ends = _Watch(), asyncio.Event(), list[tuple[bool, str]]()
        task = asyncio.create_task(destination())
        with pytest.raises(MigrationFailed, match=r"stalled|no answer to Memory"):
            async with aiomigrate.send(guest, server.address):
                pass
        watch.took(_NO_MEMORY_ANSWER)
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
        watch = _Watch()
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
            watch = _Watch()
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

        watch = _Watch()
        task = asyncio.create_task(destination())
        options = SendOptions(connections=2, chunk_bytes=MIB)
        with pytest.raises(MigrationFailed) as caught:
            async with aiomigrate.send(guest, server.address, options):
                pass
        watch.took(_NO_MEMORY_ANSWER)
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
    before = _files(vm)
    halt = next(halt for halt in _HALTS if halt.at == at)
    async with _serving(halt) as (address, _), StoredSource(vm, resume=True) as source:
        with pytest.raises(aiomigrate.MigrationError):
            async with aiomigrate.send(source, address):
                pass
    after = _files(vm)
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
        watch = _Watch()
        async with aiomigrate.receive(landing, _LOCAL) as reception:
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
        watch = _Watch()
        async with aiomigrate.receive(landing, _LOCAL, options) as reception:
            with pytest.raises(MigrationFailed, match="refused"):
                async with aiomigrate.send(guest, str(reception.address)):
                    pass
            watch.took((200, 201))
            with pytest.raises(MigrationFailed, match=f"{hook} did not return in 200 s"):
                await reception.result()
        assert guest.running
        assert landing.runs is None
        assert len(landing.discarded) == 1


async def test_deadlines_can_be_set() -> None:
    deadlines = Deadlines(
        header_s=1.0, pace=Pace(min_bytes=1000, seconds=3.0), idle_s=4.0, linger_s=0.5
    )
    options = aiomigrate.ReceiveOptions(deadlines=deadlines)
    for sent, after in ((0, (4, 5)), (3, (1, 1)), (20, (3, 3))):
        with Landing() as landing:
            async with aiomigrate.receive(landing, _LOCAL, options) as reception:
                with await Raw.connect(reception.address) as raw:
                    await raw.ask(_SENT["Start"])
                    await raw.ask(_SENT["Config"])
                    watch = _Watch()
                    await raw.send(_SENT["Memory"][:sent])
                    with pytest.raises(MigrationFailed):
                        await reception.result()
                    watch.took(after)


async def test_the_clock_stood_still_while_a_migration_worked(clock: VirtualClockLoop) -> None:
    began = clock.time()
    with Guest(SMALL) as guest, Landing() as landing:
        async with aiomigrate.receive(landing, _LOCAL) as reception:
            async with aiomigrate.send(guest, str(reception.address)) as sending:
                report = await sending.result()
            assert isinstance(report, Report)
            await reception.result()
        assert landing.digest() == guest.digest()
    assert clock.time() == began
