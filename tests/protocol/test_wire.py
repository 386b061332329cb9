import struct
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.protocol import wire
from aiomigrate.protocol.wire import Command, Dialect, Request, Response, Role, Status

U16 = st.integers(0, (1 << 16) - 1)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
SIX = st.binary(min_size=6, max_size=6)

REQUESTS = [
    (Request(Command.START), "01000000000000000000000000000000"),
    (Request.start(0, b"\x01\x02\x03\x04"), "01000000010203040000000000000000"),
    (Request.start(0x0201), "01000102000000000000000000000000"),
    (Request(Command.CONFIG, 0x0102), "02000000000000000201000000000000"),
    (Request(Command.STATE, 1 << 63), "03000000000000000000000000000080"),
    (Request(Command.MEMORY, 16), "04000000000000001000000000000000"),
    (Request(Command.COMPLETE), "05000000000000000000000000000000"),
    (Request(Command.ABANDON), "06000000000000000000000000000000"),
    (Request(Command.MEMORY_FD, 4), "07000000000000000400000000000000"),
    (Request(Command.COMPLETE_PAUSED), "08000000000000000000000000000000"),
    (Request(Command.PAGE_FAULT, 16), "09000000000000001000000000000000"),
    (Request(Command.SESSION, 16), "00800000000000001000000000000000"),
    (Request(Command.JOIN, 20), "01800000000000001400000000000000"),
    (Request(Command.RETIRE_LANE, 4), "02800000000000000400000000000000"),
    (Request(Command.OWNER, 16), "03800000000000001000000000000000"),
    (Request(Command.ZEROS, 32), "04800000000000002000000000000000"),
    (Request(Command.CONFIRM), "05800000000000000000000000000000"),
    (Request(0xFFFF, (1 << 64) - 1, b"\xff" * 6), "ff" * 16),
]
RESPONSES = [
    (Response(Status.OK), "01000000000000000000000000000000"),
    (Response(Status.ERROR), "02000000000000000000000000000000"),
    (Response(Status.OK, 4096), "01000000000000000010000000000000"),
    (Response(0x0201, 1, b"abcdef"), "01026162636465660100000000000000"),
]


def test_sizes_are_those_of_the_wire() -> None:
    sizes = wire.REQUEST_BYTES, wire.RESPONSE_BYTES, wire.RANGE_BYTES
    assert sizes == (16, 16, 16)
    assert (wire.ROLE_BYTES, wire.SLOT_BYTES) == (2, 4)


def test_numbers_are_those_of_the_wire() -> None:
    names = "Invalid Start Config State Memory Complete Abandon MemoryFd CompletePaused PageFault"
    names += " Session Join RetireLane Owner Zeros Confirm"
    assert [wire.command_name(command) for command in Command] == names.split()
    assert [command.value for command in Command] == [*range(10), *range(0x8000, 0x8006)]
    assert {status.name: status.value for status in Status} == {"INVALID": 0, "OK": 1, "ERROR": 2}
    assert [role.value for role in (Role.INVALID, Role.PRECOPY_MEMORY, Role.FAULT)] == [0, 1, 2]
    assert [str(dialect) for dialect in Dialect] == ["v53", "v52"]
    assert wire.PROTOCOL_VERSION == 0


@pytest.mark.parametrize(("request_", "text"), REQUESTS)
def test_requests(request_: Request, text: str) -> None:
    assert request_.encode().hex() == text
    assert Request.decode(bytes.fromhex(text)) == request_
    assert Request.decode(memoryview(bytearray.fromhex(text))) == request_


@pytest.mark.parametrize(("response", "text"), RESPONSES)
def test_responses(response: Response, text: str) -> None:
    assert response.encode().hex() == text
    assert Response.decode(bytes.fromhex(text)) == response


@given(U16, U64, SIX)
def test_any_request_and_response_comes_back(number: int, length: int, six: bytes) -> None:
    assert Request.decode(Request(number, length, six).encode()) == Request(number, length, six)
    assert Response.decode(Response(number, length, six).encode()) == Response(number, length, six)


@given(U16, st.binary(min_size=4, max_size=4))
def test_a_start_carries_version_and_offer(version: int, offer: bytes) -> None:
    start = Request.decode(Request.start(version, offer).encode())
    assert (start.command, start.length) == (Command.START, 0)
    assert (start.version, start.offer) == (version, offer)


@given(U64, U64)
def test_ranges(gpa: int, length: int) -> None:
    data = wire.encode_range(gpa, length)
    assert data == gpa.to_bytes(8, "little") + length.to_bytes(8, "little")
    assert wire.decode_range(data) == (gpa, length)


@given(U32)
def test_slots_and_lane_numbers(number: int) -> None:
    assert wire.encode_slot(number) == number.to_bytes(4, "little")
    assert wire.decode_slot(wire.encode_slot(number)) == number
    assert wire.encode_lane_number(number) == number.to_bytes(4, "little")
    assert wire.decode_lane_number(wire.encode_lane_number(number)) == number


@given(U16)
def test_roles(number: int) -> None:
    assert wire.decode_role(number.to_bytes(2, "little")) == number


def test_roles_are_written_as_two_bytes() -> None:
    assert wire.encode_role(Role.PRECOPY_MEMORY) == b"\x01\x00"
    assert wire.encode_role(Role.FAULT) == b"\x02\x00"


@pytest.mark.parametrize(
    ("decode", "size"),
    [
        (Request.decode, 16),
        (Response.decode, 16),
        (wire.decode_range, 16),
        (wire.decode_role, 2),
        (wire.decode_slot, 4),
        (wire.decode_lane_number, 4),
    ],
)
@pytest.mark.parametrize("off", [-1, 1])
def test_no_other_size_is_decoded(decode: Callable[[bytes], object], size: int, off: int) -> None:
    decode(bytes(size))
    with pytest.raises(struct.error):
        decode(bytes(size + off))


@pytest.mark.parametrize("number", [10, 0x7FFF, 0x8006, 0xFFFF])
def test_a_number_without_a_name(number: int) -> None:
    assert wire.command_name(number) == f"unknown command {number}"


@pytest.mark.parametrize("frame", [Request(1), Response(1)])
def test_frames_are_frozen_and_small(frame: Request | Response) -> None:
    assert not hasattr(frame, "__dict__")
    with pytest.raises(FrozenInstanceError):
        frame.length = 1  # type: ignore[misc]
