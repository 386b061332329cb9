"""The ownership tables by themselves, each state with each fact, and both sides over a network that
loses, delays and reorders connections.
"""

import itertools
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiomigrate.protocol import LocalProtocolError, Verdict
from aiomigrate.protocol.ownership import (
    DESTINATION_OWNERSHIP,
    SOURCE_OWNERSHIP,
    DestinationFact,
    DestinationOwnership,
    DestinationTitle,
    SourceFact,
    SourceOwnership,
    SourceTitle,
)

_D = DestinationTitle
Ownership = SourceOwnership | DestinationOwnership
Case = tuple[Callable[[], Any], Mapping[tuple[Any, Any], Enum], type[Enum], type[Enum]]
CASES: list[Case] = [
    (SourceOwnership, SOURCE_OWNERSHIP, SourceTitle, SourceFact),
    (DestinationOwnership, DESTINATION_OWNERSHIP, DestinationTitle, DestinationFact),
]
each_side = pytest.mark.parametrize(
    ("make", "table", "titles", "facts"), CASES, ids=["source", "destination"]
)

# Whoever is in one of these may have the guest running; a source in OURS never stopped owning it.
SOURCE_MAY_RUN = {SourceTitle.OURS, SourceTitle.KEPT}
DESTINATION_MAY_RUN = {_D.TAKING_OVER, _D.OWNED, _D.CONFIRMED}


@each_side
def test_each_title_with_each_fact(
    make: Callable[[], Any],
    table: Mapping[tuple[Any, Any], Enum],
    titles: type[Enum],
    facts: type[Enum],
) -> None:
    for title, fact in itertools.product(titles, facts):
        ownership = make()
        ownership.title = title
        following = table.get((title, fact))
        assert ownership.may(fact) is (following is not None)
        if following is not None:
            ownership.take(fact)
            assert ownership.title is following
            continue
        with pytest.raises(LocalProtocolError) as caught:
            ownership.take(fact)
        assert ownership.title is title
        assert (caught.value.state, caught.value.got) == (title.value, fact.value)
        assert fact.value not in caught.value.expected.split(" or ")


@each_side
def test_each_title_is_reached_and_each_fact_counts(
    make: Callable[[], Any],
    table: Mapping[tuple[Any, Any], Enum],
    titles: type[Enum],
    facts: type[Enum],
) -> None:
    reached = {make().title}
    for _ in titles:
        reached |= {after for (before, _), after in table.items() if before in reached}
    assert reached == set(titles)
    assert {fact for _, fact in table} == set(facts)


def test_nothing_takes_the_vm_back_once_it_is_the_destinations() -> None:
    assert not [title for title, _ in SOURCE_OWNERSHIP if title is SourceTitle.THEIRS]
    after = {DESTINATION_OWNERSHIP[pair] for pair in DESTINATION_OWNERSHIP if pair[0] is _D.OWNED}
    assert after == {_D.CONFIRMED}
    assert not [title for title, _ in DESTINATION_OWNERSHIP if title is _D.CONFIRMED]


def test_a_source_that_may_resume_cannot_complete_any_more() -> None:
    into_kept = [pair for pair, after in SOURCE_OWNERSHIP.items() if after is SourceTitle.KEPT]
    assert len(into_kept) == 3
    assert not [title for title, _ in SOURCE_OWNERSHIP if title is SourceTitle.KEPT]


@pytest.mark.parametrize("title", list(DestinationTitle))
def test_a_fence_is_final_or_comes_too_late(title: DestinationTitle) -> None:
    ownership = DestinationOwnership()
    ownership.title = title
    fenced = ownership.fence()
    assert fenced is (title in {_D.BUILDING, _D.RESTORED, _D.FENCED, _D.ABORTED})
    if fenced:
        assert not ownership.may(DestinationFact.COMPLETE)
        assert not ownership.may(DestinationFact.STATE)
    else:
        assert ownership.title is title


@pytest.mark.parametrize(
    ("title", "verdict"),
    [
        (_D.OWNED, Verdict.COMMITTED),
        (_D.CONFIRMED, Verdict.COMMITTED),
        (_D.ABORTED, Verdict.ABORTED),
        (_D.IN_DOUBT, None),
    ],
)
def test_what_a_query_is_answered(title: DestinationTitle, verdict: Verdict | None) -> None:
    ownership = DestinationOwnership()
    ownership.title = title
    assert ownership.settled
    assert ownership.verdict is verdict


@pytest.mark.parametrize("title", [_D.BUILDING, _D.RESTORED, _D.TAKING_OVER, _D.FENCED])
def test_a_query_waits_for_the_rest(title: DestinationTitle) -> None:
    ownership = DestinationOwnership()
    ownership.title = title
    assert not ownership.settled


class TwoSides(RuleBasedStateMachine):
    """A source and a destination; what was sent arrives later, in order on one connection, or is
    lost. Complete may be sent while State is under way. The query may overtake everything on the
    main connection.
    """

    def __init__(self) -> None:
        super().__init__()
        self.source = SourceOwnership()
        self.destination = DestinationOwnership()
        self.stated = False
        self.sent: list[DestinationFact] = []  # in the main connection's socket
        self.answers: list[SourceFact] = []  # on their way back
        self.queries = 0  # of which the destination knows and which it has not answered
        self.verdicts: list[Verdict] = []
        self.half_run = False

    @rule()
    def time_passes(self) -> None:
        """There is something to do even where all is settled."""

    @precondition(lambda self: not self.stated and self.source.title is SourceTitle.OURS)
    @rule()
    def state(self) -> None:
        self.stated = True
        self.sent.append(DestinationFact.STATE)

    @precondition(lambda self: self.stated and self.source.may(SourceFact.COMMITTED))
    @rule()
    def complete(self) -> None:
        self.source.take(SourceFact.COMMITTED)
        self.sent.append(DestinationFact.COMPLETE)

    @precondition(lambda self: self.source.may(SourceFact.FAILED))
    @rule()
    def the_source_fails(self) -> None:
        self.source.take(SourceFact.FAILED)

    @precondition(lambda self: self.destination.may(DestinationFact.FENCE))
    @rule()
    def the_destination_fails(self) -> None:
        assert self.destination.fence()

    @precondition(lambda self: self.sent)
    @rule()
    def request_arrives(self) -> None:
        fact = self.sent.pop(0)
        if self.destination.may(fact):
            self.destination.take(fact)
        else:  # refused, and nothing behind it is read
            self.sent.clear()

    @precondition(lambda self: self.sent)
    @rule()
    def requests_are_lost(self) -> None:
        self.sent.clear()

    @precondition(lambda self: self.destination.title is _D.TAKING_OVER)
    @rule()
    def taken_over(self) -> None:
        self.destination.take(DestinationFact.TAKEN)
        self.answers.append(SourceFact.OK)

    @precondition(lambda self: self.destination.title is _D.TAKING_OVER)
    @rule()
    def not_started(self) -> None:
        self.destination.take(DestinationFact.NOT_STARTED)

    @precondition(lambda self: self.destination.title is _D.TAKING_OVER)
    @rule()
    def half_started(self) -> None:
        self.destination.take(DestinationFact.MAY_RUN)
        self.half_run = True

    @precondition(lambda self: self.destination.title is _D.FENCED)
    @rule()
    def discarded(self) -> None:
        self.destination.take(DestinationFact.DISCARDED)
        self.answers.append(SourceFact.ERROR)

    @precondition(lambda self: self.destination.title is _D.FENCED)
    @rule()
    def stuck(self) -> None:
        self.destination.take(DestinationFact.STUCK)

    @precondition(lambda self: self.source.title is SourceTitle.IN_DOUBT)
    @rule()
    def query(self) -> None:
        self.queries += 1
        self.destination.fence()

    @precondition(lambda self: self.queries and self.destination.settled)
    @rule()
    def query_is_answered(self) -> None:
        self.queries -= 1
        if self.destination.verdict is not None:
            self.verdicts.append(self.destination.verdict)

    @precondition(lambda self: self.verdicts and self.source.title is SourceTitle.IN_DOUBT)
    @rule()
    def verdict_arrives(self) -> None:
        self.source.believe(self.verdicts.pop(0))

    @precondition(lambda self: self.answers and self.source.may(self.answers[0]))
    @rule()
    def answer_arrives(self) -> None:
        self.source.take(self.answers.pop(0))

    @precondition(lambda self: self.answers)
    @rule()
    def answer_is_lost(self) -> None:
        self.answers.pop(0)

    @invariant()
    def never_at_both(self) -> None:
        source_may = self.source.title in SOURCE_MAY_RUN
        destination_may = self.half_run or self.destination.title in DESTINATION_MAY_RUN
        assert not (source_may and destination_may)

    @invariant()
    def a_settled_source_is_right(self) -> None:
        if self.source.title is SourceTitle.THEIRS:
            assert self.destination.title in (_D.OWNED, _D.CONFIRMED)


TwoSides.TestCase.settings = settings(max_examples=300, stateful_step_count=25)
test_both_sides = TwoSides.TestCase
