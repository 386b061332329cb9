"""Pages that are zero: left out, named, or sent, between `send` and `receive`."""

import os
from collections.abc import Iterable

import pytest

from aiomigrate import GuestMemory, ReceiveOptions, Report, SendOptions
from aiomigrate.protocol import ALL_EXTENSIONS, Extension
from aiomigrate.testing import Cut, Direction
from tests.engine.engine_hostile import receiving
from tests.engine.engine_joined import migrating
from tests.engine.engine_running import CHUNK, assert_moved, through
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import ERROR, Raw, memory, request, table
from tests.support.image import PAGE, Mapping
from tests.support.peer import COMPLETE, STATE
from tests.support.vms import MIB, STATE_JSON, Guest, Landing, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")
virtual = pytest.mark.asyncio(loop_factories=["virtual"])

ZEROS = 0x8004
SESSION_AND_ZEROS = Extension.SESSION | Extension.ZERO_RUNS
NO_FRESH = ALL_EXTENSIONS & ~Extension.FRESH_MEMORY
PLAIN = Extension.NONE
TWO_ZONES = (
    Mapping(0, 0, 2 * MIB, "mem0", virtio_mem=False, file_offset=0),
    Mapping(1, 2 * MIB, 2 * MIB, "mem1", virtio_mem=False, file_offset=0),
)


def fill_with_zeros(guest: Guest, gpas: Iterable[int]) -> None:
    """Explicit zeros: pages that are there, not holes."""
    for gpa in gpas:
        guest.write(gpa, bytes(PAGE))


def held_by(landing: Landing) -> int:
    """What its memory takes; before anybody reads it, since that fills holes."""
    return os.fstat(landing._memfds.fds[0]).st_blocks * 512


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("extensions", [ALL_EXTENSIONS, PLAIN], ids=["promised", "assumed"])
async def test_zeros_of_iteration_0_are_left_out_where_memory_is_fresh(
    extensions: Extension, connections: int
) -> None:
    options = SendOptions(connections=connections, chunk_bytes=CHUNK, extensions=extensions)
    with Guest() as guest, Landing() as landing:
        fill_with_zeros(guest, range(0, MIB, PAGE))
        sent, received = await migrate(guest, landing, sending=options)
        assert held_by(landing) == MIB
        sent = assert_moved(guest, landing, sent, received)
        assert (sent.bytes, sent.zero_bytes) == (MIB, MIB)
        assert isinstance(received, Report)
        assert received.bytes == MIB


@pytest.mark.parametrize("connections", [1, 4])
async def test_zeros_are_named_where_nothing_is_promised(connections: int) -> None:
    options = SendOptions(connections=connections, chunk_bytes=CHUNK)
    receiving = ReceiveOptions(extensions=NO_FRESH)
    with Guest() as guest, Landing() as landing:
        fill_with_zeros(guest, range(0, MIB, PAGE))
        sent, received = await migrate(guest, landing, sending=options, receiving=receiving)
        assert held_by(landing) == MIB
        sent = assert_moved(guest, landing, sent, received)
        # The holes of the source's file, too: nothing is known of the destination's memory.
        assert (sent.bytes, sent.zero_bytes) == (MIB, 3 * MIB)
        assert isinstance(received, Report)
        assert (received.bytes, received.zero_bytes) == (MIB, 3 * MIB)


async def test_towards_a_plain_peer_that_is_not_fresh_all_is_sent() -> None:
    options = SendOptions(extensions=PLAIN, destination_is_fresh=False)
    with Guest() as guest, Landing() as landing:
        sent, received = await migrate(guest, landing, sending=options)
        sent = assert_moved(guest, landing, sent, received)
        assert (sent.bytes, sent.zero_bytes) == (4 * MIB, 0)


@pytest.mark.parametrize("extensions", [ALL_EXTENSIONS, PLAIN])
@pytest.mark.parametrize("buffers", [False, True])
async def test_a_zone_that_is_backed_by_a_file_gets_its_zeros(
    extensions: Extension, buffers: bool
) -> None:
    """What the destination finds in that file is not known: `Landing` has garbage there."""
    options = SendOptions(chunk_bytes=CHUNK, extensions=extensions)
    with Guest(TWO_ZONES, file_zones=["mem1"], buffers=buffers) as guest, Landing() as landing:
        fill_with_zeros(guest, range(2 * MIB, 2 * MIB + 64 * PAGE, PAGE))
        sent, received = await migrate(guest, landing, sending=options)
        assert_moved(guest, landing, sent, received)
        assert landing.view(1)[: 64 * PAGE] == bytes(64 * PAGE)


@pytest.mark.parametrize("extensions", [ALL_EXTENSIONS, PLAIN], ids=["named", "sent"])
async def test_a_page_that_becomes_zero_later_is_zero_in_the_end(extensions: Extension) -> None:
    options = SendOptions(connections=2, chunk_bytes=CHUNK, downtime_ms=1, extensions=extensions)
    with Guest() as guest, Landing() as landing:
        guest.script["collect 1"] = lambda: fill_with_zeros(guest, range(0, 8 * PAGE, PAGE))
        guest.script["capture"] = lambda: fill_with_zeros(guest, [9 * PAGE])
        sent, received = await migrate(guest, landing, sending=options)
        assert_moved(guest, landing, sent, received)
        assert landing.view(0)[: 8 * PAGE] == bytes(8 * PAGE)
        assert isinstance(sent, Report)
        assert sent.zero_bytes == (9 * PAGE if extensions else 0)


async def test_a_chunk_with_zeros_left_out_that_is_lost_and_sent_again() -> None:
    """The guest makes zero what has arrived, before the chunk that brought it is sent again."""
    cut = Cut(connection=1, direction=Direction.DOWN, after=16)  # before its first answer
    options = SendOptions(connections=2, chunk_bytes=CHUNK, downtime_ms=1)
    with Guest() as guest, Landing() as landing:
        fill_with_zeros(guest, range(0, MIB, 2 * PAGE))

        def erase() -> None:
            fill_with_zeros(guest, range(PAGE, MIB, 4 * PAGE))

        guest.script["collect 1"] = erase
        sent, received, relay = await through(guest, landing, [cut], options)
        sent = assert_moved(guest, landing, sent, received)
        assert sent.lanes_lost == len(relay.strikes) == 1


def nothing_but_zeros(guest: Guest, first: int) -> None:
    """From collection `first` on, what the guest writes is one page of zeros each time."""

    def erase() -> None:
        assert guest.collects < first + 8, "it does not converge"
        fill_with_zeros(guest, [guest.collects * PAGE])

    for number in range(first, first + 10):
        guest.script[f"collect {number}"] = erase


@virtual
async def test_iterations_of_nothing_but_zeros_converge(clock: VirtualClockLoop) -> None:
    """Their bandwidth is that of the last content."""
    with Guest() as guest, Landing() as landing:
        nothing_but_zeros(guest, 2)

        def erase_much() -> None:
            clock.skip(10)
            fill_with_zeros(guest, range(0, MIB, PAGE))

        guest.script["collect 1"] = erase_much
        sent, received = await migrate(guest, landing)
        assert_moved(guest, landing, sent, received)


@virtual
async def test_a_guest_that_is_all_zero_and_writes_zeros_converges(clock: VirtualClockLoop) -> None:
    with Guest() as guest, Landing() as landing:
        fill_with_zeros(guest, range(0, 4 * MIB, PAGE))
        nothing_but_zeros(guest, 1)
        sent, received = await migrate(guest, landing)
        assert_moved(guest, landing, sent, received)


# By hand, at the destination


def zeros(*ranges: tuple[int, int]) -> bytes:
    return request(ZEROS, table(ranges))


async def test_zeros_take_the_place_of_what_was_there() -> None:
    with Landing() as landing:
        async with migrating(landing, offer=int(SESSION_AND_ZEROS)) as (reception, main):
            await main.ask(memory([(0, 4 * PAGE)], b"\x11" * 4 * PAGE))
            await main.ask(zeros((PAGE, 2 * PAGE)))
            await main.ask(zeros())
            await main.ask(request(STATE, STATE_JSON))
            await main.ask(request(COMPLETE))
            main.close()
            report = await reception.result()
        content = landing.view(0)[: 4 * PAGE]
        assert content == b"\x11" * PAGE + bytes(2 * PAGE) + b"\x11" * PAGE
        assert (report.bytes, report.zero_bytes) == (4 * PAGE, 2 * PAGE)


@pytest.mark.parametrize(
    ("ranges", "says"),
    [
        ([(2 << 30, PAGE)], "outside the guest's memory"),
        ([(0, 0)], "is empty"),
        ([(0, 2**64 - 1)], "range 0"),
        ([((1 << 64) - PAGE, 2 * PAGE)], "range 0"),
        ([(0, 64 * PAGE), (64 * PAGE, 16 * PAGE)] * 2, "zeros of 655360 bytes"),
    ],
)
async def test_zeros_are_checked_like_memory(ranges: list[tuple[int, int]], says: str) -> None:
    with Landing() as landing:
        async with migrating(landing, offer=int(SESSION_AND_ZEROS)) as (reception, main):
            await main.ask(memory([(0, PAGE)]))
            await main.send(zeros(*ranges))
            assert await main.rest() == (ERROR, "eof")
            with pytest.raises(Exception, match=says):
                await reception.result()


async def test_zeros_that_nobody_agreed_on_are_no_request() -> None:
    with Landing() as landing:
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as main:
                await main.ask(request(1))
                await main.send(zeros((0, PAGE)))
                assert await main.rest() == (ERROR, "eof")
            with pytest.raises(Exception, match="Zeros"):
                await reception.result()


async def test_zeros_that_cannot_be_made_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with Landing() as landing:
        async with migrating(landing, offer=int(SESSION_AND_ZEROS)) as (reception, main):
            monkeypatch.setattr(GuestMemory, "zero", broken)
            await main.send(zeros((0, PAGE)))
            assert await main.rest() == (ERROR, "eof")
            with pytest.raises(Exception, match="Input/output error"):
                await reception.result()
