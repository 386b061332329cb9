"""What a guest needs of its destination: sparse ones stay sparse, and what cannot fit is refused
before any of it is sent.
"""

import errno
import functools
import hashlib
import mmap
import os
import random
from collections.abc import Callable, Iterable

import pytest

import aiomigrate
from aiomigrate import MigrationFailed, Report, SendOptions
from aiomigrate.checking import check
from aiomigrate.memory import room
from aiomigrate.protocol import ALL_EXTENSIONS, Extension
from tests.support.image import PAGE, Mapping
from tests.support.vms import MIB, Guest, Landing, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")

TIB = 1 << 40
UNTOLD = SendOptions(extensions=ALL_EXTENSIONS & ~Extension.GUEST_DATA)


def _sparse(size: int) -> Guest:
    """A guest that holds nothing yet, in two mappings."""
    half = size // 2
    return Guest(
        (
            Mapping(0, 0, half, "mem0", virtio_mem=False, file_offset=0),
            Mapping(1, 8 * TIB, half, "mem0", virtio_mem=False, file_offset=0),
        ),
        filled=False,
    )


def _held(fds: Iterable[int]) -> int:
    return sum(os.fstat(fd).st_blocks * 512 for fd in fds)


def _digest(views: dict[int, mmap.mmap], places: list[tuple[int, int]], size: int) -> str:
    """Of the pieces of `size` bytes at (slot, offset): reading the rest would fill holes."""
    digest = hashlib.blake2b()
    for slot, at in places:
        digest.update(views[slot][at : at + size])
    return digest.hexdigest()


@pytest.mark.parametrize("connections", [1, 4])
async def test_a_mostly_empty_guest_stays_so(connections: int) -> None:
    """1 % of it is populated, in single pages: the destination holds those, and no more."""
    size, chance = 512 * MIB, random.Random(3)
    with _sparse(size) as guest, Landing() as landing:
        pages = chance.sample(range(size // 2 // PAGE), size // PAGE // 200)
        places = [(slot, page * PAGE) for slot in (0, 1) for page in pages]
        for slot, at in places:
            guest._memfds.views[slot][at : at + PAGE] = chance.randbytes(PAGE)
        populated = len(places) * PAGE
        assert _held(guest._memfds.fds.values()) == populated
        sent, received = await migrate(guest, landing, sending=SendOptions(connections=connections))
        assert isinstance(sent, Report), sent
        assert isinstance(received, Report), received
        assert sent.bytes == populated
        # Before anything of it is looked at: that alone would fill holes.
        assert _held(landing._memfds.fds.values()) == populated
        assert _digest(landing._memfds.views, places, PAGE) == _digest(
            guest._memfds.views, places, PAGE
        )


async def test_a_guest_of_1_tib_that_holds_64_mib() -> None:
    """The whole way, with bitmaps of 32 MiB together, while it writes."""
    chance = random.Random(5)
    with _sparse(TIB) as guest, Landing() as landing:
        places = [
            (slot, at + chance.randrange(1 << 20) * PAGE)
            for slot in (0, 1)
            for at in range(0, TIB // 2, TIB // 64)
        ]
        for slot, at in places:
            guest._memfds.views[slot][at : at + 2 * MIB] = chance.randbytes(2 * MIB)

        def dirty(slots: Iterable[int]) -> None:
            for slot, at in places:
                if slot in slots:
                    guest.write(slot * 8 * TIB + at + PAGE, chance.randbytes(PAGE + 1))

        guest.script["collect 1"] = functools.partial(dirty, (0, 1))
        guest.script["collect 2"] = functools.partial(dirty, (1,))
        guest.script["pause"] = functools.partial(dirty, (0,))
        sent, received = await migrate(
            guest, landing, sending=SendOptions(connections=2, downtime_ms=1)
        )
        assert isinstance(sent, Report), sent
        assert isinstance(received, Report), received
        assert guest.collects >= 3
        assert sent.bytes >= 64 * MIB + 64 * 2 * PAGE + 32 * 2 * PAGE
        assert _held(landing._memfds.fds.values()) == _held(guest._memfds.fds.values())
        assert _digest(landing._memfds.views, places, 2 * MIB) == _digest(
            guest._memfds.views, places, 2 * MIB
        )


# Room


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how much memory the destination's machine has left."""

    def leave(nbytes: int) -> None:
        monkeypatch.setattr(room, "available_memory", lambda: nbytes)

    return leave


async def test_a_guest_that_cannot_fit_is_refused_at_its_config(
    left: Callable[[int], None],
) -> None:
    with Guest() as guest, Landing() as landing, Landing() as roomy:  # 2 of 4 MiB are data
        left(2 * MIB - PAGE)
        sent, received = await migrate(guest, landing)
        assert landing.calls == ["configure", "discard"]
        assert guest.running
        assert isinstance(sent, MigrationFailed)
        assert "the destination refused Config" in sent.what
        assert isinstance(received, MigrationFailed)
        assert "the guest's memory needs 2.0 MiB of memory, and 2.0 MiB are available" in str(
            received
        )
        left(2 * MIB)
        _, received = await migrate(guest, roomy)
        assert isinstance(received, Report), received
        assert received.warnings == ()


async def test_a_question_tells_it_too(left: Callable[[int], None]) -> None:
    """What only asks is not told otherwise than what sends."""
    with Guest() as guest, Landing() as landing:
        left(2 * MIB - PAGE)
        async with aiomigrate.receive(landing, "tcp:127.0.0.1:0") as reception:
            with pytest.raises(MigrationFailed, match="the destination refused Config"):
                await check(guest, str(reception.address))
            with pytest.raises(MigrationFailed, match=r"needs 2\.0 MiB of memory"):
                await reception.result()


async def test_a_size_that_may_not_fit_is_only_told(left: Callable[[int], None]) -> None:
    """A source that does not say how much it holds may hold little: a plain peer's guest."""
    with Guest() as guest, Landing() as landing:
        left(3 * MIB)
        _, received = await migrate(guest, landing, sending=UNTOLD)
        assert isinstance(received, Report), received
        (warning,) = received.warnings
        assert "can grow to 4.0 MiB of memory, and 3.0 MiB are available" in warning
        assert landing.digest() == guest.digest()


async def test_a_look_for_room_that_fails_refuses_the_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stale(fd: int, *, on_disk: bool) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(room, "_left", stale)
    with Guest() as guest, Landing() as landing:
        sent, received = await migrate(guest, landing)
        assert landing.calls == ["configure", "discard"]
        assert isinstance(sent, MigrationFailed)
        assert "Stale file handle" in str(received)
        assert guest.running
