import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomigrate.window import Window

_MIB = 1 << 20
_CHUNK = 64 << 10


def test_before_the_first_answer_it_is_a_stock_senders_request() -> None:
    assert Window(_CHUNK).size == 64 * _MIB
    assert Window(100 * _MIB).size == 200 * _MIB
    assert Window(_CHUNK).rate == 0
    assert Window(_CHUNK).round_trip_s == float("inf")


def test_room_ends_with_the_chunk_that_fills_it() -> None:
    window = Window(_CHUNK)
    sent = 0
    while window.has_room:
        window.sent(_CHUNK, 0.0)
        sent += _CHUNK
    assert sent == window.unanswered == 64 * _MIB
    window.answered(1.0)
    assert window.unanswered == 64 * _MIB - _CHUNK


def test_one_by_one_waits_for_each_answer() -> None:
    window = Window(_CHUNK, one_by_one=True)
    room = [window.has_room]
    for now in range(2):
        window.sent(_CHUNK, now)
        room.append(window.has_room)
        window.answered(now + 0.5)
        room.append(window.has_room)
    assert room == [True, False, True, False, True]


def test_it_settles_at_twice_the_link() -> None:
    """A link of 100 MiB/s with a round trip of 0.1 s: 10 MiB are on the way when it is full."""
    rate, delay = 100 * _MIB, 0.1
    window = Window(_CHUNK)
    now = busy_until = 0.0
    answers: list[float] = []
    for _ in range(20000):
        if window.has_room:
            window.sent(_CHUNK, now)
            busy_until = max(busy_until, now) + _CHUNK / rate
            answers.append(busy_until + delay)
        else:
            now = answers.pop(0)
            window.answered(now)
    assert window.rate == pytest.approx(rate, rel=0.05)
    assert window.round_trip_s == pytest.approx(delay + _CHUNK / rate, rel=0.05)
    assert window.size == pytest.approx(2 * rate * delay, rel=0.1)


def test_it_doubles_a_round_trip_while_it_binds() -> None:
    """On a link without limit the window is what holds the rate back, so it grows and grows."""
    window, now, delay = Window(_CHUNK), 0.0, 0.1
    window.sent(_CHUNK, now)
    now += delay
    window.answered(now)
    sizes = [window.size]
    assert sizes == [2 * _CHUNK]  # the floor, and twice one chunk a round trip
    for _ in range(6):
        count = 0
        while window.has_room:
            window.sent(_CHUNK, now)
            count += 1
        now += delay
        for _ in range(count):
            window.answered(now)
        sizes.append(window.size)
    assert sizes == pytest.approx([2 * _CHUNK << n for n in range(7)], abs=8)


def test_it_forgets_a_rate_that_has_gone() -> None:
    window, now = Window(_CHUNK), 0.0
    for _ in range(10):
        window.sent(_MIB, now)
        now += 0.001
        window.answered(now)
    fast = window.size
    assert fast == pytest.approx(2 * _MIB, rel=0.01)
    for _ in range(32):
        window.sent(_CHUNK, now)
        now += 0.1
        window.answered(now)
    assert window.rate == pytest.approx(_CHUNK / 0.1)
    assert window.size == 2 * _CHUNK


def test_a_shorter_round_trip_is_believed_for_ten_seconds() -> None:
    window = Window(_CHUNK)
    window.sent(_CHUNK, 0.0)
    window.answered(0.01)
    for at, expected in ((1.0, 0.01), (9.0, 0.01), (11.0, 0.5)):
        window.sent(_CHUNK, at - 0.5)
        window.answered(at)
        assert window.round_trip_s == pytest.approx(expected)


def test_an_answer_in_no_time_divides_by_nothing() -> None:
    window = Window(_CHUNK)
    window.sent(_CHUNK, 5.0)
    assert window.answered(5.0) == _CHUNK
    assert window.size >= 2 * _CHUNK


@given(
    chunk=st.sampled_from([4096, _CHUNK, 4 * _MIB]),
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(1, 4 * _MIB), st.floats(0, 20, allow_subnormal=False)),
        max_size=80,
    ),
)
@settings(max_examples=200)
def test_it_keeps_its_books(chunk: int, steps: list[tuple[bool, int, float]]) -> None:
    window = Window(chunk)
    ledger: list[tuple[int, float]] = []
    now = 0.0
    answered = 0
    fastest = 0.0
    for send, nbytes, pause in steps:
        now += pause
        if send or not ledger:
            ledger.append((nbytes, now))
            window.sent(nbytes, now)
        else:
            expected, at = ledger.pop(0)
            assert window.answered(now) == expected
            answered += 1
            fastest = max(fastest, window.rate)
            assert window.round_trip_s <= max(now - at, 1e-3) or now - at < 1e-9
        assert window.unanswered == sum(size for size, _ in ledger) >= 0
        assert window.has_room is (window.unanswered < window.size)
        assert window.size >= 2 * chunk
        if answered:
            bound = 2 * window.rate * window.round_trip_s
            assert window.size == max(2 * chunk, int(bound))
        if not ledger:
            assert window.has_room
