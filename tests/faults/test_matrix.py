"""A part of the fault matrix: each kind of fault and each setting, at places that take turns."""

import pytest

from tests.faults.matrix import KINDS, SETTINGS, Setting, run_at, spots_of
from aiomigrate.testing import AtByte

EVERY = 5
"""The suite runs one place in so many; `make faults` runs them all."""

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.asyncio(loop_factories=["virtual"]),
    pytest.mark.filterwarnings("default::ResourceWarning"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
async def test_one_owner_whatever_strikes_where(setting: Setting, kind: type[AtByte]) -> None:
    spots = await spots_of(setting)
    first = KINDS.index(kind) + SETTINGS.index(setting)
    outcomes = [await run_at(setting, kind, spot) for spot in spots[first % EVERY :: EVERY]]
    assert len(outcomes) >= 5
    assert set(outcomes) <= {"done", "source", "unknown"}
    assert "source" in outcomes
