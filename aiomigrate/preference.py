"""One knob for people who do not want ten: what matters most, and the options that follow from it.

| preference | chunks, and so the windows | the guest's throttle | pause |
| --- | --- | --- | --- |
| speed | large: most bytes a second | as far as it takes | 1 s: fewer passes |
| downtime | small: the last pass is not held up by one | to a half: it is to serve on | 100 ms |
| bandwidth | large: least overhead | as far as it takes: less is sent twice | 2 s: fewest passes |

A lane's window is at least two chunks, and adapts from there (`window`).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum

from aiomigrate.options import MAX_THROTTLE_PERCENT, SendOptions

__all__ = ["Preference", "prefer"]

_MIB = 1 << 20


class Preference(StrEnum):
    """What matters most."""

    SPEED = "speed"
    """That the migration is over soon."""
    DOWNTIME = "downtime"
    """That the guest serves on, and pauses shortly."""
    BANDWIDTH = "bandwidth"
    """That few bytes are sent."""


@dataclass(frozen=True, slots=True)
class _Choice:
    chunk_bytes: int
    throttle_cap_percent: int
    downtime_ms: int


_CHOICES = {
    Preference.SPEED: _Choice(16 * _MIB, MAX_THROTTLE_PERCENT, 1000),
    Preference.DOWNTIME: _Choice(4 * _MIB, 50, 100),
    Preference.BANDWIDTH: _Choice(16 * _MIB, MAX_THROTTLE_PERCENT, 2000),
}
"""16 and 4 MiB: see `SendOptions.chunk_bytes`. The pauses are arbitrary around Cloud Hypervisor's
default of 300 ms; one of 2 s is still below what TCP's peers of the guest give up after."""


def prefer(
    preference: Preference, options: SendOptions, told: Collection[str] = ()
) -> tuple[SendOptions, str]:
    """`options` with what `preference` chooses, and a sentence that says what it chose.

    `told` names the options that somebody has set: they stay as they are.
    """
    choice = _CHOICES[preference]
    chosen = {
        name: getattr(choice, name) for name in choice.__dataclass_fields__ if name not in told
    }
    result = replace(options, **chosen)
    return result, (
        f"preferring {preference}: chunks of {result.chunk_bytes // _MIB} MiB and windows of "
        f"at least two, the guest throttled by {result.throttle_cap_percent} % at the most, "
        f"a downtime of {result.downtime_ms} ms"
    )
