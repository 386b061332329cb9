"""OpenTelemetry spans of a migration and its phases, where that API is installed.

They are made when the migration has ended, of the times that were noted on the way: nothing is
added to what happens while the guest is paused. The parent is the span that was current where the
migration was begun.
"""

import asyncio
import time
from itertools import pairwise
from typing import Protocol

from aiomigrate._version import __version__
from aiomigrate.progress import Report, Tracker

try:
    from opentelemetry import trace
except ImportError:
    has_api = False
else:
    has_api = True

__all__ = ["Attempt", "traced"]


class Attempt(Protocol):
    """One side of one migration."""

    tracker: Tracker

    @property
    def id(self) -> str:
        """As the journals have it."""
        ...

    @property
    def committed(self) -> bool:
        """Whether the VM may have changed hands."""
        ...

    async def run(self) -> Report:
        """Migrate."""
        ...


async def traced(side: str, attempt: Attempt) -> Report:
    """Run `attempt`, and then tell of it."""
    try:
        report = await attempt.run()
    except BaseException as error:
        _tell(side, attempt, error)
        raise
    _tell(side, attempt, None)
    return report


def _tell(side: str, attempt: Attempt, error: BaseException | None) -> None:
    if not has_api:
        return
    now = asyncio.get_running_loop().time()
    offset_ns = time.time_ns() - int(now * 1e9)

    def at_ns(moment: float) -> int:
        return offset_ns + int(moment * 1e9)

    phases = attempt.tracker.phases
    tracer = trace.get_tracer("aiomigrate", __version__)
    span = tracer.start_span(
        f"migration at its {side}",
        start_time=at_ns(phases[0][1]),
        attributes={
            "aiomigrate.migration": attempt.id,
            "aiomigrate.bytes": attempt.tracker.bytes_done,
            "aiomigrate.iterations": attempt.tracker.iteration + 1,
        },
    )
    context = trace.set_span_in_context(span)
    for (phase, began), (_, ended) in pairwise([*phases, (phases[-1][0], now)]):
        part = tracer.start_span(phase.value, context, start_time=at_ns(began))
        part.end(at_ns(ended))
    if error is not None:
        span.set_status(trace.Status(trace.StatusCode.ERROR, str(error)))
    span.end(at_ns(now))
