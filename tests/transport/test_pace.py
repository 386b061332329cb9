import pytest

from aiomigrate.transport import Pace
from aiomigrate.transport.pace import PaceMeter

PACE = Pace(min_bytes=100, seconds=10.0)


@pytest.mark.parametrize("bad", [{"min_bytes": 0}, {"seconds": 0.0}, {"seconds": float("nan")}])
def test_a_pace_that_asks_for_nothing_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a pace must ask"):
        Pace(**bad)  # type: ignore[arg-type]


def test_a_window_ends_with_its_bytes_and_the_next_one_begins() -> None:
    meter = PaceMeter(PACE, 1000, now=0.0)
    meter.advance(99, now=9.0)
    assert meter.deadline == 10.0
    meter.advance(1, now=9.5)
    assert meter.deadline == 19.5
    assert meter.moved == 0


def test_the_rest_is_enough_where_it_is_less() -> None:
    meter = PaceMeter(PACE, 110, now=0.0)
    meter.advance(100, now=1.0)
    assert (meter.goal, meter.moved) == (10, 0)
