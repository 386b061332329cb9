"""Sources that stop, drip or are slow, on a clock that jumps: every wait of `receive` ends, and
honest sources are not cut. The expected times are those of `Deadlines`' defaults, in seconds of the
loop's clock.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import (
    Deadlines,
    MigrationFailed,
    Pace,
    Phase,
    StoredDestination,
)
from tests.engine.engine_stalls import (
    HEADER,
    IDLE,
    LOCAL,
    PACE,
    Watch,
    drip,
    exactly,
    files_in,
)
from tests.support.hostile import (
    ERROR,
    OK,
    ROLE_MEMORY,
    SMALL_CONFIG,
    Raw,
    memory,
    migrate_whole,
    request,
)
from tests.support.image import PAGE, Mapping
from tests.support.peer import COMPLETE, CONFIG, START, STATE
from tests.support.vms import STATE_JSON, Landing, config_of

pytestmark = [
    pytest.mark.asyncio(loop_factories=["virtual"]),
    pytest.mark.usefixtures("no_leaks"),
]

_KIB = 1024
# What a destination is sent, in order.
_SENT = {
    "Start": request(START),
    "Config": request(CONFIG, SMALL_CONFIG),
    "Memory": memory([(0, PAGE), (63 * PAGE, PAGE)]),
    "State": request(STATE, STATE_JSON),
    "Complete": request(COMPLETE),
}


@dataclass(frozen=True)
class _Cut:
    """The source stops after `sent` bytes of `message`; the destination waits `after` seconds."""

    message: str
    sent: int
    after: tuple[float, float]
    says: str

    def __str__(self) -> str:
        return f"{self.message}[:{self.sent}]"


_CUTS = (
    _Cut("Config", 0, IDLE, "nothing came on any connection in 300 s"),
    _Cut("Config", 1, exactly(HEADER), "read stalled: 0 bytes in 10 s"),
    _Cut("Config", 15, exactly(HEADER), "read stalled: 0 bytes in 10 s"),
    _Cut("Config", 16, exactly(PACE), "read stalled: 0 bytes in 30 s"),
    _Cut("Config", 17, exactly(PACE), "read stalled: 1 bytes in 30 s"),
    _Cut("Config", len(_SENT["Config"]) - 1, exactly(PACE), "in 30 s"),
    _Cut("Memory", 0, IDLE, "nothing came on any connection in 300 s"),
    _Cut("Memory", 8, exactly(HEADER), "read stalled: 0 bytes in 10 s"),
    _Cut("Memory", 16, exactly(PACE), "read stalled: 0 bytes in 30 s, at least 32"),
    _Cut("Memory", 32, exactly(PACE), "read stalled: 16 bytes in 30 s, at least 32"),
    _Cut("Memory", 48, exactly(PACE), "read stalled: 0 bytes in 30 s, at least 8192"),
    _Cut("Memory", 48 + PAGE, exactly(PACE), "read stalled: 4096 bytes in 30 s"),
    _Cut("Memory", 47 + 2 * PAGE, exactly(PACE), "read stalled: 8191 bytes in 30 s"),
    _Cut("State", 0, IDLE, "nothing came on any connection in 300 s"),
    _Cut("State", 3, exactly(HEADER), "read stalled"),
    _Cut("State", 16, exactly(PACE), "read stalled: 0 bytes in 30 s"),
    _Cut("State", 40, exactly(PACE), "read stalled: 24 bytes in 30 s"),
    _Cut("Complete", 0, IDLE, "nothing came on any connection in 300 s"),
    _Cut("Complete", 15, exactly(HEADER), "read stalled"),
)


@pytest.mark.parametrize("cut", _CUTS, ids=str)
async def test_a_source_that_stops(cut: _Cut) -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                for name, data in _SENT.items():
                    if name == cut.message:
                        break
                    await raw.ask(data)
                watch = Watch()
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
    (ROLE_MEMORY + _SENT["Memory"], len(ROLE_MEMORY + _SENT["Memory"]) + 1, exactly(HEADER)),
    (ROLE_MEMORY + _SENT["Memory"], len(ROLE_MEMORY + _SENT["Memory"]) + 16, exactly(PACE)),
    (ROLE_MEMORY + _SENT["Memory"], len(ROLE_MEMORY + _SENT["Memory"]) + 32, exactly(PACE)),
    (ROLE_MEMORY + _SENT["Memory"], len(ROLE_MEMORY + _SENT["Memory"]) + 48, exactly(PACE)),
    (ROLE_MEMORY + _SENT["Memory"], len(ROLE_MEMORY + _SENT["Memory"]) + 5000, exactly(PACE)),
    (ROLE_MEMORY + _SENT["Memory"], len(ROLE_MEMORY + _SENT["Memory"]), IDLE),
    # The first Memory of a lane: once its table is good it is one, and before that a stranger.
    (b"", len(ROLE_MEMORY) + 48, exactly(PACE)),
    (b"", len(ROLE_MEMORY) + 32, IDLE),
    (b"", len(ROLE_MEMORY) + 7, IDLE),
    (b"", 1, IDLE),
    (b"", 0, IDLE),
)


@pytest.mark.parametrize(("before", "sent", "after"), _LANE_CUTS)
async def test_a_lane_that_stops(before: bytes, sent: int, after: tuple[float, float]) -> None:
    stream = (ROLE_MEMORY + _SENT["Memory"] * 2)[:sent]
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with (
                await Raw.connect(reception.address) as main,
                await Raw.connect(reception.address) as lane,
            ):
                await main.ask(_SENT["Start"])
                await main.ask(_SENT["Config"])
                watch = Watch()
                if before:
                    await lane.ask(before)
                await lane.send(stream[len(before) :])
                with pytest.raises(MigrationFailed) as caught:
                    await reception.result()
                watch.took(after)
                name = main.name if after is IDLE else lane.name
                assert f"{name}: " in str(caught.value)
        assert len(landing.discarded) == 1


async def test_a_stranger_that_stops_is_dropped_and_the_source_still_comes() -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with (
                await Raw.connect(reception.address) as one,
                await Raw.connect(reception.address) as half,
            ):
                watch = Watch()
                await one.send(b"\1")
                await half.send(_SENT["Start"][:9])
                assert await one.rest() == (b"", "eof")
                assert await half.rest() == (b"", "eof")
                watch.took(exactly(HEADER))
                assert reception.progress.phase is Phase.WAITING
                await asyncio.sleep(100_000)  # a destination waits for its source for ever
                await migrate_whole(reception.address)
            assert (await reception.result()).confirmed


async def test_a_refused_source_that_does_not_close() -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                await raw.ask(_SENT["Start"])
                watch = Watch()
                await raw.send(_SENT["State"])
                assert await raw.rest() == (ERROR, "eof")
                watch.took(exactly(0))
                with pytest.raises(MigrationFailed, match="got State"):
                    await reception.result()
                watch.took(exactly(Deadlines().linger_s))


async def test_a_source_that_does_not_confirm() -> None:
    """It has its Ok, perhaps, and does not close: the VM is here, and that is not confirmed."""
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                for data in _SENT.values():
                    await raw.ask(data)
                watch = Watch()
                report = await reception.result()
                watch.took(exactly(120))
        assert landing.runs is True
        assert not report.confirmed
        assert "confirmed" not in landing.calls


@pytest.mark.parametrize(
    ("message", "sent", "after"),
    [
        ("Config", 0, exactly(HEADER)),
        ("Config", 16, exactly(PACE)),
        ("Memory", 0, exactly(HEADER)),
        ("Memory", 16, exactly(PACE)),
        ("Memory", 48, exactly(PACE)),
        ("State", 16, exactly(PACE)),
        ("Complete", 0, exactly(HEADER)),
    ],
)
async def test_a_source_that_drips(message: str, sent: int, after: tuple[float, float]) -> None:
    with Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with await Raw.connect(reception.address) as raw:
                for name, data in _SENT.items():
                    if name == message:
                        break
                    await raw.ask(data)
                watch = Watch()
                await raw.send(_SENT[message][:sent])
                dripping = asyncio.create_task(drip(raw, _SENT[message][sent:], 2.0))
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
        async with aiomigrate.receive(landing, LOCAL) as reception:
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
        async with aiomigrate.receive(landing, LOCAL) as reception:
            with (
                await Raw.connect(reception.address) as main,
                await Raw.connect(reception.address) as lane,
            ):
                await main.ask(_SENT["Start"])
                await main.ask(_SENT["Config"])
                await lane.ask(ROLE_MEMORY + _SENT["Memory"])
                watch = Watch()
                for _ in range(6):
                    await asyncio.sleep(290)
                    await lane.ask(_SENT["Memory"])
                assert watch.seconds > 1700
                await main.ask(_SENT["State"])
                await main.ask(_SENT["Complete"])
            await reception.result()
        assert landing.runs is True


async def test_nothing_is_left_of_a_stalled_reception_into_a_directory(tmp_path: Path) -> None:
    watch = Watch()
    async with (
        StoredDestination(tmp_path / "vm") as destination,
        aiomigrate.receive(destination, LOCAL) as reception,
    ):
        with await Raw.connect(reception.address) as raw:
            await raw.ask(_SENT["Start"])
            await raw.ask(_SENT["Config"])
            await raw.send(_SENT["Memory"][:100])
            with pytest.raises(MigrationFailed, match="read stalled"):
                await reception.result()
    watch.took(exactly(PACE))
    assert files_in(tmp_path) == {}


async def test_deadlines_can_be_set() -> None:
    deadlines = Deadlines(
        header_s=1.0, pace=Pace(min_bytes=1000, seconds=3.0), idle_s=4.0, linger_s=0.5
    )
    options = aiomigrate.ReceiveOptions(deadlines=deadlines)
    for sent, after in ((0, (4, 5)), (3, (1, 1)), (20, (3, 3))):
        with Landing() as landing:
            async with aiomigrate.receive(landing, LOCAL, options) as reception:
                with await Raw.connect(reception.address) as raw:
                    await raw.ask(_SENT["Start"])
                    await raw.ask(_SENT["Config"])
                    watch = Watch()
                    await raw.send(_SENT["Memory"][:sent])
                    with pytest.raises(MigrationFailed):
                        await reception.result()
                    watch.took(after)
