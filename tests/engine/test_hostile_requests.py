"""Hostile requests on the main connection of `receive`."""

import json
from dataclasses import dataclass

import pytest

from tests.engine.engine_hostile import GOOD, failure_of, reach, receiving
from tests.support.hostile import (
    ERROR,
    PAGE_FAULT,
    RAM,
    SMALL_CONFIG,
    Raw,
    memory,
    request,
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
from tests.support.vms import STATE_JSON, Landing, config_of

pytestmark = pytest.mark.usefixtures("no_leaks")

_MOST = 2**64 - 1
_MIB = 1 << 20


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
        for number in (10, 0x7FFF, 0xFFFF)
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
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as raw:
                await reach(raw, case.after)
                await raw.send_in_vain(case.data)
                assert await raw.rest() == (ERROR, "eof")
                name = raw.name
            error = await failure_of(reception)
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
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as raw:
                await reach(raw, "Config")
                await raw.send_in_vain(request(MEMORY, table([(2 << 30, extra)])) + bytes(extra))
                assert await raw.rest() == (ERROR, "eof")
            await failure_of(reception)


async def test_ranges_may_overlap_in_one_table_and_the_later_wins() -> None:
    with Landing() as landing:
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as raw:
                await reach(raw, "Config")
                ranges = [(0, 3 * PAGE), (PAGE, PAGE), (100, 8), (2 * PAGE - 1, 2), (PAGE, 0x100)]
                await raw.ask(memory(ranges))
                await raw.ask(GOOD["State"])
                await raw.ask(request(COMPLETE))
            await reception.result()
        expected = bytearray(4 * PAGE)
        for number, (gpa, length) in enumerate(ranges, 1):
            expected[gpa : gpa + length] = bytes([number]) * length
        assert landing.view(0)[: 4 * PAGE] == expected
