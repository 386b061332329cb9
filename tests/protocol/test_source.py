import itertools
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.protocol import (
    ALL_EXTENSIONS,
    Answer,
    Command,
    Dialect,
    Extension,
    LaneState,
    LocalProtocolError,
    MainState,
    RemoteProtocolError,
    Response,
    SourceLane,
    SourceMain,
    SourceQuery,
    Status,
    Verdict,
)
from aiomigrate.protocol.extensions import EXTENSION_OF
from aiomigrate.protocol.tables import SOURCE_LANE, SOURCE_MAIN, SOURCE_QUERY, Signal
from tests.support.feeding import every_way

OK = Response(Status.OK).encode()
ERROR = Response(Status.ERROR).encode()
TOKEN = bytes(range(16))


def ok_to_start(accepted: int) -> bytes:
    return Response(Status.OK, padding=accepted.to_bytes(6, "little")).encode()


CALLS: dict[Command, Callable[[SourceMain], object]] = {
    Command.START: lambda core: core.start(),
    Command.MEMORY_FD: lambda core: core.memory_fd(3),
    Command.CONFIG: lambda core: core.config(5),
    Command.MEMORY: lambda core: core.memory(2),
    Command.STATE: lambda core: core.state_snapshot(6),
    Command.COMPLETE: lambda core: core.complete(paused=False),
    Command.COMPLETE_PAUSED: lambda core: core.complete(paused=True),
    Command.ABANDON: lambda core: core.abandon(),
    Command.SESSION: lambda core: core.session(TOKEN),
    Command.RETIRE_LANE: lambda core: core.retire_lane(0x01000007),
    Command.ZEROS: lambda core: core.zeros(3),
    Command.CONFIRM: lambda core: core.confirm(),
}
# What is written for each request, and where it may be written first.
WRITTEN: dict[Command, tuple[MainState, object]] = {
    Command.START: (MainState.ESTABLISHED, bytes.fromhex("01" + "00" * 15)),
    Command.MEMORY_FD: (
        MainState.STARTED,
        (bytes.fromhex("07" + "00" * 7 + "04" + "00" * 7), b"\x03\x00\x00\x00"),
    ),
    Command.CONFIG: (MainState.STARTED, bytes.fromhex("02" + "00" * 7 + "05" + "00" * 7)),
    Command.MEMORY: (MainState.CONFIGURED, bytes.fromhex("04" + "00" * 7 + "20" + "00" * 7)),
    Command.STATE: (MainState.CONFIGURED, bytes.fromhex("03" + "00" * 7 + "06" + "00" * 7)),
    Command.COMPLETE: (MainState.STATE_RECEIVED, bytes.fromhex("05" + "00" * 15)),
    Command.COMPLETE_PAUSED: (MainState.STATE_RECEIVED, bytes.fromhex("08" + "00" * 15)),
    Command.ABANDON: (MainState.CONFIGURED, bytes.fromhex("06" + "00" * 15)),
    Command.SESSION: (
        MainState.STARTED,
        bytes.fromhex("0080" + "00" * 6 + "10" + "00" * 7) + TOKEN,
    ),
    Command.RETIRE_LANE: (
        MainState.CONFIGURED,
        bytes.fromhex("0280" + "00" * 6 + "04" + "00" * 7 + "07000001"),
    ),
    Command.ZEROS: (MainState.CONFIGURED, bytes.fromhex("0480" + "00" * 6 + "30" + "00" * 7)),
    Command.CONFIRM: (MainState.COMPLETED, bytes.fromhex("0580" + "00" * 14)),
}

_CONFIGURED = [Command.START, Command.CONFIG]
_RECEIVED = [*_CONFIGURED, Command.STATE]
_COMPLETED = [*_RECEIVED, Command.COMPLETE]
PATHS: dict[MainState, list[Command]] = {
    MainState.ESTABLISHED: [],
    MainState.STARTING: [Command.START],
    MainState.STARTED: [Command.START],
    MainState.NAMING: [Command.START, Command.SESSION],
    MainState.NAMED: [Command.START, Command.SESSION],
    MainState.TAKING_FD: [Command.START, Command.MEMORY_FD],
    MainState.FDS_RECEIVED: [Command.START, Command.MEMORY_FD],
    MainState.CONFIGURING: _CONFIGURED,
    MainState.CONFIGURED: _CONFIGURED,
    MainState.RESTORING: _RECEIVED,
    MainState.STATE_RECEIVED: _RECEIVED,
    MainState.IN_FLIGHT: _COMPLETED,
    MainState.COMPLETING: _COMPLETED,
    MainState.COMPLETED: _COMPLETED,
    MainState.CONFIRMING: [*_COMPLETED, Command.CONFIRM],
    MainState.CONFIRMED: [*_COMPLETED, Command.CONFIRM],
    MainState.ABANDONING: [Command.START, Command.ABANDON],
    MainState.ABORTED: [Command.START, Command.ABANDON],
    MainState.FAILED: [Command.START],
    MainState.CLOSED: [Command.START, Command.ABANDON],
}


def main_in(state: MainState, accepted: Extension = ALL_EXTENSIONS) -> SourceMain:
    core = SourceMain()
    for command in PATHS[state]:
        if (state, command) != (MainState.IN_FLIGHT, Command.COMPLETE):
            _answer(core, accepted)
        if command is Command.START:
            core.start(accepted)
        else:
            CALLS[command](core)
    if state is MainState.FAILED:
        core.receive_data(ERROR)
    elif core.state != state:
        _answer(core, accepted)
    if state == MainState.CLOSED:
        core.receive_end()
    assert core.state == state
    return core


def _answer(core: SourceMain, accepted: Extension) -> None:
    if core.state is MainState.STARTING:
        core.receive_data(ok_to_start(accepted))
    elif core.unanswered:
        core.receive_data(OK)


# Where no answer counts any more.
OVER = {
    MainState.COMPLETED,
    MainState.CONFIRMED,
    MainState.ABORTED,
    MainState.FAILED,
    MainState.CLOSED,
}
EACH_MAIN_STATE = [
    (state, accepted)
    for state, accepted in itertools.product(PATHS, (Extension.NONE, ALL_EXTENSIONS))
    if all(EXTENSION_OF.get(command, accepted) in accepted for command in PATHS[state])
]


def lane_in(
    state: LaneState, dialect: Dialect = Dialect.V53, extensions: Extension = Extension.NONE
) -> SourceLane:
    core = SourceLane("lane 7", dialect, extensions)
    if state is LaneState.CONNECTED:
        return core
    if Extension.SESSION in extensions:
        core.join(TOKEN, 7)
        if state is LaneState.JOINING:
            return core
        core.receive_data(OK)
    else:
        core.open()
    core.memory(1)
    core.receive_data(ERROR if state is LaneState.FAILED else OK)
    if state == LaneState.CLOSED:
        core.close()
    assert core.state == state
    return core


LANE_STATES = [LaneState.CONNECTED, LaneState.READY, LaneState.FAILED, LaneState.CLOSED]
EACH_LANE_STATE = [
    *((state, Extension.NONE) for state in LANE_STATES),
    *((state, ALL_EXTENSIONS) for state in (*LANE_STATES, LaneState.JOINING)),
]


def refused(run: Callable[[], object]) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        run()
    return caught.value


def misused(run: Callable[[], object]) -> LocalProtocolError:
    with pytest.raises(LocalProtocolError) as caught:
        run()
    return caught.value


class TestRequests:
    @pytest.mark.parametrize("command", WRITTEN)
    def test_the_bytes_of_each(self, command: Command) -> None:
        state, written = WRITTEN[command]
        core = main_in(state)
        assert CALLS[command](core) == written
        assert core.unanswered == 1
        assert core.receive_data(OK) == [Answer(command=command, ok=True)]
        assert core.unanswered == 0

    @pytest.mark.parametrize(("state", "accepted"), EACH_MAIN_STATE)
    @pytest.mark.parametrize("command", CALLS)
    def test_each_state_and_request(
        self, state: MainState, accepted: Extension, command: Command
    ) -> None:
        core = main_in(state, accepted)
        due = core.unanswered
        following = SOURCE_MAIN.get((state, command))
        if following is None or EXTENSION_OF.get(command, accepted) not in accepted:
            error = misused(lambda: CALLS[command](core))
            assert (error.connection, error.state) == ("main", state.value)
            assert (core.state, core.unanswered) == (state, due)
        else:
            CALLS[command](core)
            assert (core.state, core.unanswered) == (following, due + 1)

    @pytest.mark.parametrize("length", [-1, 1 << 64])
    def test_a_length_that_is_none(self, length: int) -> None:
        core = main_in(MainState.STARTED)
        error = misused(lambda: core.config(length))
        assert (error.command, error.got) == ("Config", f"{length}")
        assert (core.state, core.unanswered) == (MainState.STARTED, 0)
        core = main_in(MainState.CONFIGURED)
        assert misused(lambda: core.memory(length)).command == "Memory"
        assert core.unanswered == 0
        assert core.memory((1 << 60) - 1)[8:] == ((1 << 64) - 16).to_bytes(8, "little")

    def test_a_slot_that_is_none_changes_nothing(self) -> None:
        core = main_in(MainState.STARTED)
        with pytest.raises(struct.error):
            core.memory_fd(1 << 32)
        assert (core.state, core.unanswered) == (MainState.STARTED, 0)

    def test_state_waits_for_every_memory(self) -> None:
        core = main_in(MainState.CONFIGURED)
        for count in range(1, 5):
            core.memory(1)
            assert core.unanswered == count
        error = misused(lambda: core.state_snapshot(1))
        assert (error.command, error.got) == ("State", "4 unanswered")
        assert core.state is MainState.CONFIGURED
        assert len(core.receive_data(OK * 3)) == 3
        misused(lambda: core.state_snapshot(1))
        core.receive_data(OK)
        core.state_snapshot(1)

    def test_complete_does_not_wait_for_the_answer_to_state(self) -> None:
        core = main_in(MainState.RESTORING)
        core.complete(paused=False)
        assert (core.state, core.unanswered) == (MainState.IN_FLIGHT, 2)
        answers = core.receive_data(OK * 2)
        assert [answer.command for answer in answers] == [Command.STATE, Command.COMPLETE]
        assert core.state is MainState.COMPLETED

    def test_an_error_to_state_is_the_last_word_though_complete_was_sent(self) -> None:
        core = main_in(MainState.IN_FLIGHT)
        assert core.receive_data(ERROR + OK) == [Answer(command=Command.STATE, ok=False)]
        assert (core.state, core.unanswered) == (MainState.FAILED, 1)
        core.receive_end()
        assert core.state is MainState.CLOSED

    def test_abandon_waits_for_nothing_and_is_answered_last(self) -> None:
        core = main_in(MainState.CONFIGURED)
        core.memory(1)
        core.memory(1)
        core.abandon()
        answers = core.receive_data(OK * 3)
        assert [answer.command for answer in answers] == [
            Command.MEMORY,
            Command.MEMORY,
            Command.ABANDON,
        ]
        assert core.state is MainState.ABORTED

    def test_it_says_what_it_is(self) -> None:
        assert repr(SourceMain()) == "<SourceMain main Established>"
        assert repr(SourceMain("first")) == "<SourceMain first Established>"
        assert repr(lane_in(LaneState.READY)) == "<SourceLane lane 7 Ready>"
        answer = Answer(command=Command.START, ok=True)
        assert (answer.length, answer.padding) == (0, bytes(6))
        assert not hasattr(answer, "__dict__")


class TestAnswers:
    def test_however_they_are_cut(self) -> None:
        stream = OK + Response(Status.OK, 0, b"abcdef").encode() + ERROR
        expected = [
            Answer(command=Command.MEMORY, ok=True),
            Answer(command=Command.MEMORY, ok=True, padding=b"abcdef"),
            Answer(command=Command.MEMORY, ok=False),
        ]
        for cuts in every_way(stream):
            core = main_in(MainState.CONFIGURED)
            for _ in range(4):
                core.memory(1)
            answers = []
            for begin, end in zip((0, *cuts), (*cuts, len(stream)), strict=True):
                answers += core.receive_data(memoryview(stream)[begin:end])
            assert answers == expected
            assert (core.state, core.unanswered) == (MainState.FAILED, 1)

    @pytest.mark.parametrize(("state", "accepted"), EACH_MAIN_STATE)
    @pytest.mark.parametrize("status", [Status.OK, Status.ERROR])
    def test_each_state_and_response(
        self, state: MainState, accepted: Extension, status: Status
    ) -> None:
        core = main_in(state, accepted)
        due = core.unanswered
        following = SOURCE_MAIN.get((state, Signal.OK if status is Status.OK else Signal.ERROR))
        response = Response(status).encode()
        if state in OVER:
            assert core.receive_data(response) == []
            assert core.state is state
        elif due == 0:
            error = refused(lambda: core.receive_data(response))
            assert (error.state, error.command) == (state.value, None)
            assert (error.expected, error.got) == ("no response", f"one of status {status:d}")
            assert core.state is MainState.FAILED
        else:
            (answer,) = core.receive_data(response)
            assert answer.ok == (status is Status.OK)
            assert core.state is following

    @pytest.mark.parametrize(("state", "accepted"), EACH_MAIN_STATE)
    def test_each_state_and_the_end(self, state: MainState, accepted: Extension) -> None:
        core = main_in(state, accepted)
        following = SOURCE_MAIN.get((state, Signal.END))
        if following is None:
            error = refused(core.receive_end)
            assert (error.state, error.got, error.reply) == (state.value, "end of stream", b"")
            assert core.state is MainState.FAILED
        else:
            core.receive_end()
            assert core.state is following

    @pytest.mark.parametrize("status", [0, 3, 0x0101, 0xFFFF])
    def test_a_status_that_is_none(self, status: int) -> None:
        core = main_in(MainState.COMPLETING)
        error = refused(lambda: core.receive_data(Response(status).encode()))
        assert (error.command, error.got) == ("Complete", f"status {status}")
        assert error.reply == b""
        assert core.state is MainState.FAILED

    @pytest.mark.parametrize("length", [1, 16, (1 << 64) - 1])
    @pytest.mark.parametrize("status", [Status.OK, Status.ERROR])
    def test_content_where_none_belongs(self, length: int, status: Status) -> None:
        core = main_in(MainState.CONFIGURED)
        core.memory(1)
        error = refused(lambda: core.receive_data(Response(status, length).encode()))
        assert (error.command, error.got) == ("Memory", f"{length} bytes of it")

    def test_a_cut_response(self) -> None:
        for end in range(16):
            core = main_in(MainState.RESTORING)
            core.receive_data(OK[:end])
            error = refused(core.receive_end)
            assert (error.command, error.expected) == ("State", "a response")

    def test_stray_bytes_before_the_end(self) -> None:
        core = main_in(MainState.STARTED)
        core.receive_data(b"\x01")
        error = refused(core.receive_end)
        assert (error.command, error.expected) == (None, "a response")

    @pytest.mark.parametrize("stray", [b"\x00", OK, ERROR, bytes(40)])
    @pytest.mark.parametrize("state", [MainState.COMPLETING, MainState.ABANDONING])
    def test_nothing_hides_the_decisive_ok(self, state: MainState, stray: bytes) -> None:
        core = main_in(state)
        (answer,) = core.receive_data(OK + stray)
        assert answer.ok
        assert core.receive_data(stray) == []
        core.receive_end()
        assert core.state is MainState.CLOSED

    @pytest.mark.parametrize("stray", [b"\x00", OK * 2, ERROR * 3, bytes(40)])
    def test_nothing_hides_an_error(self, stray: bytes) -> None:
        core = main_in(MainState.CONFIGURED)
        for _ in range(3):
            core.memory(1)
        assert [answer.ok for answer in core.receive_data(OK + ERROR + stray)] == [True, False]
        assert core.receive_data(stray) == []
        assert core.unanswered == 1
        misused(core.abandon)
        core.receive_end()
        assert core.state is MainState.CLOSED

    def test_an_error_while_abandoning(self) -> None:
        core = main_in(MainState.CONFIGURED)
        core.memory(1)
        core.abandon()
        assert core.receive_data(ERROR) == [Answer(command=Command.MEMORY, ok=False)]
        assert core.state is MainState.FAILED


class TestExtensions:
    @pytest.mark.parametrize("offer", [0, 0x01, 0x1F, 0xFFFFFFFF])
    def test_an_offer(self, offer: int) -> None:
        written = SourceMain().start(Extension(offer))
        assert written.hex() == "01000000" + offer.to_bytes(4, "little").hex() + "00" * 8

    @pytest.mark.parametrize(
        ("data_bytes", "headers"),
        [
            (None, "000000000000"),
            (0, "000000000000"),
            (1, "010000000000"),
            (4097, "020000000000"),
            (0x60504030201 * 4096, "010203040506"),
            (2**62, "ffffffffffff"),
        ],
    )
    def test_config_says_how_much_is_data_if_that_was_agreed(
        self, data_bytes: int | None, headers: str
    ) -> None:
        for extensions, expected in ((Extension.GUEST_DATA, headers), (Extension.NONE, "00" * 6)):
            core = main_in(MainState.STARTED, extensions)
            assert core.config(5, data_bytes).hex() == f"0200{expected}0500000000000000"

    def test_an_offer_that_does_not_fit_changes_nothing(self) -> None:
        core = SourceMain()
        with pytest.raises(OverflowError):
            core.start(Extension(1 << 32))
        assert (core.state, core.unanswered) == (MainState.ESTABLISHED, 0)

    @pytest.mark.parametrize(
        ("offer", "accepted"), [(0, 0), (0x1F, 0), (0x1F, 0x1F), (0x1F, 0x18), (0x1B, 0x03)]
    )
    def test_what_is_accepted(self, offer: int, accepted: int) -> None:
        core = SourceMain()
        core.start(Extension(offer))
        assert core.extensions == 0
        assert [answer.ok for answer in core.receive_data(ok_to_start(accepted))] == [True]
        assert core.extensions == accepted

    @pytest.mark.parametrize(
        ("offer", "accepted"),
        [
            (0, 0x01),
            (0x01, 0x03),
            (0x01, 0x80000001),  # a bit that has no meaning yet
            (0x1F, 0x8000001F),
            (0xFFFFFFFF, 0x8000007F),
            (0x1F, 0x02),  # without the SESSION that it needs
            (0x1F, 0x1C),
            (0x06, 0x06),
        ],
    )
    def test_more_than_was_offered_is_refused(self, offer: int, accepted: int) -> None:
        core = SourceMain()
        core.start(Extension(offer))
        error = refused(lambda: core.receive_data(ok_to_start(accepted)))
        assert (error.command, error.got, error.reply) == ("Start", f"{accepted:#x}", b"")
        assert f"{offer:#x}" in error.expected
        assert (core.state, core.extensions) == (MainState.FAILED, 0)

    def test_an_error_accepts_nothing_whatever_it_carries(self) -> None:
        core = SourceMain()
        core.start(ALL_EXTENSIONS)
        core.receive_data(Response(Status.ERROR, padding=b"\xff" * 6).encode())
        assert (core.state, core.extensions) == (MainState.FAILED, 0)

    @pytest.mark.parametrize("size", [0, 15, 17])
    def test_a_token_that_is_none_changes_nothing(self, size: int) -> None:
        main = main_in(MainState.STARTED)
        lane = SourceLane("lane 7", Dialect.V53, ALL_EXTENSIONS)
        query = SourceQuery("query")
        token = bytes(size)
        assert misused(lambda: main.session(token)).got == f"{size}"
        assert misused(lambda: lane.join(token, 1)).got == f"{size + 4}"
        assert misused(lambda: query.ask(token)).got == f"{size}"
        assert (main.state, main.unanswered) == (MainState.STARTED, 0)
        assert (lane.state, lane.unanswered) == (LaneState.CONNECTED, 0)
        assert (query.state, query.unanswered) == (LaneState.CONNECTED, 0)

    @pytest.mark.parametrize("number", [-1, 1 << 32])
    def test_a_lane_number_that_is_none_changes_nothing(self, number: int) -> None:
        main = main_in(MainState.CONFIGURED)
        lane = SourceLane("lane 7", Dialect.V53, ALL_EXTENSIONS)
        with pytest.raises(struct.error):
            main.retire_lane(number)
        with pytest.raises(struct.error):
            lane.join(TOKEN, number)
        assert (main.unanswered, lane.unanswered) == (0, 0)
        assert lane.state is LaneState.CONNECTED

    def test_many_of_them_may_be_unanswered(self) -> None:
        core = main_in(MainState.CONFIGURED)
        core.memory(1)
        core.retire_lane(1)
        core.zeros(1)
        misused(lambda: core.state_snapshot(1))
        commands = [answer.command for answer in core.receive_data(OK * 3)]
        assert commands == [Command.MEMORY, Command.RETIRE_LANE, Command.ZEROS]
        assert core.state is MainState.CONFIGURED


class TestQuery:
    def query_in(self, state: LaneState) -> SourceQuery:
        core = SourceQuery("query")
        if state is not LaneState.CONNECTED:
            core.ask(TOKEN)
        if state in {LaneState.TOLD, LaneState.CLOSED}:
            core.receive_data(Response(Status.OK, padding=b"\x01" + bytes(5)).encode())
        if state is LaneState.FAILED:
            core.receive_data(ERROR)
        if state is LaneState.CLOSED:
            core.receive_end()
        assert core.state is state
        return core

    states = (
        LaneState.CONNECTED,
        LaneState.ASKED,
        LaneState.TOLD,
        LaneState.FAILED,
        LaneState.CLOSED,
    )

    @pytest.mark.parametrize("state", states)
    def test_each_state_and_the_question(self, state: LaneState) -> None:
        core = self.query_in(state)
        following = SOURCE_QUERY.get((state, Command.OWNER))
        if following is None:
            misused(lambda: core.ask(TOKEN))
            assert core.state is state
        else:
            assert core.ask(TOKEN).hex() == "0380" + "00" * 6 + "10" + "00" * 7 + TOKEN.hex()
            assert core.state is following

    @pytest.mark.parametrize("state", states)
    @pytest.mark.parametrize("status", [Status.OK, Status.ERROR])
    def test_each_state_and_response(self, state: LaneState, status: Status) -> None:
        core = self.query_in(state)
        following = SOURCE_QUERY.get((state, Signal.OK if status is Status.OK else Signal.ERROR))
        response = Response(status).encode()
        if following is not None:
            (answer,) = core.receive_data(response)
            assert (answer.command, answer.ok) == (Command.OWNER, status is Status.OK)
            assert core.state is following
        elif state is LaneState.CONNECTED:
            refused(lambda: core.receive_data(response))
            assert core.state is LaneState.FAILED
        else:
            assert core.receive_data(response) == []
            assert core.state is state

    @pytest.mark.parametrize("state", states)
    def test_each_state_and_the_end(self, state: LaneState) -> None:
        core = self.query_in(state)
        following = SOURCE_QUERY.get((state, Signal.END))
        if following is None:
            assert refused(core.receive_end).connection == "query"
            assert core.state is LaneState.FAILED
        else:
            core.receive_end()
            assert core.state is following

    def test_an_answer_however_it_is_cut(self) -> None:
        for verdict in Verdict:
            response = Response(Status.OK, padding=bytes([verdict, 9, 9, 9, 9, 9])).encode()
            for cuts in every_way(response):
                core = self.query_in(LaneState.ASKED)
                answers = []
                for begin, end in itertools.pairwise((0, *cuts, len(response))):
                    answers += core.receive_data(response[begin:end])
                assert [core.verdict(answer) for answer in answers] == [verdict]
                assert core.state is LaneState.TOLD

    def test_a_token_that_the_destination_does_not_know(self) -> None:
        core = self.query_in(LaneState.ASKED)
        (answer,) = core.receive_data(Response(Status.ERROR, padding=b"\x01" * 6).encode())
        assert core.verdict(answer) is None

    @pytest.mark.parametrize("number", [0, 3, 0xFF])
    def test_a_verdict_that_is_none(self, number: int) -> None:
        core = self.query_in(LaneState.ASKED)
        padding = bytes([number, 1, 1, 1, 1, 1])
        (answer,) = core.receive_data(Response(Status.OK, padding=padding).encode())
        error = refused(lambda: core.verdict(answer))
        assert (error.command, error.got) == ("Owner", f"{number}")
        assert core.state is LaneState.FAILED


class TestLane:
    def test_a_join_comes_first_and_is_answered(self) -> None:
        for dialect in Dialect:
            core = SourceLane("lane 1", dialect, ALL_EXTENSIONS)
            assert misused(core.open).expected == "Join"
            assert misused(lambda c=core: c.memory(1)).expected == "Join first"  # type: ignore[misc]
            misused(lambda c=core: c.zeros(1))  # type: ignore[misc]
            joining = "0180" + "00" * 6 + "14" + "00" * 7 + TOKEN.hex() + "01000000"
            assert core.join(TOKEN, 1).hex() == joining
            misused(lambda c=core: c.memory(1))  # type: ignore[misc]
            assert core.receive_data(OK) == [Answer(command=Command.JOIN, ok=True)]
            core.memory(1)
            assert core.zeros(2).hex() == "0480" + "00" * 6 + "20" + "00" * 7
            assert len(core.receive_data(OK * 2)) == 2

    def test_a_refused_join(self) -> None:
        core = lane_in(LaneState.JOINING, extensions=ALL_EXTENSIONS)
        assert core.receive_data(ERROR) == [Answer(command=Command.JOIN, ok=False)]
        assert core.state is LaneState.FAILED

    def test_how_each_dialect_begins(self) -> None:
        memory = bytes.fromhex("04" + "00" * 7 + "30" + "00" * 7)
        for dialect, role in {Dialect.V53: b"\x01\x00", Dialect.V52: b""}.items():
            core = SourceLane("lane 1", dialect)
            assert core.open() == role
            assert core.memory(3) == memory
            assert core.memory(3) == memory
            assert (core.state, core.unanswered) == (LaneState.READY, 2)

    def test_no_memory_before_the_role(self) -> None:
        core = SourceLane("lane 1", Dialect.V53)
        error = misused(lambda: core.memory(1))
        assert (error.connection, error.state, error.command) == ("lane 1", "Connected", "Memory")
        assert core.state is LaneState.CONNECTED
        assert core.unanswered == 0

    def test_one_role_only(self) -> None:
        core = lane_in(LaneState.READY)
        assert misused(core.open).got == "role"

    @pytest.mark.parametrize(("state", "extensions"), EACH_LANE_STATE)
    @pytest.mark.parametrize("command", [Command.MEMORY, Command.ZEROS, Command.JOIN])
    def test_each_state_and_request(
        self, state: LaneState, extensions: Extension, command: Command
    ) -> None:
        core = lane_in(state, Dialect.V52, extensions)
        due = core.unanswered
        ask: Callable[[], bytes] = {
            Command.MEMORY: lambda: core.memory(1),
            Command.ZEROS: lambda: core.zeros(1),
            Command.JOIN: lambda: core.join(TOKEN, 7),
        }[command]
        following = SOURCE_LANE.get((state, command))
        if EXTENSION_OF.get(command, extensions) not in extensions:
            following = None
        if (state, command) == (LaneState.CONNECTED, Command.MEMORY) and extensions:
            following = None  # where SESSION was accepted a lane joins
        if following is None:
            misused(ask)
            assert (core.state, core.unanswered) == (state, due)
        else:
            ask()
            assert (core.state, core.unanswered) == (following, due + 1)

    @pytest.mark.parametrize("state", LANE_STATES)
    @pytest.mark.parametrize("status", [Status.OK, Status.ERROR])
    def test_a_response_to_nothing(self, state: LaneState, status: Status) -> None:
        core = lane_in(state)
        if state in {LaneState.FAILED, LaneState.CLOSED}:
            assert core.receive_data(Response(status).encode()) == []
            assert core.state is state
        else:
            refused(lambda: core.receive_data(Response(status).encode()))
            assert core.state is LaneState.FAILED

    @pytest.mark.parametrize(("state", "extensions"), EACH_LANE_STATE)
    def test_each_state_and_the_end(self, state: LaneState, extensions: Extension) -> None:
        core = lane_in(state, extensions=extensions)
        if state is LaneState.FAILED:
            core.receive_end()
            assert core.state is LaneState.CLOSED
        else:
            assert refused(core.receive_end).connection == "lane 7"
            assert core.state is LaneState.FAILED

    @pytest.mark.parametrize(("state", "extensions"), EACH_LANE_STATE)
    def test_each_state_and_closing(self, state: LaneState, extensions: Extension) -> None:
        core = lane_in(state, extensions=extensions)
        if state in {LaneState.CONNECTED, LaneState.READY}:
            core.close()
            assert core.state is LaneState.CLOSED
        else:
            assert misused(core.close).got in {"close", "1 unanswered"}
            assert core.state is state

    def test_no_closing_while_answers_are_due(self) -> None:
        core = lane_in(LaneState.READY)
        core.memory(1)
        core.memory(1)
        assert misused(core.close).got == "2 unanswered"
        core.receive_data(OK)
        assert misused(core.close).got == "1 unanswered"
        core.receive_data(OK)
        core.close()


@given(st.sampled_from(EACH_MAIN_STATE), st.integers(0, 4), st.lists(st.binary(max_size=40)))
def test_any_bytes_end_in_a_refusal_at_most(
    which: tuple[MainState, Extension], memories: int, pieces: list[bytes]
) -> None:
    state, accepted = which
    core = main_in(state, accepted)
    if state is MainState.CONFIGURED:
        for _ in range(memories):
            core.memory(1)
    _survives(core, pieces, MainState.FAILED)


_LIKE_RESPONSES = st.builds(
    lambda status, length: Response(status, length).encode(),
    st.integers(0, 4),
    st.sampled_from([0, 0, 0, 1, 4096, (1 << 64) - 1]),
)


@given(st.integers(0, 6), st.lists(_LIKE_RESPONSES | st.binary(max_size=17), max_size=8))
def test_any_responses_on_a_lane(memories: int, pieces: list[bytes]) -> None:
    core = lane_in(LaneState.READY)
    for _ in range(memories):
        core.memory(1)
    _survives(core, pieces, LaneState.FAILED)
    assert core.unanswered <= memories


def _survives(
    core: SourceMain | SourceLane, pieces: list[bytes], failed: MainState | LaneState
) -> None:
    try:
        for piece in pieces:
            core.receive_data(piece)
            assert len(core._partial) < 16
        core.receive_end()
    except RemoteProtocolError:
        assert core.state is failed
