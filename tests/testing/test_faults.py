import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.testing import (
    Behind,
    Cut,
    Delay,
    Direction,
    Fault,
    HalfClose,
    Hold,
    Rate,
    Refuse,
    Reset,
    Stall,
    parse_fault,
)

CONNECTIONS = st.none() | st.integers(0, 200)
DIRECTIONS = st.none() | st.sampled_from(Direction)
SECONDS = st.floats(0, 1e6)
FAULTS = st.one_of(
    st.builds(Refuse, connection=CONNECTIONS, reset=st.booleans()),
    st.builds(Hold, connection=CONNECTIONS),
    st.builds(Behind, connection=st.integers(0, 9), other=st.integers(10, 20)),
    st.builds(
        Delay, connection=CONNECTIONS, direction=DIRECTIONS, seconds=SECONDS, jitter_s=SECONDS
    ),
    st.builds(
        Rate,
        connection=CONNECTIONS,
        direction=DIRECTIONS,
        bytes_per_s=st.floats(0, 1e12, exclude_min=True),
    ),
    *(
        st.builds(kind, connection=CONNECTIONS, direction=DIRECTIONS, after=st.integers(0))
        for kind in (Cut, Reset, Stall, HalfClose)
    ),
)


@given(FAULTS)
def test_the_text_of_a_fault_is_read_as_that_fault(fault: Fault) -> None:
    assert parse_fault(str(fault)) == fault


def test_forms() -> None:
    assert parse_fault("conn=2,dir=up,cut=1000000") == Cut(
        connection=2, direction=Direction.UP, after=1_000_000
    )
    assert parse_fault("rate=1e6") == Rate(bytes_per_s=1e6)
    assert parse_fault("stall=3,conn=0") == Stall(connection=0, after=3)
    assert parse_fault("conn=3,refuse") == Refuse(connection=3)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no fault is named"),
        ("conn=1", "no fault is named"),
        ("cut=1,reset=2", "'reset' does not belong there"),
        ("cut=1,jitter=2", "'jitter' does not belong there"),
        ("cut=1,cut=2", "'cut' is there twice"),
        ("cut=x", "'cut' needs a number, not 'x'"),
        ("cut=-1", "a fault strikes after 0 bytes or more, not -1"),
        ("conn=-1,hold", "connections count from 0, not -1"),
        ("hold=3", "no fault is named"),
        ("dir=left,cut=1", "'left' is not a valid Direction"),
        ("refuse=gently", "write 'refuse' or 'refuse=reset', not 'gently'"),
        ("dir=up,refuse", "'dir' does not belong there"),
        ("conn=1,behind=1", "one connection goes behind another: 1, 1"),
        ("behind=1", "one connection goes behind another: None, 1"),
        ("delay=nan", "a delay is 0 s or more, not nan and 0.0"),
        ("rate=0", "a rate is more than 0 bytes a second, not 0.0"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_sentence(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_fault(text)
    assert str(caught.value) == f"{text!r}: {why}"
