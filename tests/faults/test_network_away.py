"""The network between source and destination goes away: the interfaces of a real link are taken
down while a migration is on, and brought up again while both sides still wait, or after they have
given up.

Where the link comes back in time the migration is done. Where it does not, both sides end by their
deadlines, and who has the VM is certain, unless Complete was on its way. Never have both.
"""

from collections.abc import Iterator

import pytest

from aiomigrate.testing import LinkUnavailable
from tests.faults.away import AT_DESTINATION, AT_SOURCE, Away
from tests.support.leaks import Resources


@pytest.fixture(scope="module")
def away() -> Iterator[Away]:
    before = Resources.now()
    try:
        with Away() as made:
            yield made
    except LinkUnavailable as error:
        pytest.skip(str(error))
    assert Resources.left_since(before) == []


moments = pytest.mark.parametrize("moment", [*AT_SOURCE, *AT_DESTINATION])
lanes = pytest.mark.parametrize("connections", [1, 4])


@lanes
@moments
def test_it_comes_back_in_time(away: Away, moment: str, connections: int) -> None:
    sent, received = away.migrate(moment, connections, comes_back=True)
    assert (sent["outcome"], received["outcome"]) == ("done", "done"), (sent, received)
    assert (sent["running"], sent["ended"], received["runs"]) == (False, True, True)
    assert received["digest"] == sent["digest"]


@lanes
@moments
def test_it_does_not_come_back(away: Away, moment: str, connections: int) -> None:
    sent, received = away.migrate(moment, connections, comes_back=False)
    if moment in AT_DESTINATION:  # Complete is behind State already, and nobody can be asked
        assert sent["outcome"] == "unknown", sent
        assert (sent["running"], sent["ended"]) == (False, False)
        if moment == "the answer to Complete" or received["outcome"] == "done":
            assert (received["outcome"], received["runs"]) == ("done", True), received
            assert received["digest"] == sent["digest"]
        else:  # it got lost on its way
            assert (received["runs"], received["discarded"]) == (None, 1), received
    else:
        assert (sent["outcome"], sent["owner"]) == ("failed", "source"), sent
        assert (received["outcome"], received["owner"]) == ("failed", "source"), received
        assert (sent["running"], sent["ended"], received["runs"]) == (True, False, None)
        assert received["discarded"] == 1
