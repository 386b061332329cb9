"""Every fault at every place: one owner at most, no wait without an end, and it works again."""

from pathlib import Path

import pytest

from aiomigrate.testing import Cut, HalfClose, Reset, Stall
from tests.faults.matrix import KINDS, SETTINGS, Setting, run_at, spots_of
from tests.support.certificates import Authority
from tests.support.clock import VirtualClockLoop

pytestmark = [
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.no_cover,  # a thousand migrations through what tests/engine covers
    pytest.mark.asyncio(loop_factories=["virtual"]),
]


@pytest.fixture(autouse=True)
async def _nobody_else(clock: VirtualClockLoop) -> None:
    """Both sides and the relay are on this loop: there is no thread to wait for."""
    clock.patience = 0.005


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
async def test_one_owner_whatever_strikes_where(
    setting: Setting, kind: type[Cut | Reset | HalfClose | Stall]
) -> None:
    spots = await spots_of(setting)
    assert len(spots) > 30
    outcomes = {await run_at(setting, kind, spot) for spot in spots}
    assert "source" in outcomes
    # With a lost lane the migration goes on.
    assert ("done" in outcomes) >= (setting.connections > 1 and bool(setting.extensions))


_ONE_OF = 17
"""Through TLS the suite takes so many spots apart; `make faults` takes each."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
async def test_one_owner_through_tls(
    setting: Setting, kind: type[Cut | Reset | HalfClose | Stall], tmp_path: Path
) -> None:
    through_tls = setting.through_tls(Authority().directory(tmp_path / "tls"))
    spots = await spots_of(through_tls)
    assert len(spots) > 30
    first = KINDS.index(kind)
    outcomes = [await run_at(through_tls, kind, spot) for spot in spots[first::_ONE_OF]]
    assert "source" in outcomes
