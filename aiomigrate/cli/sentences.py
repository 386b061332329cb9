"""What a person is told of a migration, as sentences. All take what is printed as JSON, too."""

import re
from collections.abc import Mapping
from typing import Any

from aiomigrate.cli.text import one_line, rate_text, size_text, time_text

__all__ = [
    "LIMITS",
    "decision_sentence",
    "downtime_sentence",
    "limit_sentence",
    "report_sentence",
    "trouble_sentence",
]

LIMITS = {
    "rate_limit": "the rate limit",
    "memory": "memory or disk of the source",
    "link": "the network",
    "destination": "the destination, which read or answered slowly",
    "processor": "the processor of the source",
    "between_iterations": "what happens between iterations, with nothing to send",
}
"""By `Limit`."""


def report_sentence(report: Mapping[str, Any]) -> str:
    """What a migration did."""
    connections = report["connections"]
    rate = report["bytes"] / report["duration_s"] if report["duration_s"] else 0.0
    return (
        f"{size_text(report['bytes'])} in {time_text(report['duration_s'])} "
        f"({rate_text(rate)}) over {connections} connection{'s' * (connections != 1)}, "
        f"downtime {time_text(report['downtime_ms'] / 1000)}"
    )


def downtime_sentence(downtime: Mapping[str, float]) -> str:
    """Where the downtime went, stage by stage, in the order of the switchover."""
    stages = [
        f"{name.removesuffix('_ms').replace('_', ' ')} {spent:.1f}"
        for name, spent in downtime.items()
    ]
    return f"Of the downtime, in ms: {', '.join(stages)}"


def limit_sentence(limited_by: Mapping[str, Any]) -> str:
    """What limited the speed."""
    cause = limited_by["cause"]
    sentence = f"Speed was limited by {LIMITS[cause]} ({limited_by['share']:.0%} of the time)"
    if cause != "memory":
        return sentence
    steps = {
        "finding what to send": limited_by["looking_s"],
        "reading": limited_by["reading_s"],
        "telling zeros apart": limited_by["zero_test_s"],
    }
    return f"{sentence}: mostly {max(steps, key=lambda step: steps[step])}"


def trouble_sentence(event: Mapping[str, Any]) -> str:
    """That pre-copy does not converge, why, and what would help."""
    return f"It does not converge: {event['trouble']}."


def decision_sentence(decision: str) -> str:
    """A decision of the policy, with sizes that a person can read."""
    text = re.sub(
        r"\b(\d{1,19}) bytes(/s)?\b", lambda m: size_text(int(m[1])) + (m[2] or ""), decision
    )
    return one_line(text)
