from dataclasses import asdict

import pytest

from aiomigrate import Downtime, Limit
from aiomigrate.cli.sentences import LIMITS, decision_sentence, downtime_sentence, limit_sentence


def test_the_downtime_is_told_stage_by_stage() -> None:
    split = asdict(
        Downtime(
            pause_ms=1, last_pass_ms=2.25, capture_ms=0, hand_over_ms=3, restore_ms=4, waiting_ms=5
        )
    )
    assert downtime_sentence(split) == (
        "Of the downtime, in ms: pause 1.0, last pass 2.2, capture 0.0, hand over 3.0, "
        "restore 4.0, waiting 5.0"
    )


def test_each_limit_has_its_words() -> None:
    assert set(LIMITS) == set(Limit)


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("link", "Speed was limited by the network (75% of the time)"),
        (
            "memory",
            "Speed was limited by memory or disk of the source (75% of the time): mostly reading",
        ),
    ],
)
def test_what_limited_it(cause: str, told: str) -> None:
    steps = {"looking_s": 1.0, "reading_s": 2.0, "zero_test_s": 0.5}
    assert limit_sentence({"cause": cause, "share": 0.75, **steps}) == told


def test_decisions_have_sizes_that_can_be_read() -> None:
    said = "pause the guest: 8388608 bytes are dirty, 44 ms at 190000000 bytes/s, the limit is 50"
    assert decision_sentence(said) == (
        "pause the guest: 8.0 MiB are dirty, 44 ms at 181 MiB/s, the limit is 50"
    )
    assert decision_sentence("a\nb, " + "9" * 50 + " bytes") == "a\\nb, " + "9" * 50 + " bytes"
