"""A VMM's running guest as the source, and a VMM as the destination."""

import asyncio
import logging
import struct
from collections.abc import Callable, Sequence

import numpy as np
import pytest

import aiomigrate
from aiomigrate import (
    Deadlines,
    GuestNotStarted,
    MigrationCancelled,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    Phase,
    ReceiveOptions,
    Report,
    SendOptions,
    TimeoutStrategy,
)
from tests.engine.engine_wire import MEMORY, OK, Hand
from tests.support.clock import VirtualClockLoop
from tests.support.image import PAGE, Mapping
from tests.support.vms import MIB, STATE_JSON, Bitmap, Guest, Landing, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")
virtual = pytest.mark.asyncio(loop_factories=["virtual"])

_TWO = (
    Mapping(4, 1 << 32, 2 * MIB, "mem0", virtio_mem=True, file_offset=0),
    Mapping(0, 0, 3 * MIB + 5 * PAGE, "mem0", virtio_mem=False, file_offset=0),
)
_HIGH = 1 << 32


def _succeeded(outcome: tuple[Report | BaseException, Report | BaseException]) -> Report:
    for side in outcome:
        if isinstance(side, BaseException):
            raise side
    report = outcome[0]
    assert isinstance(report, Report)
    return report


def _assert_moved(guest: Guest, landing: Landing) -> None:
    assert landing.digest() == guest.digest() == guest.at_pause
    assert (landing.config, landing.state) == (guest.config_bytes, STATE_JSON)


# Memory that is written while it is sent


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("connections", [1, 3])
async def test_what_is_written_during_the_migration_arrives(
    connections: int, buffers: bool
) -> None:
    with Guest(_TWO, buffers=buffers) as guest, Landing() as landing:

        def before_collect() -> None:
            guest.write(5 * PAGE, b"first" * PAGE)
            guest.write(_HIGH + 7 * PAGE + 11, b"x")

        def after_collect() -> None:  # marked in the next bitmap, and read in this iteration
            guest.write(5 * PAGE, b"second" * PAGE)
            guest.write(3 * MIB + 4 * PAGE, b"last page")

        guest.script["collect 1"] = before_collect
        guest.script["collected 1"] = after_collect
        guest.script["collect 2"] = lambda: guest.write(_HIGH, b"again")
        guest.script["pause"] = lambda: guest.write(64 * PAGE, b"on the way to the pause")
        guest.script["capture"] = lambda: guest.write(2 * MIB, b"by a device" * 1000)
        options = SendOptions(connections=connections, chunk_bytes=64 << 10)
        report = _succeeded(await migrate(guest, landing, sending=options))
        _assert_moved(guest, landing)
    assert report.running
    assert report.owner is Owner.DESTINATION
    assert len(report.decisions) == report.iterations - 1


@virtual
async def test_dirt_is_sent_in_iterations_until_it_fits_the_downtime(
    clock: VirtualClockLoop,
) -> None:
    """On the virtual clock an iteration takes as long as the test says."""
    pages = iter([400, 320, 256, 128])

    def dirty() -> None:
        for page in range(next(pages)):
            guest.write(page * PAGE, b"dirty" + bytes([page % 251]))
        clock.skip(1.0)

    with Guest() as guest, Landing() as landing:
        for number in range(1, 5):
            guest.script[f"collect {number}"] = dirty
        # 512 pages in iteration 0, and 400, 320 and 256: each in the second that `dirty` takes. The
        # estimate is of all four.
        report = _succeeded(await migrate(guest, landing, sending=SendOptions(downtime_ms=600)))
        _assert_moved(guest, landing)
        assert guest.calls.index("pause") == guest.calls.index("collect 4") + 1
    assert [text.partition(":")[0] for text in report.decisions] == [
        *["send another iteration"] * 3,
        "pause the guest",
    ]
    assert report.decisions[-1].endswith(
        f"{128 * PAGE} bytes are dirty, 344 ms at {372 * PAGE} bytes/s, the limit is 600 ms"
    )
    # Iteration 0, three of dirt, and the rest with the guest paused.
    assert report.iterations == 5
    assert report.bytes == (512 + 400 + 320 + 256 + 128) * PAGE


def _never_clean(guest: Guest, clock: VirtualClockLoop) -> Callable[[], None]:
    def dirty() -> None:
        clock.skip(10.0)
        if not guest.running:
            return
        for page in range(0, 1024, 2):
            guest.write(page * PAGE, b"dirty" + str(guest.collects).encode())

    return dirty


def _dirty_for_ever(guest: Guest, clock: VirtualClockLoop) -> None:
    for number in range(1, 40):
        guest.script[f"collect {number}"] = _never_clean(guest, clock)


@virtual
async def test_the_time_limit_cancels(clock: VirtualClockLoop) -> None:
    with Guest() as guest, Landing() as landing:
        _dirty_for_ever(guest, clock)
        options = SendOptions(timeout_s=55)
        sent, received = await migrate(guest, landing, sending=options)
        assert guest.running
        assert guest.calls == ["config", "start", *(f"collect {n}" for n in range(1, 7)), "stop"]
        assert landing.calls == ["configure", "discard"]
    assert isinstance(sent, MigrationFailed)
    assert "pre-copy did not converge" in sent.what
    assert "55 s are over" in sent.what
    assert sent.owner is Owner.SOURCE
    assert isinstance(received, MigrationFailed)
    assert "the source abandoned the migration" in received.what


@virtual
async def test_the_time_limit_is_ignored(clock: VirtualClockLoop) -> None:
    with Guest() as guest, Landing() as landing:
        _dirty_for_ever(guest, clock)
        options = SendOptions(timeout_s=55, timeout_strategy=TimeoutStrategy.IGNORE)
        report = _succeeded(await migrate(guest, landing, sending=options))
        _assert_moved(guest, landing)
    assert report.decisions[-1].startswith("pause the guest: ")
    assert report.decisions[-1].endswith("and 55 s are over")
    assert len(report.decisions) == 6


# The order of the hooks


async def test_hooks_of_a_migration_in_order() -> None:
    with Guest() as guest, Landing() as landing:
        _succeeded(await migrate(guest, landing))
        assert guest.calls == [
            "config",
            "start",
            "collect 1",
            "pause",
            "collect 2",
            "capture",
            "hand_over",
            "collect 3",
            "stop",
            "release",
        ]
        assert landing.calls == ["configure", "restore", "resume", "confirmed"]
        assert guest.destination.startswith("tcp:127.0.0.1:")
        assert landing.source.startswith("tcp:127.0.0.1:")
        assert guest.ended
        assert not guest.running


async def test_a_paused_guest_stays_paused() -> None:
    with Guest(resumes=False) as guest, Landing() as landing:
        report = _succeeded(await migrate(guest, landing))
        assert landing.calls == ["configure", "restore", "keep_paused", "confirmed"]
        _assert_moved(guest, landing)
    assert not report.running


_UNDONE = {
    "config": [],
    "start": ["stop"],
    "collect 1": ["stop"],
    "pause": ["resume", "stop"],
    "collect 2": ["resume", "stop"],
    "capture": ["resume", "stop"],
    "hand_over": ["take_back", "resume", "stop"],
    "collect 3": ["take_back", "resume", "stop"],
}


def _assert_undone(guest: Guest, landing: Landing, hook: str) -> None:
    after = guest.calls[guest.calls.index(hook) + 1 :]
    assert after == _UNDONE[hook]
    assert guest.running
    assert not guest.dirty.on
    assert landing.calls == (["configure", "discard"] if hook != "config" else [])


@pytest.mark.parametrize("hook", _UNDONE)
async def test_a_hook_that_fails_leaves_the_guest_running(hook: str) -> None:
    def fail() -> None:
        raise RuntimeError("it broke")

    with Guest() as guest, Landing() as landing:
        guest.script[hook] = fail
        sent, received = await migrate(guest, landing)
        _assert_undone(guest, landing, hook)
    assert isinstance(sent, MigrationFailed)
    assert "it broke" in sent.what
    assert hook.partition(" ")[0] in sent.what
    assert isinstance(sent.__cause__, MigrationFailed | RuntimeError)
    assert isinstance(received, MigrationFailed)
    assert received.owner is sent.owner is Owner.SOURCE
    assert "abandoned" in received.what


@virtual
@pytest.mark.parametrize("hook", _UNDONE)
async def test_a_hook_that_hangs_is_given_up(clock: VirtualClockLoop, hook: str) -> None:
    began = clock.time()
    with Guest() as guest, Landing() as landing:
        guest.script[hook] = asyncio.Event().wait
        options = SendOptions(deadlines=Deadlines(embedder_s=40))
        sent, _ = await migrate(guest, landing, sending=options)
        _assert_undone(guest, landing, hook)
    assert isinstance(sent, MigrationFailed)
    assert "did not return in 40 s" in sent.what
    assert hook.partition(" ")[0] in sent.what
    assert clock.time() - began == pytest.approx(40, abs=5)


@pytest.mark.parametrize("hook", ["take_back", "resume", "stop"])
async def test_a_hook_of_the_undoing_that_fails_does_not_stop_the_others(
    hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("it broke")

    def fail_again() -> None:
        raise RuntimeError("this too")

    with Guest() as guest, Landing() as landing:
        guest.script["hand_over"] = fail
        guest.script[hook] = fail_again
        sent, _ = await migrate(guest, landing)
        assert guest.calls[-3:] == ["take_back", "resume", "stop"]
    assert isinstance(sent, MigrationFailed)
    assert "it broke" in sent.what
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["this too" in record.getMessage() for record in warnings] == [True]


@pytest.mark.parametrize("hook", ["stop", "release"])
async def test_a_hook_that_fails_after_the_end_is_a_warning(hook: str) -> None:
    def fail() -> None:
        raise RuntimeError("too late")

    with Guest() as guest, Landing() as landing:
        guest.script[hook] = fail
        report = _succeeded(await migrate(guest, landing))
        _assert_moved(guest, landing)
        assert guest.calls[-2:] == ["stop", "release"]
    (warning,) = report.warnings
    assert "too late" in warning


async def test_confirmed_that_fails_is_a_warning() -> None:
    def fail() -> None:
        raise RuntimeError("too late")

    with Guest() as guest, Landing() as landing:
        landing.script["confirmed"] = fail
        _, received = await migrate(guest, landing)
        assert "discard" not in landing.calls
    assert isinstance(received, Report)
    assert received.confirmed
    (warning,) = received.warnings
    assert "too late" in warning


# Bitmaps that cannot be


_WRONG: dict[str, tuple[Callable[[list[Bitmap]], Sequence[Bitmap]], str]] = {
    "short": (lambda b: [b[0][:-1], b[1]], r"slot 0 must be uint64 of shape \(13,\).*\(12,\)"),
    "long": (lambda b: [b[0], np.append(b[1], b[1])], r"slot 4 must be uint64 of shape \(8,\)"),
    "few": (lambda b: b[:1], "1 bitmaps for 2 mappings"),
    "many": (lambda b: [*b, b[0]], "3 bitmaps for 2 mappings"),
    "dtype": (lambda b: [w.astype(np.int64) for w in b], "uint64 of shape .* not int64"),
    "shape": (lambda b: [w.reshape(1, -1) for w in b], r"not uint64 of shape \(1, 13\)"),
}


@pytest.mark.parametrize("kind", _WRONG)
async def test_a_wrong_bitmap_is_named(kind: str) -> None:
    tamper, message = _WRONG[kind]
    with Guest(_TWO) as guest, Landing() as landing:
        guest.tamper = tamper
        sent, received = await migrate(guest, landing)
        assert guest.running
        assert guest.calls[-1] == "stop"
    assert isinstance(sent, MigrationFailed)
    with pytest.raises(MigrationFailed, match=message):
        raise sent
    assert isinstance(received, MigrationFailed)


async def test_bits_behind_the_last_page_mean_nothing() -> None:
    def tail(bitmaps: list[Bitmap]) -> list[Bitmap]:
        bitmaps[0][-1] |= np.uint64(1 << 63)  # 773 pages: the last word has 5
        return bitmaps

    with Guest(_TWO) as guest, Landing() as landing:
        guest.tamper = tail
        report = _succeeded(await migrate(guest, landing))
        _assert_moved(guest, landing)
    assert report.decisions == ("pause the guest: nothing is dirty",)


# The destination's hooks


@pytest.mark.parametrize(
    ("hook", "where"), [("configure", "Config"), ("restore", "State")], ids=["configure", "restore"]
)
@pytest.mark.parametrize("error", [RuntimeError("no room"), GuestNotStarted("no room")])
async def test_a_destination_that_cannot_build_it(hook: str, where: str, error: Exception) -> None:
    def fail() -> None:
        raise error

    with Guest() as guest, Landing() as landing:
        landing.script[hook] = fail
        sent, received = await migrate(guest, landing)
        assert landing.calls[-1] == "discard"
        assert guest.running
        assert not guest.ended
    assert isinstance(sent, MigrationFailed)
    assert f"the destination refused {where}" in sent.what
    assert isinstance(received, MigrationFailed)
    assert "no room" in received.what
    assert (sent.owner, received.owner) == (Owner.SOURCE, Owner.SOURCE)


@pytest.mark.parametrize("resumes", [True, False])
async def test_a_guest_that_was_not_started_goes_back(resumes: bool) -> None:
    def fail() -> None:
        raise GuestNotStarted("KVM says no")

    with Guest(resumes=resumes) as guest, Landing() as landing:
        landing.script["resume" if resumes else "keep_paused"] = fail
        order: list[str] = []
        landing.script["discard"] = lambda: order.append("discard")
        guest.script["take_back"] = lambda: order.append("take_back")
        sent, received = await migrate(guest, landing)
        assert order == ["discard", "take_back"], "the Error comes after the discarding"
        assert landing.calls.count("discard") == 1
        assert guest.calls[-3:] == ["take_back", "resume", "stop"]
    assert isinstance(sent, MigrationFailed)
    assert "the destination refused Complete" in sent.what
    assert isinstance(received, MigrationFailed)
    assert "KVM says no" in received.what
    assert (sent.owner, received.owner) == (Owner.SOURCE, Owner.SOURCE)


async def test_any_error_of_a_paused_takeover_goes_back() -> None:
    """No guest instruction runs in `keep_paused`."""

    def fail() -> None:
        raise RuntimeError("the disk is gone")

    with Guest(resumes=False) as guest, Landing() as landing:
        landing.script["keep_paused"] = fail
        sent, received = await migrate(guest, landing)
        assert landing.calls[-1] == "discard"
    assert isinstance(sent, MigrationFailed)
    assert isinstance(received, MigrationFailed)


@virtual
async def test_a_resume_that_breaks_leaves_the_outcome_unknown(clock: VirtualClockLoop) -> None:
    def fail() -> None:
        raise RuntimeError("after some instructions")

    with Guest() as guest, Landing() as landing:
        landing.script["resume"] = fail
        sent, received = await migrate(guest, landing)
        assert "discard" not in landing.calls
        assert guest.calls[-2:] == ["lost", "stop"]
        assert not {"take_back", "resume", "release"} & {*guest.calls}
        assert not guest.running
        assert guest.reasons == [sent]
    assert isinstance(received, OutcomeUnknown)
    assert "after some instructions" in received.what
    assert isinstance(sent, OutcomeUnknown)
    assert "the answer to Complete was lost" in sent.what
    assert (sent.owner, received.owner) == (Owner.UNKNOWN, Owner.UNKNOWN)


@virtual
async def test_a_resume_that_hangs_leaves_the_outcome_unknown(clock: VirtualClockLoop) -> None:
    with Guest() as guest, Landing() as landing:
        landing.script["resume"] = asyncio.Event().wait
        options = ReceiveOptions(deadlines=Deadlines(embedder_s=20))
        sent, received = await migrate(guest, landing, receiving=options)
        assert not guest.running
    assert isinstance(sent, OutcomeUnknown)
    assert isinstance(received, OutcomeUnknown)
    assert "resume did not return in 20 s" in received.what


# The migration as its embedder holds it


async def test_progress_is_told_to_the_end() -> None:
    with Guest() as guest, Landing() as landing:
        async with aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception:
            waiting = reception.progress
            async with aiomigrate.send(guest, str(reception.address)) as migration:
                seen = [progress async for progress in migration]
                report = await migration.result()
            await reception.result()
            done = reception.progress
    assert (waiting.phase, waiting.total_bytes) == (Phase.WAITING, 0)
    assert (done.phase, done.total_bytes) == (Phase.DONE, 4 * MIB)
    assert seen[0].phase == Phase.CONNECTING
    assert seen[-1].phase == Phase.DONE
    assert seen[-1].bytes_done == report.bytes
    assert seen[-1].total_bytes == 4 * MIB
    assert sum(connection.bytes for connection in seen[-1].connections) == report.bytes
    assert report.as_dict()["owner"] == "destination"
    assert seen[-1].as_dict()["connections"][0]["name"] == "main"


async def test_leaving_the_context_raises_what_nobody_asked_for() -> None:
    def fail() -> None:
        raise RuntimeError("no config")

    with Guest() as guest, Landing() as landing:
        guest.script["config"] = fail
        with pytest.raises(MigrationFailed):  # noqa: PT012 - it is leaving the context that raises
            async with aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception:
                with pytest.raises(MigrationFailed, match="no config"):
                    async with aiomigrate.send(guest, str(reception.address)):
                        pass


@pytest.mark.parametrize("at_once", [True, False])
async def test_leaving_the_context_with_an_error_cancels(at_once: bool) -> None:
    captured = asyncio.Event()

    async def capture() -> None:
        captured.set()
        await asyncio.Event().wait()

    with Guest() as guest, Landing() as landing:
        guest.script["capture"] = capture
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - contexts are what is tested
            async with aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception:
                with pytest.raises(ZeroDivisionError):  # noqa: PT012
                    async with aiomigrate.send(guest, str(reception.address)):
                        if not at_once:
                            await captured.wait()
                        raise ZeroDivisionError
                if not at_once:
                    with pytest.raises(MigrationFailed, match="abandoned"):
                        await reception.result()
                raise ZeroDivisionError
        assert guest.running
        if at_once:
            assert guest.calls == []
        else:
            assert guest.calls[-3:] == ["capture", "resume", "stop"]
            assert landing.calls == ["configure", "discard"]


async def test_cancelling_at_once_is_told_as_such() -> None:
    with Guest() as guest, Landing() as landing:
        async with aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception:
            async with aiomigrate.send(guest, str(reception.address)) as migration:
                assert migration.cancel()
                with pytest.raises(MigrationCancelled, match="the VM is with the source"):
                    await migration.result()
            assert reception.cancel()
            with pytest.raises(MigrationCancelled):
                await reception.result()
        assert (guest.calls, landing.calls) == ([], [])


async def test_it_is_too_late_to_cancel_after_the_end() -> None:
    with Guest() as guest, Landing() as landing:
        async with (
            aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception,
            aiomigrate.send(guest, str(reception.address)) as migration,
        ):
            await migration.result()
            await reception.result()
            assert not migration.cancel()
            assert not reception.cancel()


async def test_a_cancelled_wait_for_the_result_leaves_the_migration_alone() -> None:
    with Guest() as guest, Landing() as landing:
        async with (
            aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception,
            aiomigrate.send(guest, str(reception.address)) as migration,
        ):
            waiting = asyncio.create_task(migration.result())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert (await migration.result()).owner is Owner.DESTINATION
            await reception.result()


# Silence


@pytest.mark.parametrize("connections", [1, 4])
async def test_a_migration_that_succeeds_is_quiet(
    connections: int, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 60.0  # kernels are compiled or loaded by whoever comes first
    caplog.set_level(logging.DEBUG)
    with Guest(_TWO) as guest, Landing() as landing:
        guest.script["pause"] = lambda: guest.write(64 * PAGE, b"late")
        options = SendOptions(connections=connections, chunk_bytes=64 << 10)
        report = _succeeded(await migrate(guest, landing, sending=options))
        _assert_moved(guest, landing)
    assert report.warnings == ()
    names = {record.name for record in caplog.records}
    assert {"aiomigrate.source", "aiomigrate.destination"} <= names
    loud = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert loud == []


# A table that is too long to be kept in memory


async def test_a_long_table_is_spilled_and_applied_in_its_order() -> None:
    """A stock sender with one connection puts all dirt into one table; ours never makes such."""
    ranges = (4 << 20) // 16 + 1000
    mapping = Mapping(0, 0, 1 << 30, "mem0", virtio_mem=False, file_offset=0)
    rows = np.empty((ranges, 2), np.uint64)
    # Pages of its first half, twice each, the later content on top: one byte of every page.
    rows[:, 0] = np.arange(ranges) % (ranges // 2) * PAGE
    rows[:, 1] = 1
    content = np.arange(ranges) // (ranges // 2) + 1
    with Landing() as landing:
        async with (
            aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception,
            Hand(str(reception.address)) as source,
        ):
            await source.begin(mapping)
            source.write(struct.pack("<H6xQ", MEMORY, rows.nbytes) + rows.tobytes())
            source.write(content.astype(np.uint8).tobytes())
            assert await source.answer() == OK
            assert reception.progress.bytes_done == ranges
            await source.end()
            source._writer.close()
            await reception.result()
        first = np.frombuffer(landing.view(0), np.uint8)[: ranges // 2 * PAGE : PAGE].copy()
    assert (first == 2).all()
