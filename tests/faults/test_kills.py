"""Some of the kills: around the commit point. `make faults` runs them all."""

from pathlib import Path

import pytest

from tests.faults.kills import SIDES, kills, run

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("where", ["main: after State", "main: after Complete"])
async def test_the_journals_are_right(where: str, side: str, tmp_path: Path) -> None:
    (kill,) = (kill for kill in await kills(1) if (kill.spot.where, kill.side) == (where, side))
    outcome = await run(kill, tmp_path)
    if where == "main: after State" and side == "destination":
        assert outcome.startswith("source")  # a source's Complete may be on its way behind State


async def test_an_answer_that_was_lost_with_its_source_leaves_the_vm_at_the_destination(
    tmp_path: Path,
) -> None:
    kill = next(kill for kill in await kills(1) if "in the answer to Complete" in kill.spot.where)
    assert kill.side == "source"
    assert await run(kill, tmp_path) == "destination, in doubt at the source"
