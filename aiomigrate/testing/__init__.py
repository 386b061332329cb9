"""For tests of migrations: networks and peers that misbehave, on purpose and repeatably.

`FaultRelay` stands between two peers and disturbs their connections; it also runs by itself:
`python -m aiomigrate.testing`.
"""

from aiomigrate.testing.faults import (
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
from aiomigrate.testing.relay import FaultRelay
from aiomigrate.testing.relayed import Relayed
from aiomigrate.testing.strikes import Struck

__all__ = [
    "Behind",
    "Cut",
    "Delay",
    "Direction",
    "Fault",
    "FaultRelay",
    "HalfClose",
    "Hold",
    "Rate",
    "Refuse",
    "Relayed",
    "Reset",
    "Stall",
    "Struck",
    "parse_fault",
]
