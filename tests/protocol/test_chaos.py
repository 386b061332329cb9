"""Both sides of a migration over wires that somebody tampers with.

The machine of test_pairs.py, with bytes changed, put in, and cut off on any wire. What a core says
then may be anything that the protocol has a word for; it may raise nothing else than a
ProtocolError, want no more than it should, and, once it has failed, take nothing more. Links that
nobody has touched still behave as their model says.
"""

from typing import ClassVar

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from aiomigrate.protocol import (
    Command,
    DestinationLane,
    DestinationMain,
    Extension,
    LaneState,
    Limits,
    LocalProtocolError,
    MainState,
    RemoteProtocolError,
    Request,
    Response,
    SourceLane,
    SourceMain,
    StartReceived,
    Status,
)
from tests.protocol.test_pairs import Link, Migration, extension_sets

OK = Response(Status.OK).encode()
FAILED = {MainState.FAILED, LaneState.FAILED}
OVER = FAILED | {MainState.CLOSED, LaneState.CLOSED}
MOST_WANTED = 1 << 20


class Chaos(Migration):
    garbage: ClassVar[st.SearchStrategy[bytes]] = st.one_of(
        st.binary(min_size=1, max_size=40),
        st.builds(
            lambda command, length: Request(command, length).encode(),
            st.integers(0, 10) | st.integers(0x8000, 0x8006),
            st.sampled_from([0, 4, 16, 20, 1 << 20, (1 << 64) - 1]),
        ),
        st.builds(
            lambda status, length, padding: Response(status, length, padding).encode(),
            st.integers(0, 3),
            st.sampled_from([0, 0, 0, 4096, (1 << 64) - 1]),
            st.binary(min_size=6, max_size=6),
        ),
    )

    @initialize(offer=extension_sets, willing=extension_sets, early=st.booleans())
    def start(self, offer: Extension, willing: Extension, early: bool) -> None:
        super().start(offer, willing)
        if early:  # again, and this time its Start is still on the wire
            self.core = SourceMain()
            self.main = Link(self.core, DestinationMain(Limits(), willing=willing))
            self.main.tampered = True
            meant = StartReceived(version=0, offer=offer)
            self.main.ask(Command.START, self.core.start(offer), meant)

    def carry(self, link: Link, *, there: int = 1 << 30, back: int = 1 << 30) -> None:
        """As a driver does: what its core raises ends the connection."""
        if not link.tampered:
            super().carry(link, there=there, back=back)
            return
        try:
            link.deliver(there)
        except RemoteProtocolError as error:
            event(f"the destination: {error.command}")
            assert link.destination.state in FAILED
            assert len(error.reply) in (0, 16)
            link.to_source += error.reply
        try:
            link.answer(back)
        except RemoteProtocolError as error:
            event(f"the source: {error.command}")
            assert link.source.state in FAILED
            assert not error.reply

    def tamper(self, which: int, *, towards: bool) -> bytearray:
        link = self.links()[which % len(self.links())]
        link.tampered = True
        return link.to_destination if towards else link.to_source

    @rule(
        which=st.integers(0, 3),
        towards=st.booleans(),
        at=st.integers(0, 200),
        bits=st.integers(1, 255),
    )
    def corrupt(self, which: int, towards: bool, at: int, bits: int) -> None:
        wire = self.tamper(which, towards=towards)
        if wire:
            wire[at % len(wire)] ^= bits

    @rule(which=st.integers(0, 3), towards=st.booleans(), at=st.integers(0, 200), data=garbage)
    def insert(self, which: int, towards: bool, at: int, data: bytes) -> None:
        wire = self.tamper(which, towards=towards)
        at %= len(wire) + 1
        wire[at:at] = data

    @rule(
        which=st.integers(0, 3),
        towards=st.booleans(),
        at=st.integers(0, 200),
        count=st.integers(1, 40),
    )
    def lose(self, which: int, towards: bool, at: int, count: int) -> None:
        wire = self.tamper(which, towards=towards)
        at %= len(wire) + 1
        del wire[at : at + count]

    @precondition(lambda self: any(link.tampered for link in self.links()))
    @rule(which=st.integers(0, 3), towards=st.booleans())
    def end(self, which: int, towards: bool) -> None:
        """What is on the wire arrives, and then its end."""
        tampered = [link for link in self.links() if link.tampered]
        link = tampered[which % len(tampered)]
        self.carry(link)
        self._end(link.destination if towards else link.source)

    def _end(self, core: DestinationMain | DestinationLane | SourceMain | SourceLane) -> None:
        try:
            core.receive_end()
        except RemoteProtocolError as error:
            assert error.got == "end of stream"
            assert core.state in FAILED
        else:
            assert core.state in OVER

    @invariant()
    def no_core_holds_or_wants_more_than_it_should(self) -> None:
        for link in self.links():
            core = link.destination
            assert core.wanted <= MOST_WANTED
            assert len(core._header) < 16
            assert len(core._payload or b"") <= 1 << 12  # all that was ever put on a wire
            assert len(link.source._partial) < 16

    @invariant()
    def what_has_failed_takes_nothing_more(self) -> None:
        for link in self.links():
            if link.destination.state in OVER:
                assert link.destination.wanted == 0
                with pytest.raises(LocalProtocolError):
                    link.destination.receive_data(OK)
            if link.source.state in OVER:
                assert link.source.receive_data(OK) == []
                with pytest.raises(LocalProtocolError):
                    link.source.memory(1)

    def teardown(self) -> None:
        super().teardown()
        for link in self.links():
            if link.tampered:
                self._end(link.destination)
                self._end(link.source)


TestChaos = Chaos.TestCase
TestChaos.settings = settings(max_examples=100, stateful_step_count=40)
