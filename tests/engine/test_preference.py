import pytest

from aiomigrate import SendOptions
from aiomigrate.preference import Preference, prefer


@pytest.mark.parametrize("preference", Preference)
def test_it_says_what_it_chose(preference: Preference) -> None:
    options, chosen = prefer(preference, SendOptions(connections=4))
    assert options.connections == 4
    assert chosen == (
        f"preferring {preference}: chunks of {options.chunk_bytes >> 20} MiB and windows of at "
        f"least two, the guest throttled by {options.throttle_cap_percent} % at the most, "
        f"a downtime of {options.downtime_ms} ms"
    )


def test_each_chooses_something_else() -> None:
    chosen = {prefer(preference, SendOptions())[0] for preference in Preference}
    assert len(chosen) == len(Preference)


def test_downtime_is_for_a_guest_that_serves_on() -> None:
    downtime, _ = prefer(Preference.DOWNTIME, SendOptions())
    for other in (Preference.SPEED, Preference.BANDWIDTH):
        options, _ = prefer(other, SendOptions())
        assert downtime.downtime_ms < SendOptions().downtime_ms < options.downtime_ms
        assert downtime.throttle_cap_percent < options.throttle_cap_percent
        assert downtime.chunk_bytes < options.chunk_bytes


def test_what_somebody_set_stays() -> None:
    options, chosen = prefer(Preference.SPEED, SendOptions(downtime_ms=7), ["downtime_ms"])
    assert options.downtime_ms == 7
    assert chosen.endswith("a downtime of 7 ms")
    assert options.throttle_cap_percent == 99
