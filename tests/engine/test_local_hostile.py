"""Descriptors that a source must not pass: each refused by name, with an Error, and all closed."""

import asyncio
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import MigrationFailed, Owner, Reception
from tests.support.hostile import ERROR, OK, ROLE_FAULT, Raw, memory, request
from tests.support.image import PAGE
from tests.support.peer import ABANDON, COMPLETE, CONFIG, MEMORY_FD, START, STATE
from tests.support.shared_guest import ZONES, Taker, digest_of, memfds_of
from tests.support.vms import MIB, STATE_JSON, Landing, config_of

pytestmark = pytest.mark.usefixtures("no_leaks")

_CONFIG = request(CONFIG, config_of(ZONES))
_STATE = request(STATE, STATE_JSON)


class Source:
    """A source by hand, over a unix socket, with the guest's memfds."""

    def __init__(self, path: str, zones: dict[str, int]) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.raw = Raw(self.sock)
        self.fds = {mapping.slot: zones[mapping.zone_id] for mapping in ZONES}

    def give(self, slot: int, *fds: int) -> None:
        """A MemoryFd, without waiting for its answer."""
        self.sock.sendall(request(MEMORY_FD, length=4))
        socket.send_fds(self.sock, [struct.pack("<I", slot)], fds)

    async def pass_slot(self, slot: int) -> None:
        """A MemoryFd that is answered Ok."""
        self.give(slot, self.fds[slot])
        assert await self.raw.receive(16) == OK

    async def begin(self, slots: Sequence[int] = ()) -> None:
        """Start, and the memory of some slots."""
        await self.raw.ask(request(START))
        for slot in slots:
            await self.pass_slot(slot)

    async def refused(self) -> None:
        assert await self.raw.rest() == (ERROR, "eof")
        self.raw.end()


@asynccontextmanager
async def _receiving(landing: Landing, tmp_path: Path) -> AsyncIterator[tuple[Reception, Source]]:
    zones = memfds_of(ZONES)
    try:
        async with aiomigrate.receive(landing, f"unix:{tmp_path}/socket") as reception:
            source = Source(f"{tmp_path}/socket", zones)
            with source.raw:
                yield reception, source
    finally:
        for fd in zones.values():
            os.close(fd)


async def _failure(reception: Reception) -> str:
    with pytest.raises(MigrationFailed) as caught:
        await reception.result()
    assert caught.value.owner is Owner.SOURCE
    return str(caught.value)


@pytest.mark.parametrize("order", [(0, 2, 5), (5, 2, 0)])
async def test_slots_come_in_any_order(tmp_path: Path, order: Sequence[int]) -> None:
    with Taker() as taker:
        async with _receiving(taker, tmp_path) as (reception, source):
            await source.begin(order)
            for data in (_CONFIG, _STATE, request(COMPLETE)):
                await source.raw.ask(data)
            assert taker.digest() == digest_of(ZONES, source.fds)
            source.raw.end()
            await reception.result()
        assert taker.runs


Given = Callable[[Source], None]


def _gives(slot: int, *fds: int) -> Given:
    return lambda source: source.give(slot, *fds)


def _beside(data: bytes) -> Given:
    """A descriptor beside the bytes of something else."""

    def give(source: Source) -> None:
        socket.send_fds(source.sock, [data], [1])

    return give


_ALL = (0, 2, 5)


@pytest.mark.parametrize(
    ("before", "give", "says"),
    [
        pytest.param((), _gives(0), "one descriptor is due, got 0", id="none"),
        pytest.param((), _gives(0, 1, 2), "one descriptor is due, got 2", id="two"),
        pytest.param((), _gives(0, 0, 1, 2), "got more than came .*MSG_CTRUNC", id="three"),
        pytest.param(
            (2,),
            lambda source: source.give(2, source.fds[2]),
            "slot 2: expected one descriptor, got a second one",
            id="a slot twice",
        ),
        pytest.param((0,), _beside(request(ABANDON)), "no descriptor is due", id="with Abandon"),
        pytest.param(_ALL, _beside(_CONFIG), "no descriptor is due, got 1", id="with Config"),
    ],
)
async def test_a_descriptor_out_of_place_is_refused_by_name(
    tmp_path: Path, before: Sequence[int], give: Given, says: str
) -> None:
    with Taker() as taker:
        async with _receiving(taker, tmp_path) as (reception, source):
            await source.begin(before)
            give(source)
            await source.refused()
            assert re.search(says, await _failure(reception))
        assert taker.calls == []


def _short() -> int:
    fd = os.memfd_create("short", os.MFD_CLOEXEC)
    os.ftruncate(fd, 5 * MIB - 1)
    return fd


def _pipe() -> int:
    read, write = os.pipe()
    os.close(write)
    return read


def _write_only() -> int:
    fd = os.memfd_create("reopened", os.MFD_CLOEXEC)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("before", "slot", "opened", "says"),
    [
        pytest.param((0, 2), None, None, "slot 5 is missing: .* 0, 2, 5, got 0, 2", id="missing"),
        pytest.param(_ALL, 7, _short, "slot 7 is of no mapping: .*got 0, 2, 5, 7", id="surplus"),
        pytest.param((0, 5), 3, _short, "slot 2 is missing: .*got 0, 3, 5", id="another number"),
        pytest.param(
            (0, 2),
            5,
            _short,
            r"slot 5: .* 5242880 bytes or more .*begins at 3145728.*got 5242879",
            id="too small for its file_offset",
        ),
        pytest.param((0, 2), 5, _pipe, "slot 5: .*file that holds memory.*'p'", id="a pipe"),
        pytest.param(
            (0, 2),
            5,
            lambda: os.open("/proc", os.O_RDONLY),
            "slot 5: .*file that holds memory.*'d'",
            id="a directory",
        ),
        pytest.param((0, 2), 5, _write_only, "slot 5: expected a readable file", id="write-only"),
        pytest.param(
            (0, 2),
            5,
            lambda: os.open("/proc/self/exe", os.O_PATH),
            "slot 5: expected a readable file",
            id="a path only",
        ),
    ],
)
async def test_descriptors_that_do_not_fit_the_config_are_refused_by_name(
    tmp_path: Path,
    before: Sequence[int],
    slot: int | None,
    opened: Callable[[], int] | None,
    says: str,
) -> None:
    with Taker() as taker:
        async with _receiving(taker, tmp_path) as (reception, source):
            await source.begin(before)
            if slot is not None and opened is not None:
                source.fds[slot] = opened()
                try:
                    await source.pass_slot(slot)
                finally:
                    os.close(source.fds[slot])
            await source.raw.send_in_vain(_CONFIG)
            await source.refused()
            assert re.search(says, await _failure(reception))
        assert taker.calls == []


async def test_one_beside_the_header_is_not_lost(tmp_path: Path) -> None:
    """As it would be by a plain read, a stock receiver's."""
    with Taker() as taker:
        async with _receiving(taker, tmp_path) as (reception, source):
            await source.begin((0, 2))
            data = request(MEMORY_FD, struct.pack("<I", 5))
            socket.send_fds(source.sock, [data], [source.fds[5]])
            assert await source.raw.receive(16) == OK
            await source.raw.ask(_CONFIG)
            assert taker.digest() == digest_of(ZONES, source.fds)
            source.raw.end()
            await _failure(reception)


async def test_a_config_that_is_none_closes_them_all(tmp_path: Path) -> None:
    with Taker() as taker:
        async with _receiving(taker, tmp_path) as (reception, source):
            await source.begin(_ALL)
            await source.raw.send_in_vain(request(CONFIG, b"{"))
            await source.refused()
            assert "not JSON" in await _failure(reception)


async def test_more_descriptors_than_a_map_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiomigrate.passed_memory.MAX_MAPPINGS", 2)
    with Taker() as taker:
        async with _receiving(taker, tmp_path) as (reception, source):
            await source.begin((0, 2))
            source.give(5, source.fds[5])
            await source.refused()
            assert "slot 5: expected 2 descriptors at the most" in await _failure(reception)


async def test_memory_that_was_given_is_not_sent(tmp_path: Path) -> None:
    with Taker() as taker:
        async with _receiving(taker, tmp_path) as (reception, source):
            await source.begin(_ALL)
            await source.raw.ask(_CONFIG)
            await source.raw.send_in_vain(memory([(0, PAGE)]))
            await source.refused()
            assert "given by descriptor already" in await _failure(reception)
        assert taker.calls == ["adopt", "discard"]


@pytest.mark.parametrize("cut", ["before Config", "in the slot", "after Config"])
async def test_a_source_that_is_gone_leaves_nothing(tmp_path: Path, cut: str) -> None:
    with Taker() as taker:
        async with _receiving(taker, tmp_path) as (reception, source):
            await source.begin((0, 2) if cut != "after Config" else _ALL)
            if cut == "in the slot":
                source.sock.sendall(request(MEMORY_FD, length=4))
                socket.send_fds(source.sock, [bytes(2)], [source.fds[5]])
            elif cut == "after Config":
                await source.raw.ask(_CONFIG)
            source.raw.end()
            await _failure(reception)
        assert taker.calls == (["adopt", "discard"] if cut == "after Config" else [])


@pytest.mark.parametrize("with_state", [False, True])
async def test_empty_files_of_an_on_demand_restore_are_not_taken_for_memory(
    tmp_path: Path, with_state: bool
) -> None:
    """A fault connection says that the pages are still to come. It comes in the moment before the
    State, when nobody has looked at it yet.
    """
    with Taker() as taker:
        async with _receiving(taker, tmp_path) as (reception, source):
            await source.begin(_ALL)
            await source.raw.ask(_CONFIG)
            with socket.socket(socket.AF_UNIX) as fault:
                fault.connect(source.path)
                fault.sendall(ROLE_FAULT)
                if not with_state:
                    await asyncio.sleep(0)
                source.sock.sendall(_STATE)
                await source.refused()
            assert "means post-copy" in await _failure(reception)
        assert taker.calls == ["adopt", "discard"]


async def test_a_silent_stranger_does_not_hold_the_state_up(tmp_path: Path) -> None:
    with Taker() as taker:
        async with _receiving(taker, tmp_path) as (reception, source):
            await source.begin(_ALL)
            await source.raw.ask(_CONFIG)
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(source.path)
                await source.raw.ask(_STATE)
                await source.raw.ask(request(COMPLETE))
                source.raw.end()
                await reception.result()
        assert taker.runs


async def test_slots_are_this_migrations_only(tmp_path: Path) -> None:
    """A VM that has been migrated before has other numbers (reference.md, section 5)."""
    other = tuple(replace(mapping, slot=mapping.slot + 100) for mapping in ZONES)
    with Taker() as taker:
        async with _receiving(taker, tmp_path) as (reception, source):
            source.fds = {slot + 100: fd for slot, fd in source.fds.items()}
            await source.begin((105, 100, 102))
            await source.raw.ask(request(CONFIG, config_of(other)))
            await source.raw.ask(_STATE)
            await source.raw.ask(request(COMPLETE))
            assert taker.digest() == digest_of(other, source.fds)
            source.raw.end()
            await reception.result()
