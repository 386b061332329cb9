"""A source asks who owns the VM, on a connection of its own."""

import itertools

import pytest

from aiomigrate.protocol import Command, LaneState, Response, SourceQuery, Status, Verdict
from aiomigrate.protocol.tables import SOURCE_QUERY, Signal
from tests.protocol.protocol_sides import ERROR, TOKEN, misused, refused
from tests.support.feeding import every_way


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
