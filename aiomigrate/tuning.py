"""What may be changed of a migration while it runs, as it is now.

The options that it was begun with stay what they are; the values that hold are those of
`Tuning.options`. Whoever waits within an iteration is woken by `changed`.
"""

import asyncio
from dataclasses import replace

from aiomigrate.options import SendOptions
from aiomigrate.rate import RateLimit

__all__ = ["Tuning"]


class Tuning:
    """The running values of one migration at its source."""

    def __init__(self, options: SendOptions) -> None:
        self.options = options
        self.rate = RateLimit(options.rate_limit)
        self.switch_over_asked = False
        self.changed = asyncio.Event()
        """Set by every change; cleared by the one who looks."""

    def change(
        self,
        *,
        downtime_ms: int | None = None,
        rate_limit: int | None = None,
        throttle_cap_percent: int | None = None,
    ) -> None:
        """All that is given, or nothing: UsageError for a value that cannot be meant."""
        now = self.options
        self.options = replace(
            now,
            downtime_ms=_or(downtime_ms, now.downtime_ms),
            rate_limit=_or(rate_limit, now.rate_limit),
            throttle_cap_percent=_or(throttle_cap_percent, now.throttle_cap_percent),
        )
        self.rate.change(self.options.rate_limit)
        self.changed.set()

    def ask_to_switch_over(self) -> None:
        """Pause the guest as soon as its memory is being sent."""
        self.switch_over_asked = True
        self.changed.set()


def _or(value: int | None, now: int) -> int:
    return now if value is None else value
