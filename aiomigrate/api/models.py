"""The bodies of requests and answers. The OpenAPI document is made from these.

Requests are read strictly: no conversions, and no field that is not here. Those of Cloud
Hypervisor's own paths have all the fields that its client sends (`ch-remote` of v52 to 54 sends
every field that it knows); where this service offers one value only, that is the field's type.
What only makes sense together (addresses, connections over a unix socket) is the engine's to judge.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    WithJsonSchema,
    model_validator,
)

from aiomigrate import Account, Dialect, Owner, Progress, Report, SendOptions, TimeoutStrategy
from aiomigrate.api.migrations import Direction, State
from aiomigrate.api.vms import VmState
from aiomigrate.preference import Preference

__all__ = [
    "Errors",
    "Info",
    "Listing",
    "MigrationInfo",
    "Names",
    "Ping",
    "ProgressInfo",
    "ReceiveMigration",
    "Refused",
    "Restore",
    "SendMigration",
    "Settings",
    "Snapshot",
    "Tune",
]

_DEFAULTS = SendOptions()
_MAX_CONNECTIONS = 128
_ADDRESS = r"^(tcp:([^:\[\]]+|\[[0-9A-Fa-f:.%a-z]+\]):[0-9]{1,5}|unix:[^\u0000]{1,107})$"
"""What the engine takes, for readers and generators of requests; the engine itself says what is
wrong with one that it does not."""


def _whole(value: object) -> object:
    """JSON has one kind of number: 3.0 is an integer, as JSON Schema says."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE = BeforeValidator(_whole)
_U64 = Annotated[int, Field(ge=0, le=2**64 - 1), _WHOLE]
_NonZeroU64 = Annotated[int, Field(ge=1, le=2**64 - 1), _WHOLE]
_NonZeroU32 = Annotated[int, Field(ge=1, le=2**32 - 1), _WHOLE]
_Percent = Annotated[int, Field(ge=0, le=99), _WHOLE]
_Rate = Annotated[
    _U64,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "const": 0},
                {"type": "integer", "minimum": 1 << 20, "maximum": 2**64 - 1},
            ]
        }
    ),
]
"""The engine itself says which rates are too low."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class _Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class _Strategy(StrEnum):
    """Cloud Hypervisor's words."""

    CANCEL = "Cancel"
    IGNORE = "Ignore"


_TlsDir = Annotated[str, Field(pattern=r"^[^\x00]+$")]


class SendMigration(_Request):
    """Where a VM is to be sent, and how: Cloud Hypervisor's SendMigrationData."""

    destination_url: str = Field(json_schema_extra={"pattern": _ADDRESS})
    """Who receives it: `tcp:HOST:PORT`, `tcp:[IPV6]:PORT` or `unix:PATH`."""
    local: bool = False
    """Guest memory by descriptor, to a VMM on this host: over a unix socket only. A stored VM is
    read into memory first."""
    preserve_source: Literal[False] = False
    """Keeping the source's VM is not offered: `vm.snapshot` keeps a copy of it, which `vm.restore`
    takes."""
    downtime_ms: _NonZeroU64 = _DEFAULTS.downtime_ms
    """Milliseconds: the guest is paused once what is left is expected to move in this time."""
    timeout_s: _NonZeroU64 = _DEFAULTS.timeout_s
    """Seconds that pre-copy may take."""
    timeout_strategy: _Strategy = _Strategy.CANCEL
    """After that: `Cancel` gives up, `Ignore` pauses the guest and sends the rest."""
    connections: _NonZeroU32 = Field(
        default=_DEFAULTS.connections, json_schema_extra={"maximum": _MAX_CONNECTIONS}
    )
    """1 to 128. More than 1: as many additional connections, for memory alone; tcp only."""
    tls_dir: _TlsDir | None = None
    """Mutual TLS, over tcp: a directory of this host with `ca-cert.pem`, `client-cert.pem` and
    `client-key.pem`."""
    memory_mode: Literal["Precopy"] = "Precopy"
    """Memory is sent while the guest runs here; post-copy is not offered. For a guest that writes
    faster than it moves there are `timeout_strategy`, `throttle_cap_percent`, and
    `vm.tune-migration` with `switch_over_now`."""
    dialect: Dialect = Dialect.V53
    """Ours. How additional connections begin: `v52` towards a Cloud Hypervisor of that version."""
    prefer: Preference | None = None
    """Ours. What matters most: chooses what the other fields leave open."""
    rate_limit: _Rate = 0
    """Ours. Bytes a second while the guest runs, at least 1048576; 0: no limit."""
    throttle_cap_percent: _Percent = _DEFAULTS.throttle_cap_percent
    """Ours. How far a guest that writes too fast may be slowed down; 0 for never."""
    fast_switchover: bool = False
    """Ours. Complete right behind the state, as it is towards aiomigrate anyhow: a round trip less
    of downtime, for an unknown outcome if the refusal of a state is lost."""

    @property
    def strategy(self) -> TimeoutStrategy:
        """The engine's word."""
        return TimeoutStrategy(self.timeout_strategy.value.lower())


class ReceiveMigration(_Request):
    """Where to listen for a VM: Cloud Hypervisor's ReceiveMigrationData."""

    receiver_url: str = Field(json_schema_extra={"pattern": _ADDRESS})
    """`tcp:HOST:PORT` (port 0: any), `tcp:[IPV6]:PORT` or `unix:PATH` of a socket that is not there
    yet."""
    tls_dir: _TlsDir | None = None
    """Mutual TLS, over tcp: a directory of this host with `ca-cert.pem`, `server-cert.pem` and
    `server-key.pem`."""
    memory_mode: Literal["Precopy"] = "Precopy"
    """Post-copy is not offered: let the source send with `Precopy` as well."""
    vfio_fds: list[None] | None = Field(default=None, max_length=0)
    """Descriptors for VFIO devices are not offered; none, or an empty list. They are for the Cloud
    Hypervisor that this VM is sent to."""
    iommufd_fd: None = None
    """A descriptor for IOMMUFD is not offered. It is for the Cloud Hypervisor that this VM is sent
    to."""
    zone_updates: list[None] = Field(default=[], max_length=0)
    """Other NUMA nodes for memory zones are not offered; an empty list. They are for the Cloud
    Hypervisor that this VM is sent to."""


class Snapshot(_Request):
    """Where a paused VM is to be kept: Cloud Hypervisor's VmSnapshotConfig."""

    destination_url: str = Field(json_schema_extra={"pattern": "^file:///."})
    """`file://` and the absolute path of an empty directory, which becomes a stored VM; `aiomigrate
    convert` makes Cloud Hypervisor's own form of it."""


class Restore(_Request):
    """Which stored VM is to be here: Cloud Hypervisor's RestoreConfig."""

    source_url: str = Field(json_schema_extra={"pattern": "^file:///."})
    """`file://` and the absolute path of a stored VM, or, in a service for a directory, of a
    snapshot of Cloud Hypervisor's, of which a stored VM is made there."""
    prefault: Literal[False] = False
    """Touching all memory first is not offered: the VMM that will run it does so, if its Config
    says that."""
    memory_restore_mode: Literal["Copy"] = "Copy"
    """Memory on demand is not offered here: `aiomigrate offload restore --on-demand` gives it to a
    Cloud Hypervisor."""
    net_fds: list[None] | None = Field(default=None, max_length=0)
    """Descriptors for network devices are not offered; none, or an empty list. They are for the
    Cloud Hypervisor that this VM is sent to."""
    vfio_fds: list[None] | None = Field(default=None, max_length=0)
    """Descriptors for VFIO devices are not offered; none, or an empty list. They are for the Cloud
    Hypervisor that this VM is sent to."""
    iommufd_fd: None = None
    """A descriptor for IOMMUFD is not offered. It is for the Cloud Hypervisor that this VM is sent
    to."""
    resume: bool = False
    """Whether it is to run at once, and not to stay paused."""
    zone_updates: list[None] = Field(default=[], max_length=0)
    """Other NUMA nodes for memory zones are not offered; an empty list. They are for the Cloud
    Hypervisor that this VM is sent to."""


class Tune(_Request):
    """What is to be changed of a running migration; at least one of these."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    downtime_ms: _NonZeroU64 | None = None
    """Milliseconds; holds from the next decision on."""
    rate_limit: _Rate | None = None
    """Bytes a second while the guest runs, at least 1048576; 0: no limit. Holds at once."""
    throttle_cap_percent: _Percent | None = None
    """How far the guest may be slowed down; eases one that is slowed down further at once."""
    switch_over_now: bool = False
    """Pause the guest at once, and send what is left."""

    @model_validator(mode="after")
    def _something(self) -> "Tune":
        if not self.model_fields_set:
            raise ValueError("nothing is to be changed")
        return self


class Ping(_Answer):
    """Who answers: Cloud Hypervisor's VmmPingResponse."""

    build_version: str
    version: str
    pid: int
    features: list[str]


class Info(_Answer):
    """The VM: Cloud Hypervisor's VmInfo."""

    config: dict[str, Any]
    """Its VmConfig."""
    state: VmState
    memory_actual_size: int
    """Bytes of RAM."""


class ProgressInfo(_Answer):
    """How far a migration is."""

    migration: str
    """Its id."""
    progress: Progress | None
    """None in the first moment."""


class Settings(_Answer):
    """What can be changed of a migration that is sent, as it is now."""

    downtime_ms: int
    """Milliseconds: the guest is paused once what is left is expected to move in this time."""
    rate_limit: int
    """Bytes a second while the guest runs; 0: no limit."""
    throttle_cap_percent: int
    """How far the guest may be slowed down."""


class MigrationInfo(_Answer):
    """One migration, running or ended."""

    id: str
    """As journals and logs have it; a received one's changes once its source has named it."""
    vm: str
    """The VM's name here."""
    direction: Direction
    url: str
    """The destination's address; of a reception the one that it listens at."""
    state: State
    began: datetime
    ended: datetime | None
    runs: bool | None
    """Whether the guest runs at the source until it is paused there: not if it was paused before,
    or is a stored VM. None at a destination, which is not told."""
    owner: Owner | None
    """Who has the VM, once it has ended."""
    error: str | None
    """Why it has failed, and what may help."""
    notes: list[str]
    """What was chosen for it, and what happened after its end."""
    settings: Settings | None
    """None at a destination."""
    progress: Progress | None
    account: Account | None
    """What it did so far, or until it failed; None where there is a report, and in lists."""
    report: Report | None
    """In lists without its history."""


class Listing(RootModel[list[MigrationInfo]]):
    """All migrations that are known, oldest first."""


class Names(RootModel[list[str]]):
    """The VMs that can be asked for by name."""


class Errors(RootModel[list[str]]):
    """What went wrong, the outermost first."""


class Refused(RootModel[list[str]]):
    """Cloud Hypervisor's answer to what cannot be done with the VM as it is: what failed, why."""

    model_config = ConfigDict(
        json_schema_extra={
            "minItems": 3,
            "contains": {"const": "Error from API"},
        }
    )
