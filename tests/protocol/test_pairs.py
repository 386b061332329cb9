"""Both sides of a migration over wires that deliver as many bytes as they like, when they like.

The model is plain: what the source has asked for, in order, and which of it the destination has
applied and answered. Each connection has a source core, a destination core and a wire each way.
"""

from collections import deque
from typing import ClassVar, cast

from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiomigrate.protocol import (
    ALL_EXTENSIONS,
    AbandonReceived,
    Command,
    CompleteReceived,
    ConfigReceived,
    ConfirmReceived,
    DestinationLane,
    DestinationMain,
    Dialect,
    Event,
    Extension,
    FaultOpened,
    LaneJoining,
    LaneOpened,
    LaneRetired,
    LaneState,
    Limits,
    LocalProtocolError,
    MainState,
    MemoryFdReceived,
    MemoryReceived,
    SessionReceived,
    SourceLane,
    SourceMain,
    StartReceived,
    StateReceived,
    ZerosReceived,
)
from aiomigrate.protocol.extensions import accept
from aiomigrate.protocol.wire import encode_range

TOKEN = bytes(range(16))


class Link:
    """One connection: two cores, two wires, and what the model knows of it."""

    def __init__(
        self, source: SourceMain | SourceLane, destination: DestinationMain | DestinationLane
    ) -> None:
        self.source = source
        self.destination = destination
        self.to_destination = bytearray()
        self.to_source = bytearray()
        self.asked: list[object] = []
        self.applied: list[object] = []
        self.refuse_next = False
        self.answers_due: deque[tuple[Command, bool]] = deque()
        self.refused = False
        self.tampered = False
        """Somebody changes what the wires carry (test_chaos.py): the model knows no more."""
        self._memory: MemoryReceived | ZerosReceived | None = None
        self._body = bytearray()

    def ask(self, command: Command, written: bytes, meant: object) -> None:
        self.to_destination += written
        self.asked.append(meant)
        self.answers_due.append((command, True))

    def memory(self, content: list[bytes]) -> None:
        core = self.source
        header = core.memory(len(content))
        table = b"".join(encode_range(0, len(piece)) for piece in content)
        self.ask(Command.MEMORY, header + table + b"".join(content), content)

    def zeros(self, lengths: list[int]) -> None:
        table = b"".join(encode_range(0, length) for length in lengths)
        self.ask(Command.ZEROS, self.source.zeros(len(lengths)) + table, lengths)

    def deliver(self, count: int) -> None:
        """Let the destination's driver read at most `count` bytes."""
        while count and self.to_destination and not self.refused:
            wanted = self._wanted_body() if self._memory else self.destination.wanted
            if self.tampered and wanted == 0:  # it has failed, or is no lane
                return
            assert wanted > 0, self.destination
            piece = bytes(self.to_destination[: min(wanted, count)])
            del self.to_destination[: len(piece)]
            count -= len(piece)
            if self._memory:
                self._body += piece
            else:
                self._take(self.destination.receive_data(piece))
            if self._memory and not self._wanted_body():
                zeros = isinstance(self._memory, ZerosReceived)
                self._apply(self._lengths() if zeros else self._content())
                self._memory = None
                self._body.clear()

    def _take(self, meant: Event | None) -> None:
        if isinstance(meant, MemoryReceived | ZerosReceived):
            self._memory = meant
        elif meant is not None and not isinstance(meant, LaneOpened | FaultOpened):
            self._apply(meant)

    def _lengths(self) -> list[int]:
        assert self._memory is not None
        table = self._body[: self._memory.table_bytes]
        return [
            int.from_bytes(table[at + 8 : at + 16], "little") for at in range(0, len(table), 16)
        ]

    def _wanted_body(self) -> int:
        assert self._memory is not None
        left = self._memory.table_bytes - len(self._body)
        if left > 0 or isinstance(self._memory, ZerosReceived):
            return left
        return self._memory.table_bytes + sum(self._lengths()) - len(self._body)

    def _content(self) -> list[bytes]:
        assert self._memory is not None
        at = self._memory.table_bytes
        content = []
        for length in self._lengths():
            content.append(bytes(self._body[at : at + length]))
            at += length
        return content

    def _apply(self, meant: object) -> None:
        self.to_source += self.destination.answer(ok=not self.refuse_next)
        if self.refuse_next:
            self.refused = True
        else:
            self.applied.append(meant)

    def answer(self, count: int) -> None:
        """Let the source's driver read at most `count` bytes."""
        piece = bytes(self.to_source[:count])
        del self.to_source[: len(piece)]
        for answer in self.source.receive_data(piece):
            command, _ = self.answers_due.popleft()
            assert answer.command is command
            assert answer.ok or self.refused or self.tampered

    @property
    def failed(self) -> bool:
        return self.source.state in {MainState.FAILED, LaneState.FAILED}


extension_sets = st.sampled_from(
    [Extension.NONE, ALL_EXTENSIONS, Extension.SESSION, Extension.ZERO_RUNS, Extension(0xFFFFFFFF)]
) | st.integers(0, 0xFFFFFFFF).map(Extension)


class Migration(RuleBasedStateMachine):
    contents = st.lists(st.binary(max_size=40), max_size=4)
    some: ClassVar[st.SearchStrategy[int]] = st.integers(1, 60)

    def __init__(self) -> None:
        super().__init__()
        self.core = SourceMain()
        self.accepted = Extension.NONE
        self.lanes: list[Link] = []

    def links(self) -> list[Link]:
        return [self.main, *self.lanes]

    def clean(self, links: list[Link]) -> list[Link]:
        return [link for link in links if not link.tampered]

    def carry(self, link: Link, *, there: int = 1 << 30, back: int = 1 << 30) -> None:
        link.deliver(there)
        link.answer(back)

    def idle_in(self, *states: MainState) -> bool:
        return self.core.state in states

    def speaks(self, extension: Extension) -> bool:
        return extension in self.core.extensions

    def usable(self, which: int) -> Link:
        links = [link for link in self.links() if not link.failed]
        return links[which % len(links)]

    @initialize(offer=extension_sets, willing=extension_sets)
    def start(self, offer: Extension, willing: Extension) -> None:
        self.accepted = accept(offer, willing)
        self.main = Link(self.core, DestinationMain(Limits(), willing=willing))
        written = self.core.start(offer)
        self.main.ask(Command.START, written, StartReceived(version=0, offer=offer))
        self.settle()

    @precondition(lambda self: self.idle_in(MainState.STARTED) and self.speaks(Extension.SESSION))
    @rule(token=st.binary(min_size=16, max_size=16))
    def session(self, token: bytes) -> None:
        self.main.ask(Command.SESSION, self.core.session(token), SessionReceived(token=token))

    @precondition(
        lambda self: self.idle_in(MainState.STARTED, MainState.NAMED, MainState.FDS_RECEIVED)
    )
    @rule(slot=st.integers(0, 0xFFFFFFFF))
    def memory_fd(self, slot: int) -> None:
        written = b"".join(self.core.memory_fd(slot))
        self.main.ask(Command.MEMORY_FD, written, MemoryFdReceived(slot=slot))

    @precondition(
        lambda self: self.idle_in(MainState.STARTED, MainState.NAMED, MainState.FDS_RECEIVED)
    )
    @rule(payload=st.binary(min_size=1, max_size=70))
    def config(self, payload: bytes) -> None:
        written = self.core.config(len(payload)) + payload
        self.main.ask(Command.CONFIG, written, ConfigReceived(payload=payload))

    @precondition(lambda self: self.idle_in(MainState.CONFIGURED) and len(self.lanes) < 3)
    @rule(dialect=st.sampled_from(Dialect))
    def open_lane(self, dialect: Dialect) -> None:
        number = len(self.lanes) + 1
        core = SourceLane(f"lane {number}", dialect, self.core.extensions)
        accepted = self.main.destination.extensions
        link = Link(core, DestinationLane(core.name, accepted))
        link.tampered = self.core.extensions != accepted
        self.lanes.append(link)
        if self.speaks(Extension.SESSION):
            written = core.join(TOKEN, number)
            link.ask(Command.JOIN, written, LaneJoining(token=TOKEN, number=number))
            self.carry(link)
        else:
            link.to_destination += core.open()

    @precondition(
        lambda self: self.idle_in(MainState.CONFIGURED) and self.speaks(Extension.RETIRE_LANE)
    )
    @rule(number=st.integers(0, 0xFFFFFFFF), refused=st.integers(0, 9))
    def retire_lane(self, number: int, refused: int) -> None:
        written = self.core.retire_lane(number)
        self.main.ask(Command.RETIRE_LANE, written, LaneRetired(number=number))
        self.main.refuse_next |= refused == 9

    @precondition(lambda self: self.idle_in(MainState.CONFIGURED))
    @rule(content=contents, which=st.integers(0, 3), refused=st.integers(0, 9))
    def memory(self, content: list[bytes], which: int, refused: int) -> None:
        link = self.usable(which)
        link.memory(content)
        link.refuse_next |= refused == 9

    @precondition(
        lambda self: self.idle_in(MainState.CONFIGURED) and self.speaks(Extension.ZERO_RUNS)
    )
    @rule(lengths=st.lists(st.integers(0, 1 << 40), max_size=4), which=st.integers(0, 3))
    def zeros(self, lengths: list[int], which: int) -> None:
        link = self.usable(which)
        if link.source.state is not LaneState.CONNECTED:  # no Zeros opens a lane
            link.zeros(lengths)

    @precondition(lambda self: self.idle_in(MainState.CONFIGURED))
    @rule(
        payload=st.binary(min_size=1, max_size=70), refused=st.integers(0, 9), flies=st.booleans()
    )
    def state(self, payload: bytes, refused: int, flies: bool) -> None:
        due = any(link.source.unanswered for link in self.lanes)
        if self.core.unanswered:
            try:
                self.core.state_snapshot(len(payload))
            except LocalProtocolError:
                return
            raise AssertionError("State went before an answer")
        if due or any(link.failed for link in self.lanes):
            return
        for link in self.clean(self.lanes):
            link.deliver(2)  # the role of a lane that was never used
            assert link.destination.between_requests
        written = self.core.state_snapshot(len(payload)) + payload
        self.main.ask(Command.STATE, written, StateReceived(payload=payload))

        self.main.refuse_next |= refused == 9
        if flies:
            event("Complete is sent right behind State")
            self.complete(paused=False)

    @precondition(lambda self: self.idle_in(MainState.RESTORING, MainState.STATE_RECEIVED))
    @rule(paused=st.booleans())
    def complete(self, paused: bool) -> None:
        command = Command.COMPLETE_PAUSED if paused else Command.COMPLETE
        written = self.core.complete(paused=paused)
        self.main.ask(command, written, CompleteReceived(paused=paused))

    @precondition(
        lambda self: self.idle_in(MainState.COMPLETED) and self.speaks(Extension.CONFIRMATION)
    )
    @rule()
    def confirm(self) -> None:
        self.main.ask(Command.CONFIRM, self.core.confirm(), ConfirmReceived())

    @precondition(lambda self: self.idle_in(MainState.STARTED, MainState.CONFIGURED))
    @rule(sure=st.integers(0, 9))
    def abandon(self, sure: int) -> None:
        if sure == 0:
            self.main.ask(Command.ABANDON, self.core.abandon(), AbandonReceived())

    @rule(which=st.integers(0, 3), count=some)
    def deliver(self, which: int, count: int) -> None:
        self.carry(self.links()[which % len(self.links())], there=count, back=0)

    @rule(which=st.integers(0, 3), count=some)
    def answer(self, which: int, count: int) -> None:
        self.carry(self.links()[which % len(self.links())], there=0, back=count)

    @rule()
    def settle(self) -> None:
        for link in self.links():
            self.carry(link)

    @invariant()
    def what_is_applied_is_what_was_asked_in_order(self) -> None:
        for link in self.clean(self.links()):
            assert link.applied == link.asked[: len(link.applied)]

    @invariant()
    def the_ledger_is_the_models(self) -> None:
        for link in self.clean(self.links()):
            assert link.source.unanswered == len(link.answers_due)

    @invariant()
    def both_sides_agree_on_the_extensions(self) -> None:
        if self.core.state is not MainState.STARTING and not self.main.tampered:
            assert self.core.extensions == self.main.destination.extensions == self.accepted

    @invariant()
    def the_destination_never_runs_ahead(self) -> None:
        if self.main.destination.state is MainState.COMPLETED and not self.main.tampered:
            assert self.core.state in {
                MainState.IN_FLIGHT,
                MainState.COMPLETING,
                MainState.COMPLETED,
                MainState.CONFIRMING,
            }

    @invariant()
    def nothing_is_read_behind_a_refusal(self) -> None:
        """An Error to State proves that a Complete behind it is not executed."""
        for link in self.clean(self.links()):
            if link.refused:
                assert link.destination.wanted == 0

    def teardown(self) -> None:
        self.settle()
        event(f"ended {self.core.state.value}")
        for link in self.clean(self.links()):
            if link.refused:
                assert link.failed
                assert link.applied != link.asked
            else:
                assert link.applied == link.asked
                assert link.source.unanswered == 0
                assert not link.to_destination
            if not link.failed:
                assert link.destination.between_requests
        for link in self.clean(self.lanes):
            if not link.failed:
                cast("SourceLane", link.source).close()
            link.destination.receive_end()
            assert link.destination.state is LaneState.CLOSED


TestMigration = Migration.TestCase
TestMigration.settings = settings(max_examples=150, stateful_step_count=40)
