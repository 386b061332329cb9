"""All targets by name."""

from fuzz.parsers import PARSERS, Target
from fuzz.reception import receive

__all__ = ["TARGETS"]

TARGETS: dict[str, Target] = {**PARSERS, "receive": receive}
