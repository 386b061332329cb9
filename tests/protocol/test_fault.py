import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.protocol import (
    Command,
    FaultDestination,
    FaultSource,
    FaultState,
    Limits,
    PageAnswered,
    PageRequested,
    RemoteProtocolError,
    Response,
    Status,
)
from aiomigrate.protocol.fault import ServingEnded
from aiomigrate.protocol.tables import DESTINATION_FAULT, SOURCE_FAULT, Signal
from aiomigrate.protocol.wire import encode_range
from tests.protocol.protocol_sides import ERROR, OK, misused, refused
from tests.support.feeding import every_way, feed, header

PAGE = 4096
LIMITS = Limits(max_page_bytes=1 << 21)
DRAINED = LIMITS.max_drained_bytes
HUGE = (1 << 64) - 1


def asking(gpa: int, length: int) -> bytes:
    return header(Command.PAGE_FAULT, 16) + encode_range(gpa, length)


def source_in(state: FaultState) -> FaultSource:
    core = FaultSource(LIMITS)
    if state is FaultState.CONNECTED:
        return core
    assert core.open() == b"\x02\x00"
    if state in {FaultState.ANSWERING, FaultState.FAILED}:
        feed(core, asking(PAGE, PAGE))
    elif state is FaultState.ENDING:
        feed(core, header(Command.ABANDON))
    if state is FaultState.FAILED:
        core.answer(ok=False)
    elif state is FaultState.CLOSED:
        core.receive_end()
    assert core.state == state
    return core


def destination_in(state: FaultState) -> FaultDestination:
    core = FaultDestination()
    if state is FaultState.CONNECTED:
        return core
    core.opened()
    if state is FaultState.FAILED:
        core.page_fault(0, PAGE)
        refused(lambda: core.receive_response(ERROR))
    elif state is FaultState.CLOSED:
        core.close()
    assert core.state == state
    return core


class TestSource:
    def test_a_fault_however_it_is_cut(self) -> None:
        data = asking(0x1_0000_0000, PAGE)
        for cuts in every_way(data):
            core = source_in(FaultState.SERVING)
            assert feed(core, data, cuts) == [PageRequested(gpa=0x1_0000_0000, length=PAGE)]
            assert core.wanted == 0
            assert core.page(PAGE).hex() == "01" + "00" * 7 + "0010" + "00" * 6
            assert core.wanted == 16

    def test_a_shared_page_has_no_content(self) -> None:
        core = source_in(FaultState.ANSWERING)
        assert core.page(0) == OK

    @pytest.mark.parametrize("length", [1, PAGE - 1, PAGE + 1])
    def test_another_length_than_asked_for(self, length: int) -> None:
        core = source_in(FaultState.ANSWERING)
        error = misused(lambda: core.page(length))
        assert (error.expected, error.got) == (f"0 or {PAGE} bytes", f"{length}")
        assert core.state is FaultState.ANSWERING

    def test_the_answer_to_abandon_is_no_page(self) -> None:
        data = header(Command.ABANDON)
        for cuts in every_way(data):
            core = source_in(FaultState.SERVING)
            feed(core, asking(0, PAGE))
            core.page(PAGE)
            assert feed(core, data, cuts) == [ServingEnded()]
            misused(lambda core=core: core.page(PAGE))  # type: ignore[misc]
            assert core.answer(ok=True) == OK
            assert core.state is FaultState.CLOSED
            assert core.wanted == 0

    @pytest.mark.parametrize("length", [0, LIMITS.max_page_bytes + 1, HUGE])
    def test_pages_of_a_hostile_length(self, length: int) -> None:
        core = source_in(FaultState.SERVING)
        error = refused(lambda: feed(core, asking(PAGE, length)))
        assert (error.connection, error.state, error.command) == ("fault", "Answering", "PageFault")
        assert (error.got, error.reply) == (f"{length}", ERROR)
        assert error.expected == f"a page of 1 to {LIMITS.max_page_bytes} bytes"
        assert core.wanted == 0

    @pytest.mark.parametrize("length", [1, LIMITS.max_page_bytes])
    def test_pages_within_the_limit(self, length: int) -> None:
        core = source_in(FaultState.SERVING)
        assert feed(core, asking(HUGE, length)) == [PageRequested(gpa=HUGE, length=length)]

    @pytest.mark.parametrize("command", [Command.PAGE_FAULT, Command.ABANDON])
    @pytest.mark.parametrize("length", [0, 1, 15, 16, 17, DRAINED, DRAINED + 1, HUGE])
    def test_hostile_lengths(self, command: Command, length: int) -> None:
        right = 16 if command is Command.PAGE_FAULT else 0
        if length == right:
            return
        core = source_in(FaultState.SERVING)
        data = header(command, length)
        if 0 < length <= DRAINED:
            assert feed(core, data + bytes(length - 1)) == []
            data = b"\x00"
        error = refused(lambda: core.receive_data(data))
        assert (error.expected, error.got) == (f"{right} bytes", f"{length} bytes")
        assert error.reply == ERROR

    @pytest.mark.parametrize("state", FaultState)
    @pytest.mark.parametrize("number", [*Command, 10, 0x7FFF, 0xFFFF])
    def test_each_state_and_command(self, state: FaultState, number: int) -> None:
        core = source_in(state)
        command = Command(number) if number in set(Command) else None
        following = SOURCE_FAULT.get((state, command)) if command is not None else None
        data = asking(0, PAGE) if command is Command.PAGE_FAULT else header(number)
        if core.wanted == 0:
            misused(lambda: core.receive_data(data[:16]))
            assert core.state is state
        elif following is None:
            error = refused(lambda: core.receive_data(data[:16]))
            assert (error.state, error.reply) == (state.value, ERROR)
            assert core.state is FaultState.FAILED
        else:
            assert len(feed(core, data)) == 1
            assert core.state is following

    @pytest.mark.parametrize("state", FaultState)
    @pytest.mark.parametrize("ok", [True, False])
    def test_each_state_and_answer(self, state: FaultState, ok: bool) -> None:
        core = source_in(state)
        following = SOURCE_FAULT.get((state, Signal.OK if ok else Signal.ERROR))
        if following is None:
            misused(lambda: core.answer(ok=ok))
            assert core.state is state
        else:
            core.answer(ok=ok)
            assert core.state is following

    @pytest.mark.parametrize("state", FaultState)
    def test_each_state_and_role(self, state: FaultState) -> None:
        core = source_in(state)
        if state is FaultState.CONNECTED:
            core.open()
            assert core.state is FaultState.SERVING
        else:
            assert misused(core.open).got == "role"
            assert core.state is state

    @pytest.mark.parametrize("state", FaultState)
    def test_each_state_and_the_end(self, state: FaultState) -> None:
        core = source_in(state)
        if state in {FaultState.SERVING, FaultState.FAILED}:
            core.receive_end()
            assert core.state is FaultState.CLOSED
        else:
            refused(core.receive_end)
            assert core.state is FaultState.FAILED

    def test_an_end_inside_a_fault_is_no_end_of_serving(self) -> None:
        data = asking(0, PAGE)
        for end in range(1, len(data) + 1):
            core = source_in(FaultState.SERVING)
            feed(core, data[:end])
            assert not core.between_requests
            refused(core.receive_end)
            assert core.state is FaultState.FAILED


class TestDestination:
    def test_pipelined_faults_are_answered_in_order(self) -> None:
        core = destination_in(FaultState.SERVING)
        assert core.page_fault(PAGE, PAGE) == asking(PAGE, PAGE)
        assert core.page_fault(0, 2 * PAGE) == asking(0, 2 * PAGE)
        assert core.unanswered == 2
        answered = core.receive_response(Response(Status.OK, PAGE).encode())
        assert answered == PageAnswered(gpa=PAGE, length=PAGE)
        assert core.receive_response(OK) == PageAnswered(gpa=0, length=0)
        assert core.unanswered == 0

    @pytest.mark.parametrize("length", [1, PAGE - 1, PAGE + 1, HUGE])
    def test_a_page_of_another_length(self, length: int) -> None:
        core = destination_in(FaultState.SERVING)
        core.page_fault(0, PAGE)
        error = refused(lambda: core.receive_response(Response(Status.OK, length).encode()))
        assert (error.command, error.expected) == ("PageFault", f"0 or {PAGE} bytes")
        assert (error.got, error.reply) == (f"{length}", b"")
        assert core.state is FaultState.FAILED

    def test_an_error(self) -> None:
        core = destination_in(FaultState.SERVING)
        core.page_fault(0, PAGE)
        core.page_fault(PAGE, PAGE)
        error = refused(lambda: core.receive_response(ERROR))
        assert (error.command, error.expected, error.got) == ("PageFault", "the page", "Error")
        assert misused(lambda: core.receive_response(OK)).expected == "no response"

    @pytest.mark.parametrize("status", [0, 3, 0xFFFF])
    def test_a_status_that_is_none(self, status: int) -> None:
        core = destination_in(FaultState.SERVING)
        core.page_fault(0, PAGE)
        error = refused(lambda: core.receive_response(Response(status, PAGE).encode()))
        assert error.got == f"status {status}"

    def test_a_response_to_nothing(self) -> None:
        for state in (FaultState.CONNECTED, FaultState.SERVING):
            core = destination_in(state)
            assert refused(lambda core=core: core.receive_response(OK)).expected == "no response"  # type: ignore[misc]
            assert core.state is FaultState.FAILED

    @pytest.mark.parametrize("size", [0, 15, 17, 32])
    def test_one_whole_response_at_a_time(self, size: int) -> None:
        core = destination_in(FaultState.SERVING)
        core.page_fault(0, PAGE)
        core.page_fault(0, PAGE)
        error = misused(lambda: core.receive_response(bytes(size)))
        assert (error.expected, error.got) == ("16 bytes", f"{size}")
        assert core.unanswered == 2

    @pytest.mark.parametrize(
        "state", [FaultState.CONNECTED, FaultState.SERVING, FaultState.FAILED, FaultState.CLOSED]
    )
    def test_each_state_and_what_we_do(self, state: FaultState) -> None:
        calls: dict[Command | Signal, Callable[[FaultDestination], object]] = {
            Signal.ROLE: lambda core: core.opened(),
            Signal.CLOSE: lambda core: core.close(),
            Command.PAGE_FAULT: lambda core: core.page_fault(0, PAGE),
        }
        for entry, call in calls.items():
            core = destination_in(state)
            if state is FaultState.FAILED:
                core._ledger.clear()  # what is unanswered is tested below
            following = DESTINATION_FAULT.get((state, entry))
            if following is None:
                misused(lambda core=core, call=call: call(core))  # type: ignore[misc]
                assert core.state is state
            else:
                call(core)
                assert core.state is following

    def test_no_closing_while_a_page_is_due(self) -> None:
        core = destination_in(FaultState.SERVING)
        core.page_fault(0, PAGE)
        assert misused(core.close).got == "1 unanswered"
        assert core.state is FaultState.SERVING

    @pytest.mark.parametrize("gpa", [-1, 1 << 64])
    def test_an_address_that_is_none_changes_nothing(self, gpa: int) -> None:
        core = destination_in(FaultState.SERVING)
        with pytest.raises(struct.error):
            core.page_fault(gpa, PAGE)
        assert core.unanswered == 0

    def test_an_end_is_a_failure_until_we_have_closed(self) -> None:
        core = destination_in(FaultState.SERVING)
        assert refused(core.receive_end).command is None
        core = destination_in(FaultState.SERVING)
        core.page_fault(0, PAGE)
        assert refused(core.receive_end).command == "PageFault"
        core.receive_end()
        assert core.state is FaultState.CLOSED


def _hostile_bytes() -> st.SearchStrategy[bytes]:
    lengths = st.sampled_from([0, 16, 17, DRAINED + 1, HUGE])
    headers = st.builds(header, st.sampled_from([6, 9, 9, 9, 10]), lengths)
    faults = st.builds(asking, st.integers(0, HUGE), st.sampled_from([0, 1, PAGE, HUGE]))
    return st.lists(faults | headers | st.binary(max_size=40)).map(b"".join)


@given(_hostile_bytes())
def test_the_source_takes_any_bytes(data: bytes) -> None:
    core = source_in(FaultState.SERVING)
    try:
        while data and core.wanted:
            piece, data = data[: core.wanted], data[core.wanted :]
            event = core.receive_data(piece)
            if isinstance(event, PageRequested):
                assert 0 < event.length <= LIMITS.max_page_bytes
                core.page(event.length)
            elif isinstance(event, ServingEnded):
                core.answer(ok=True)
    except RemoteProtocolError as error:
        assert core.state is FaultState.FAILED
        assert error.reply == ERROR
    assert len(core._header) + len(core._payload or b"") < 32


@given(st.integers(0, 5), st.lists(st.binary(min_size=16, max_size=16), max_size=6))
def test_the_destination_takes_any_responses(faults: int, responses: list[bytes]) -> None:
    core = destination_in(FaultState.SERVING)
    for _ in range(faults):
        core.page_fault(0, PAGE)
    try:
        for data in responses:
            assert core.receive_response(data).length in {0, PAGE}
    except RemoteProtocolError:
        assert core.state is FaultState.FAILED
