import pytest

from aiomigrate import SendOptions, TimeoutStrategy
from aiomigrate.precopy import Verdict, decide

_CANCEL = SendOptions(downtime_ms=300, timeout_s=60)
_IGNORE = SendOptions(downtime_ms=300, timeout_s=60, timeout_strategy=TimeoutStrategy.IGNORE)


@pytest.mark.parametrize(
    ("options", "dirty", "bandwidth", "elapsed", "verdict"),
    [
        (_CANCEL, 0, 0.0, 0.0, Verdict.SWITCH_OVER),
        (_CANCEL, 0, 0.0, 1000.0, Verdict.SWITCH_OVER),
        (_CANCEL, 300, 1000.0, 0.0, Verdict.SWITCH_OVER),
        (_CANCEL, 301, 1000.0, 0.0, Verdict.ITERATE),
        (_CANCEL, 301, 1000.0, 59.9, Verdict.ITERATE),
        (_CANCEL, 301, 1000.0, 60.0, Verdict.GIVE_UP),
        (_IGNORE, 301, 1000.0, 59.9, Verdict.ITERATE),
        (_IGNORE, 301, 1000.0, 60.0, Verdict.SWITCH_OVER),
        # What fits is sent, also when the time is over: the reference's order.
        (_CANCEL, 300, 1000.0, 60.0, Verdict.SWITCH_OVER),
        # Nothing was moved, so nothing is known.
        (_CANCEL, 1, 0.0, 0.0, Verdict.ITERATE),
        (_CANCEL, 1, 0.0, 60.0, Verdict.GIVE_UP),
    ],
)
def test_verdicts(
    options: SendOptions, dirty: int, bandwidth: float, elapsed: float, verdict: Verdict
) -> None:
    assert decide(options, dirty, bandwidth, elapsed).verdict is verdict


def test_a_decision_says_why() -> None:
    assert str(decide(_CANCEL, 0, 0.0, 0.0)) == "pause the guest: nothing is dirty"
    assert str(decide(_CANCEL, 100, 1000.0, 0.0)) == (
        "pause the guest: 100 bytes are dirty, 100 ms at 1000 bytes/s, the limit is 300 ms"
    )
    assert str(decide(_CANCEL, 400, 1000.0, 1.0)) == (
        "send another iteration: 400 bytes are dirty, 400 ms at 1000 bytes/s"
    )
    assert str(decide(_CANCEL, 400, 1000.0, 60.0)) == (
        "give up: 400 bytes are dirty, 400 ms at 1000 bytes/s, and 60 s are over"
    )
