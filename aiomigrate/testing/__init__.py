"""For tests of migrations: networks and peers that misbehave, on purpose and repeatably.

`FaultRelay` stands between two peers and disturbs their connections; it also runs by itself:
`python -m aiomigrate.testing`. A `Link` joins two network namespaces, delays what goes over it, and
can be taken down (root, Linux).
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
from aiomigrate.testing.link import Link
from aiomigrate.testing.namespaces import LinkUnavailable, Namespace
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
    "Link",
    "LinkUnavailable",
    "Namespace",
    "Rate",
    "Refuse",
    "Relayed",
    "Reset",
    "Stall",
    "Struck",
    "parse_fault",
]
