"""A guest that writes while its memory is sent: what it wrote arrives, and it is paused in time."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from aiomigrate import MigrationFailed, Owner, SendOptions, TimeoutStrategy
from tests.engine.engine_running import TWO, assert_moved
from tests.support.clock import VirtualClockLoop
from tests.support.image import PAGE
from tests.support.vms import MIB, Bitmap, Guest, Landing, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")
virtual = pytest.mark.asyncio(loop_factories=["virtual"])
_HIGH = 1 << 32


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("connections", [1, 3])
async def test_what_is_written_during_the_migration_arrives(
    connections: int, buffers: bool
) -> None:
    with Guest(TWO, buffers=buffers) as guest, Landing() as landing:

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
        report = assert_moved(guest, landing, *await migrate(guest, landing, sending=options))
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
        options = SendOptions(downtime_ms=600)
        report = assert_moved(guest, landing, *await migrate(guest, landing, sending=options))
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
        report = assert_moved(guest, landing, *await migrate(guest, landing, sending=options))
    assert report.decisions[-1].startswith("pause the guest: ")
    assert report.decisions[-1].endswith("and 55 s are over")
    assert len(report.decisions) == 6


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
    with Guest(TWO) as guest, Landing() as landing:
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

    with Guest(TWO) as guest, Landing() as landing:
        guest.tamper = tail
        report = assert_moved(guest, landing, *await migrate(guest, landing))
    assert report.decisions == ("pause the guest: nothing is dirty",)
