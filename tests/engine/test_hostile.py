"""Hostile input: to `receive` from raw sockets, and to `send` from a destination that lies."""

import asyncio
import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiomigrate
from aiomigrate import (
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    Phase,
    ReceiveOptions,
    Reception,
    SendOptions,
)
from aiomigrate.protocol import Limits
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import (
    ERROR,
    OK,
    PAGE_FAULT,
    RAM,
    ROLE_FAULT,
    ROLE_MEMORY,
    SMALL,
    SMALL_CONFIG,
    Raw,
    Server,
    memory,
    migrate_whole,
    raw_sources,
    request,
    response,
    table,
)
from tests.support.image import PAGE
from tests.support.peer import (
    ABANDON,
    COMPLETE,
    COMPLETE_PAUSED,
    CONFIG,
    MEMORY,
    MEMORY_FD,
    START,
    STATE,
)
from tests.support.vms import STATE_JSON, Guest, Landing, config_of

pytestmark = pytest.mark.usefixtures("no_leaks")

_LOCAL = "tcp:127.0.0.1:0"
_MOST = 2**64 - 1
_MIB = 1 << 20
# What comes before a state is reached; the name is that of the last request.
_GOOD = {
    "Start": request(START),
    "Config": request(CONFIG, SMALL_CONFIG),
    "Memory": memory([(0, PAGE)]),
    "State": request(STATE, STATE_JSON),
}


@asynccontextmanager
async def _receiving(
    landing: Landing, options: ReceiveOptions | None = None
) -> AsyncIterator[Reception]:
    """A reception whose error the test looks at by itself."""
    reception = aiomigrate.receive(landing, _LOCAL, options)
    async with reception:
        yield reception


async def _reach(raw: Raw, state: str) -> None:
    for name, data in _GOOD.items():
        await raw.ask(data)
        if name == state:
            return


async def _failure(reception: Reception) -> MigrationFailed:
    with pytest.raises(MigrationFailed) as caught:
        await reception.result()
    assert type(caught.value) is MigrationFailed
    assert caught.value.owner is Owner.SOURCE
    return caught.value


# The main connection.


@dataclass(frozen=True)
class _Case:
    """`data` on the main connection after the answer to `after` is answered with Error; receive's
    exception has all of `says`.
    """

    name: str
    after: str
    data: bytes
    says: tuple[str, ...]


def _map(**changes: object) -> bytes:
    """The Config with its second mapping changed."""
    document = json.loads(SMALL_CONFIG)
    document["memory_manager_data"]["guest_ram_mappings"][1] |= changes
    return json.dumps(document).encode()


def _config(name: str, payload: bytes, *says: str) -> _Case:
    return _Case(f"Config: {name}", "Start", request(CONFIG, payload), ("tcp:127.0.0.1:", *says))


def _ranges(name: str, *ranges: tuple[int, int], says: tuple[str, ...]) -> _Case:
    data = request(MEMORY, table(ranges))
    return _Case(f"Memory: {name}", "Config", data, ("tcp:127.0.0.1:", *says))


_AT_CONFIGURED = ("main", "Configured", "expected")
_CASES = (
    # lengths
    *(
        _Case(
            f"Config of {length} bytes",
            "Start",
            request(CONFIG, length=length),
            ("main", "Config: expected 1 to 4194304 bytes", f"got {length} bytes"),
        )
        for length in (_MOST, 1 << 40, (4 << 20) + 1)
    ),
    *(
        _Case(
            f"State of {length} bytes",
            "Memory",
            request(STATE, length=length),
            ("main", "State: expected 1 to 1073741824 bytes", f"got {length} bytes"),
        )
        for length in (_MOST, 1 << 40, (1 << 30) + 1)
    ),
    *(
        _Case(
            f"table of {length} bytes",
            "Config",
            request(MEMORY, length=length),
            ("main", "Memory: expected a multiple of 16 bytes", f"got {length} bytes"),
        )
        for length in (_MOST, (1 << 40) + 1, 8, 17)
    ),
    *(
        _Case(
            f"table of {length} bytes",
            "Config",
            request(MEMORY, length=length),
            ("tcp:127.0.0.1:", f"a range table of {length} bytes", "is over"),
        )
        for length in (_MOST - 15, 1 << 40, 32 * (RAM // PAGE) + 48)
    ),
    _Case("Config of 0", "Start", request(CONFIG), ("Config: expected 1 to", "got 0 bytes")),
    _Case("State of 0", "Memory", request(STATE), ("State: expected 1 to", "got 0 bytes")),
    # payloads where none belong
    *(
        _Case(
            f"{name} with {what} payload",
            after,
            data,
            ("main", f"{name}: expected no payload", "got "),
        )
        for name, command, after in (
            ("Complete", COMPLETE, "State"),
            ("CompletePaused", COMPLETE_PAUSED, "State"),
            ("Abandon", ABANDON, "Start"),
            ("Abandon", ABANDON, "Config"),
            ("Abandon", ABANDON, "State"),
        )
        for what, data in (
            ("a small", request(command, b"x" * 5)),
            ("a drained", request(command, b"x" * 65536)),
            ("a long", request(command, b"x" * 65537)),
            ("a huge", request(command, length=_MOST)),
        )
    ),
    # ranges
    _ranges(
        "outside", (2 << 30, PAGE), says=("range 0", "0x80000000", "outside the guest's memory")
    ),
    _ranges(
        "across two mappings", (0, PAGE), (63 * PAGE, 2 * PAGE), says=("range 1", "crosses the end")
    ),
    _ranges("past the end", (79 * PAGE, PAGE + 1), says=("range 0", "crosses the end")),
    _ranges("of length 0", (0, 0), says=("range 0", "0 bytes", "is empty")),
    _ranges("wraps", (4 << 30, _MOST - PAGE), says=("range 0", "wraps at 2^64")),
    _ranges("the last byte", (_MOST, 1), says=("range 0", "outside")),
    _ranges("all of 2^64-1", (0, _MOST), says=("range 0", "crosses the end")),
    # Config's content
    _config("not JSON", b"no JSON", "not JSON"),
    _config("not UTF-8", b'{"a": "\xff"}', "not JSON"),
    _config("nested deep", b"[" * 200_000, "nested too deep"),
    _config("a long number", b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    _config("a list", b"[]", "is not an object"),
    _config("no mappings", config_of(()), "maps no guest memory"),
    _config("overlapping", _map(gpa=63 * PAGE), "slots 0 and 1 overlap"),
    _config("one slot twice", _map(slot=0), "slot 0 twice"),
    _config("a wrap", _map(gpa=2**64 - PAGE), "wraps at 2^64"),
    _config("2^63 bytes", _map(gpa=8 << 30, size=1 << 63), "beyond what a file can hold"),
    _config("unaligned", _map(gpa=8 << 30, size=100), "not aligned"),
    _config("a negative size", _map(size=-PAGE), "unsigned 64-bit"),
    # order
    *(
        _Case(f"{name} after {after}", after, data, ("main", "expected", f"got {name}"))
        for name, data, afters in (
            ("Start", request(START), ("Start", "Config", "Memory", "State")),
            ("Config", request(CONFIG, SMALL_CONFIG), ("Config", "Memory", "State")),
            ("Memory", memory([(0, PAGE)]), ("Start", "State")),
            ("State", request(STATE, STATE_JSON), ("Start", "State")),
            ("Complete", request(COMPLETE), ("Start", "Config", "Memory")),
            ("CompletePaused", request(COMPLETE_PAUSED), ("Start", "Config")),
            ("PageFault", request(PAGE_FAULT, table([(0, PAGE)])), ("Start", "Memory", "State")),
            ("Invalid", request(0), ("Start", "State")),
            ("MemoryFd", request(MEMORY_FD, bytes(4)), ("Config", "State")),
        )
        for after in afters
    ),
    *(
        _Case(f"command {number}", after, request(number), ("main", "expected", str(number)))
        for number in (10, 0x8000, 0xFFFF)
        for after in ("Start", "Memory", "State")
    ),
    _Case("MemoryFd over tcp", "Start", request(MEMORY_FD, bytes(4)), ("tcp:", "descriptor")),
    _Case("MemoryFd of 5", "Start", request(MEMORY_FD, bytes(5)), ("expected 4 bytes", "5 bytes")),
    _Case("MemoryFd, huge", "Start", request(MEMORY_FD, length=_MOST), ("expected 4 bytes",)),
    _Case(
        "State before memory", "Config", request(STATE, b"{}"), ("state came before any memory",)
    ),
)


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
async def test_a_request_is_refused_by_name(case: _Case) -> None:
    with Landing() as landing:
        async with _receiving(landing) as reception:
            with await Raw.connect(reception.address) as raw:
                await _reach(raw, case.after)
                await raw.send_in_vain(case.data)
                assert await raw.rest() == (ERROR, "eof")
                name = raw.name
            error = await _failure(reception)
        text = str(error)
        for part in case.says:
            assert part in text, text
        assert name in text, text
        assert len(landing.discarded) == (case.after != "Start")
        assert landing.runs is None


@pytest.mark.parametrize("extra", [1, 3 * _MIB], ids=["a byte", "megabytes"])
async def test_an_error_is_read_though_content_is_on_its_way(extra: int) -> None:
    """Closing over unread bytes would reset the connection and lose the answer."""
    with Landing() as landing:
        async with _receiving(landing) as reception:
            with await Raw.connect(reception.address) as raw:
                await _reach(raw, "Config")
                await raw.send_in_vain(request(MEMORY, table([(2 << 30, extra)])) + bytes(extra))
                assert await raw.rest() == (ERROR, "eof")
            await _failure(reception)


async def test_ranges_may_overlap_in_one_table_and_the_later_wins() -> None:
    with Landing() as landing:
        async with _receiving(landing) as reception:
            with await Raw.connect(reception.address) as raw:
                await _reach(raw, "Config")
                ranges = [(0, 3 * PAGE), (PAGE, PAGE), (100, 8), (2 * PAGE - 1, 2), (PAGE, 0x100)]
                await raw.ask(memory(ranges))
                await raw.ask(_GOOD["State"])
                await raw.ask(request(COMPLETE))
            await reception.result()
        expected = bytearray(4 * PAGE)
        for number, (gpa, length) in enumerate(ranges, 1):
            expected[gpa : gpa + length] = bytes([number]) * length
        assert landing.view(0)[: 4 * PAGE] == expected


# Before the migration has begun: strangers.


async def _silence(raw: Raw) -> None:
    """Says nothing, and stays."""


async def _scan(raw: Raw) -> None:
    raw.close()


async def _scan_reset(raw: Raw) -> None:
    raw.close(reset=True)


def _says(data: bytes, answer: bytes) -> Callable[[Raw], Awaitable[None]]:
    async def speak(raw: Raw) -> None:
        await raw.send_in_vain(data)
        assert await raw.rest() == (answer, "eof")

    return speak


def _says_and_ends(data: bytes) -> Callable[[Raw], Awaitable[None]]:
    async def speak(raw: Raw) -> None:
        await raw.send(data)
        raw.end()
        assert await raw.rest() == (b"", "eof")

    return speak


async def _half_a_start(raw: Raw) -> None:
    await raw.send(request(START)[:9])


_STRANGERS: dict[str, Callable[[Raw], Awaitable[None]]] = {
    "silence": _silence,
    "a port scan": _scan,
    "a port scan with reset": _scan_reset,
    "half a Start": _half_a_start,
    "half a Start and the end": _says_and_ends(request(START)[:9]),
    "one byte and the end": _says_and_ends(b"\1"),
    "HTTP": _says(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ERROR),
    "TLS": _says(bytes.fromhex("16030100c8010000c40303") + bytes(100), ERROR),
    "zeros": _says(bytes(64), ERROR),
    "Start of version 1": _says(request(START, headers=b"\1" + bytes(5)), ERROR),
    "Start with a payload": _says(request(START, b"x" * 100), ERROR),
    "Start with a drained payload": _says(request(START, b"x" * 65536), ERROR),
    "Start with a long payload": _says(request(START, b"x" * 200_000), ERROR),
    "Start with a huge payload": _says(request(START, length=_MOST), ERROR),
    "Config first": _says(request(CONFIG, SMALL_CONFIG), ERROR),
    "Memory first": _says(memory([(0, PAGE)]), ERROR),
    "State first": _says(request(STATE, b"{}"), ERROR),
    "Complete first": _says(request(COMPLETE), ERROR),
    "Abandon first": _says(request(ABANDON), ERROR),
    "PageFault first": _says(request(PAGE_FAULT, table([(0, PAGE)])), ERROR),
    "an unknown command": _says(request(77), ERROR),
}


@pytest.mark.parametrize("name", _STRANGERS)
async def test_a_stranger_does_not_harm_the_listener(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiomigrate")
    with Landing() as landing:
        async with _receiving(landing) as reception:
            with await Raw.connect(reception.address) as raw:
                who = raw.name
                await _STRANGERS[name](raw)
                assert reception.progress.phase is Phase.WAITING
                page = await migrate_whole(reception.address)
            report = await reception.result()
        assert report.confirmed
        assert landing.runs is True
        assert landing.view(0)[:PAGE] == page
    if "first" in name or "Start with" in name:
        assert any("refused: " in message and who in message for message in caplog.messages)


async def test_hundreds_of_strangers_do_not_keep_the_source_out() -> None:
    strangers = Limits().max_strangers + 60
    with Landing() as landing:
        async with _receiving(landing) as reception:
            async with raw_sources(reception.address, strangers) as raws:
                # Those who have been silent longest make room.
                for raw in raws[:10]:
                    assert await raw.rest() == (b"", "eof")
                await migrate_whole(reception.address)
            assert (await reception.result()).confirmed
        assert landing.runs is True


async def test_strangers_between_real_connections() -> None:
    """Every kind of stranger comes while a migration over two lanes is going on."""
    with Landing() as landing:
        async with _receiving(landing) as reception:
            address = reception.address
            with await Raw.connect(address) as main:
                await main.ask(_GOOD["Start"])
                async with raw_sources(address, len(_LANE_STRANGERS)) as strangers:
                    await main.ask(_GOOD["Config"])
                    with await Raw.connect(address) as one, await Raw.connect(address) as two:
                        await one.ask(ROLE_MEMORY + memory([(0, PAGE)]))
                        for raw, (data, answer) in zip(
                            strangers, _LANE_STRANGERS.values(), strict=True
                        ):
                            await raw.send_in_vain(data)
                            said, end = await raw.rest()
                            assert said == answer, data
                            assert end == "eof" or not answer, data
                        await two.ask(memory([(PAGE, PAGE)], b"\7" * PAGE))
                    await main.ask(_GOOD["State"])
                    await main.ask(request(COMPLETE))
            await reception.result()
        assert landing.view(0)[: 2 * PAGE] == b"\1" * PAGE + b"\7" * PAGE


# What comes as a lane and never belonged: the bytes, and what they are answered.
_LANE_STRANGERS = {
    "role 0": (bytes(2), b""),
    "role 3": (b"\3\0", b""),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", b""),
    "a role, then Config": (ROLE_MEMORY + request(CONFIG, SMALL_CONFIG), ERROR),
    "a role, then State": (ROLE_MEMORY + request(STATE, b"{}"), ERROR),
    "a role, then Complete": (ROLE_MEMORY + request(COMPLETE), ERROR),
    "a role, then Start": (ROLE_MEMORY + request(START), ERROR),
    "a role, then Abandon": (ROLE_MEMORY + request(ABANDON), ERROR),
    "a role, then PageFault": (ROLE_MEMORY + request(PAGE_FAULT, table([(0, PAGE)])), ERROR),
    "a role, then MemoryFd": (ROLE_MEMORY + request(MEMORY_FD, bytes(4)), ERROR),
    "a role, then an unknown command": (ROLE_MEMORY + request(77), ERROR),
    "a table of 17": (ROLE_MEMORY + request(MEMORY, bytes(17)), ERROR),
    "a table of 2^64-16": (ROLE_MEMORY + request(MEMORY, length=_MOST - 15), ERROR),
    "a table of 2^64-1, v52": (request(MEMORY, length=_MOST), ERROR),
    "a range outside": (ROLE_MEMORY + memory([(2 << 30, PAGE)]), ERROR),
    "a range outside, v52": (memory([(2 << 30, PAGE)]), ERROR),
}


async def test_a_stranger_that_was_refused_and_stays_does_not_disturb_state() -> None:
    """It got its Error and does not close: the migration neither fails nor waits for it."""
    with Landing() as landing:
        async with _receiving(landing) as reception:
            with await Raw.connect(reception.address) as main:
                await _reach(main, "Memory")
                async with raw_sources(reception.address, 2) as (command, outside):
                    await command.send(ROLE_MEMORY + request(STATE, b"{}"))
                    await outside.send(ROLE_MEMORY + memory([(2 << 30, PAGE)]))
                    assert await command.receive(16) == ERROR
                    assert await outside.receive(16) == ERROR
                    await main.ask(_GOOD["State"])
                    await main.ask(request(COMPLETE))
            await reception.result()
        assert landing.runs is True


async def test_fault_connections_are_limited_too() -> None:
    limits = Limits(max_strangers=4)
    with Landing() as landing:
        async with _receiving(landing, ReceiveOptions(limits=limits)) as reception:
            with await Raw.connect(reception.address) as main:
                await _reach(main, "Memory")
                async with raw_sources(reception.address, 0) as raws:
                    for _ in range(4):
                        raws.append(await Raw.connect(reception.address))
                        await raws[-1].send(ROLE_FAULT)
                        await main.ask(_GOOD["Memory"])  # the role has been read meanwhile
                    with await Raw.connect(reception.address) as one_more:
                        assert await one_more.rest() == (b"", "eof")
                    await main.send(_GOOD["State"])
                    assert await main.rest() == (ERROR, "eof")
                    main.close()
                    for raw in raws:
                        assert await raw.rest() == (b"", "eof")
            assert "post-copy" in str(await _failure(reception))


# Lanes.


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (request(CONFIG, SMALL_CONFIG), "got Config"),
        (request(STATE, STATE_JSON), "got State"),
        (request(COMPLETE), "got Complete"),
        (request(START), "got Start"),
        (request(ABANDON), "got Abandon"),
        (request(PAGE_FAULT, table([(0, PAGE)])), "got PageFault"),
        (request(MEMORY_FD, bytes(4)), "got MemoryFd"),
        (request(77), "77"),
        (request(MEMORY, bytes(17)), "multiple of 16 bytes, got 17 bytes"),
        (request(MEMORY, length=_MOST), f"got {_MOST} bytes"),
        (request(MEMORY, length=_MOST - 15), f"a range table of {_MOST - 15} bytes"),
        (memory([(0, PAGE), (2 << 30, PAGE)]), "range 1"),
        (memory([(0, 0)]), "is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_lane_that_breaks_a_rule_is_answered_and_ends_the_migration(
    data: bytes, says: str
) -> None:
    with Landing() as landing:
        async with _receiving(landing) as reception:
            with (
                await Raw.connect(reception.address) as main,
                await Raw.connect(reception.address) as lane,
            ):
                await main.ask(_GOOD["Start"])
                await main.ask(_GOOD["Config"])
                await lane.ask(ROLE_MEMORY + memory([(0, PAGE)]))
                await lane.send_in_vain(data)
                assert await lane.rest() == (ERROR, "eof")
                name = lane.name
                lane.close()
                assert await main.rest() == (b"", "eof")
            error = await _failure(reception)
        assert f"lane {name}" in str(error)
        assert says in str(error)
        assert len(landing.discarded) == 1


async def test_one_lane_more_than_there_may_be() -> None:
    limit = Limits().max_connections
    with Landing() as landing:
        async with _receiving(landing) as reception:
            with await Raw.connect(reception.address) as main:
                await main.ask(_GOOD["Start"])
                await main.ask(_GOOD["Config"])
                async with raw_sources(reception.address, limit + 1) as lanes:
                    for lane in lanes[:-1]:
                        await lane.ask(ROLE_MEMORY + memory([(0, PAGE)]))
                    await lanes[-1].send(ROLE_MEMORY + memory([(PAGE, PAGE)]))
                    assert await lanes[-1].rest() == (ERROR, "eof")
                    last = lanes[-1].name
                    for lane in lanes[:-1]:
                        await lane.ask(memory([(0, PAGE)], b"\3" * PAGE))
                # The rest of the migration is not disturbed; should it fail, that is named.
                await main.send(request(COMPLETE))
                assert await main.rest() == (ERROR, "eof")
            error = await _failure(reception)
        assert f"{last}: there are {limit} lanes already" in error.hint
        assert landing.view(0)[: 2 * PAGE] == b"\3" * PAGE + bytes(PAGE)


_PARTS = {
    "a byte of a header": memory([(PAGE, PAGE)])[:1],
    "a whole header": memory([(PAGE, PAGE)])[:16],
    "half a table": memory([(PAGE, PAGE)])[:24],
    "a table": memory([(PAGE, PAGE)])[:32],
    "half its content": memory([(PAGE, PAGE)])[: 32 + PAGE // 2],
}


@pytest.mark.parametrize("part", _PARTS)
async def test_a_lane_that_still_writes_at_state(part: str) -> None:
    with Landing() as landing:
        async with _receiving(landing) as reception:
            with (
                await Raw.connect(reception.address) as main,
                await Raw.connect(reception.address) as lane,
            ):
                await main.ask(_GOOD["Start"])
                await main.ask(_GOOD["Config"])
                await lane.ask(ROLE_MEMORY + memory([(0, PAGE)]))
                await lane.send(_PARTS[part])
                await main.ask(memory([(0, PAGE)]))  # the lane's bytes have been read meanwhile
                await main.send(_GOOD["State"])
                assert await main.rest() == (ERROR, "eof")
                name = lane.name
            # That the lane ends in the middle now, too, is not what ended the migration.
            error = await _failure(reception)
        assert f"lane {name} is" in str(error)
        assert "in the middle of a request at State" in str(error)
        assert landing.calls == ["configure", "discard"]


async def test_memory_on_a_new_lane_after_state() -> None:
    with Landing() as landing:
        async with _receiving(landing) as reception:
            with await Raw.connect(reception.address) as main:
                await _reach(main, "State")
                with await Raw.connect(reception.address) as lane:
                    await lane.send_in_vain(ROLE_MEMORY + memory([(0, PAGE)], b"\7" * PAGE))
                    assert (await lane.rest())[0] == b""
                await main.ask(request(COMPLETE))
            await reception.result()
        assert landing.view(0)[:PAGE] == b"\1" * PAGE


async def test_memory_on_an_old_lane_after_state() -> None:
    with Landing() as landing:
        async with _receiving(landing) as reception:
            with (
                await Raw.connect(reception.address) as main,
                await Raw.connect(reception.address) as lane,
            ):
                await main.ask(_GOOD["Start"])
                await main.ask(_GOOD["Config"])
                await lane.ask(ROLE_MEMORY + memory([(0, PAGE)]))
                await main.ask(_GOOD["State"])
                await lane.send_in_vain(memory([(0, PAGE)], b"\7" * PAGE))
                assert (await lane.rest())[0] == b""
                await main.ask(request(COMPLETE))
            await reception.result()
        assert landing.view(0)[:PAGE] == b"\1" * PAGE


# Memory use.

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
    st.sampled_from(list(_GOOD.values())),
    st.sampled_from(list(_GOOD.values())),
    st.sampled_from([request(COMPLETE), request(COMPLETE_PAUSED), request(ABANDON)]),
    st.sampled_from(
        [ROLE_MEMORY, ROLE_FAULT, memory([(PAGE, PAGE)]), ROLE_MEMORY + _GOOD["Memory"]]
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
    st.builds(
        lambda data, at: data[:at], st.sampled_from(list(_GOOD.values())), st.integers(1, 40)
    ),
)
_MOVES = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 2]), _MESSAGES), max_size=12)
_OPENING = st.integers(0, 4).map(lambda n: [(0, data) for data in list(_GOOD.values())[:n]])


@given(opening=_OPENING, moves=_MOVES)
@settings(
    max_examples=120,
    deadline=None,
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
            async with aiomigrate.receive(landing, _LOCAL) as reception:
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


# A destination that lies to `send`.

_Act = Callable[[Raw], Awaitable[None]]


def _answers(data: bytes, *, then: str = "wait") -> _Act:
    async def act(raw: Raw) -> None:
        await raw.send_in_vain(data)
        if then == "end":
            raw.end()
        if then == "reset":
            raw.close(reset=True)
        else:
            await raw.rest()

    return act


@dataclass(frozen=True)
class _Lie:
    """What a destination does instead of answering, and what the source's error has to say."""

    act: _Act
    says: str


_LIES = {
    "status 0": _Lie(_answers(response(0)), "expected status Ok or Error, got status 0"),
    "status 3": _Lie(_answers(response(3)), "expected status Ok or Error, got status 3"),
    "status 65535": _Lie(_answers(response(65535)), "got status 65535"),
    "Ok with content": _Lie(_answers(response(1, 5) + b"12345"), "got 5 bytes of it"),
    "Ok with huge content": _Lie(_answers(response(1, _MOST)), f"got {_MOST} bytes of it"),
    "Error": _Lie(_answers(ERROR), "refused"),
    "Error and the end": _Lie(_answers(ERROR, then="end"), "refused"),
    "half an answer and the end": _Lie(_answers(OK[:7], then="end"), "got end of stream"),
    "the end": _Lie(_answers(b"", then="end"), "got end of stream"),
    "a reset": _Lie(_answers(b"", then="reset"), "lost"),
    "garbage": _Lie(_answers(b"HTTP/1.1 400 Bad Request"), "expected status Ok or Error"),
}
_REQUESTS = {"Start": START, "Config": CONFIG, "Memory": MEMORY, "State": STATE}


async def _serve(raw: Raw, server: Server, at: int, act: _Act) -> None:
    """Answer with Ok up to the request `at`."""
    while True:
        command, _ = await server.take_memory(raw)
        if command in (at, -1, ABANDON):
            break
        await raw.send(OK)
    if command == at:
        await act(raw)


async def _lie(guest: Guest, at: int, act: _Act) -> aiomigrate.Report | BaseException:
    with Server() as server:
        async with asyncio.TaskGroup() as group, aiomigrate.send(guest, server.address) as sending:
            with await server.accept() as raw:
                await _serve(raw, server, at, act)
            del group
            try:
                return await sending.result()
            except aiomigrate.MigrationError as error:
                return error


@pytest.mark.parametrize("lie", _LIES)
@pytest.mark.parametrize("at", _REQUESTS)
async def test_a_lying_destination_leaves_the_vm_with_the_source(at: str, lie: str) -> None:
    with Guest(SMALL) as guest:
        error = await _lie(guest, _REQUESTS[at], _LIES[lie].act)
        assert isinstance(error, MigrationFailed)
        assert error.owner is Owner.SOURCE
        assert _LIES[lie].says in str(error), error
        assert "main" in str(error) or "tcp:127.0.0.1:" in str(error)
        assert guest.running
        assert "lost" not in guest.calls
        assert "release" not in guest.calls
        assert ("resume" in guest.calls) == ("pause" in guest.calls) == (at == "State")
        assert ("take_back" in guest.calls) == ("hand_over" in guest.calls) == (at == "State")
        assert not guest.dirty.on


@pytest.mark.parametrize("lie", _LIES)
async def test_a_lie_about_complete(lie: str) -> None:
    """Only an Error proves that the destination does not run it."""
    with Guest(SMALL) as guest:
        error = await _lie(guest, COMPLETE, _LIES[lie].act)
        if lie.startswith("Error"):
            assert isinstance(error, MigrationFailed)
            assert guest.running
            assert guest.calls[-3:] == ["take_back", "resume", "stop"]
        else:
            assert isinstance(error, OutcomeUnknown)
            assert "tcp:127.0.0.1:" in str(error)
            assert _LIES[lie].says in str(error)
            assert not guest.running
            assert guest.calls[-2:] == ["lost", "stop"]
            assert "take_back" not in guest.calls


@pytest.mark.parametrize("at", _REQUESTS)
async def test_an_answer_that_nothing_asked_for(at: str) -> None:
    with Guest(SMALL) as guest:
        error = await _lie(guest, _REQUESTS[at], _answers(OK * 3))
        assert isinstance(error, MigrationFailed)
        assert "expected no response, got one of status 1" in str(error)
        assert guest.running


async def test_answers_behind_the_one_to_complete_change_nothing() -> None:
    with Guest(SMALL) as guest:
        report = await _lie(guest, COMPLETE, _answers(OK + ERROR + b"more"))
        assert isinstance(report, aiomigrate.Report)
        assert guest.ended
        assert not guest.running


@pytest.mark.parametrize("lie", [*_LIES, "unasked"])
async def test_a_lying_lane(lie: str) -> None:
    act, says = _answers(OK * 100), "expected no response"
    if lie != "unasked":
        act, says = _LIES[lie].act, _LIES[lie].says

    async def lane(raw: Raw, server: Server) -> None:
        assert await raw.receive(2) == ROLE_MEMORY
        await _serve(raw, server, MEMORY, act)

    async def destination(server: Server) -> None:
        with await server.accept() as main:
            for _ in range(2):
                await server.request(main)
                await main.send(OK)
            with await server.accept() as one, await server.accept() as two:
                # Either lane may get the first chunk, or both one.
                await asyncio.gather(give_up(main), lane(one, server), lane(two, server))

    async def give_up(main: Raw) -> None:
        assert await server.request(main) == (ABANDON, b"")
        await main.send(OK)

    with Guest(SMALL) as guest, Server() as server:
        serving = asyncio.create_task(destination(server))
        options = SendOptions(connections=2, chunk_bytes=4 * PAGE)
        with pytest.raises(MigrationFailed) as caught:
            async with aiomigrate.send(guest, server.address, options):
                pass
        await serving
        assert says in str(caught.value)
        assert "lane " in str(caught.value) or "tcp:127.0.0.1:" in str(caught.value)
        assert caught.value.owner is Owner.SOURCE
        assert guest.running
