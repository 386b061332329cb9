"""Live migration of virtual machines over Cloud Hypervisor's protocol, for asyncio.

The public names are loaded when they are first used: importing the package costs little.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aiomigrate._version import __version__

if TYPE_CHECKING:
    from aiomigrate.conversion import SnapshotKind, convert
    from aiomigrate.dirty_logs import (
        BitmapDirtyLog,
        CombinedDirtyLog,
        KvmDirtyLog,
        PagemapDirtyLog,
    )
    from aiomigrate.downtime import Downtime
    from aiomigrate.embedding import (
        CleanLog,
        Destination,
        DirtyLog,
        OnDemand,
        Recorded,
        Source,
        TakesMemory,
        Throttled,
    )
    from aiomigrate.errors import (
        GuestNotStarted,
        MigrationCancelled,
        MigrationError,
        MigrationFailed,
        OutcomeUnknown,
        Owner,
        UsageError,
    )
    from aiomigrate.executor import JobExecutor
    from aiomigrate.history import History, Iteration, PhaseBegin, Sample
    from aiomigrate.journal import JournalError
    from aiomigrate.limiting import Limit, LimitedBy
    from aiomigrate.loaded import LoadedSource, OnDemandSource
    from aiomigrate.memory.errors import ConfigError, DirtyLogError, StoredVmError
    from aiomigrate.memory.fresh import make_memfds
    from aiomigrate.memory.guest import GuestMemory
    from aiomigrate.memory.kvm_log import KvmSlot
    from aiomigrate.memory.map import Mapping, MemoryMap, VmConfig
    from aiomigrate.memory.stored import StoredVm
    from aiomigrate.migration import Departure, Migration, Reception, receive, send
    from aiomigrate.options import Deadlines, ReceiveOptions, SendOptions, TimeoutStrategy
    from aiomigrate.phase import Phase
    from aiomigrate.preference import Preference, prefer
    from aiomigrate.progress import Account, ConnectionProgress, Progress, Report
    from aiomigrate.protocol import Dialect, Extension, Limits
    from aiomigrate.serving import PageServer
    from aiomigrate.stored import StoredDestination, StoredSource
    from aiomigrate.transport import Pace

_HOME = {
    "Account": "progress",
    "BitmapDirtyLog": "dirty_logs",
    "CleanLog": "embedding",
    "CombinedDirtyLog": "dirty_logs",
    "ConfigError": "memory.errors",
    "ConnectionProgress": "progress",
    "Deadlines": "options",
    "Departure": "migration",
    "Destination": "embedding",
    "Dialect": "protocol",
    "DirtyLog": "embedding",
    "DirtyLogError": "memory.errors",
    "Downtime": "downtime",
    "Extension": "protocol",
    "GuestMemory": "memory.guest",
    "GuestNotStarted": "errors",
    "History": "history",
    "Iteration": "history",
    "JobExecutor": "executor",
    "JournalError": "journal",
    "KvmDirtyLog": "dirty_logs",
    "KvmSlot": "memory.kvm_log",
    "Limit": "limiting",
    "LimitedBy": "limiting",
    "Limits": "protocol",
    "LoadedSource": "loaded",
    "Mapping": "memory.map",
    "MemoryMap": "memory.map",
    "Migration": "migration",
    "MigrationCancelled": "errors",
    "MigrationError": "errors",
    "MigrationFailed": "errors",
    "OnDemand": "embedding",
    "OnDemandSource": "loaded",
    "OutcomeUnknown": "errors",
    "Owner": "errors",
    "Pace": "transport",
    "PageServer": "serving",
    "PagemapDirtyLog": "dirty_logs",
    "Phase": "phase",
    "PhaseBegin": "history",
    "Preference": "preference",
    "Progress": "progress",
    "ReceiveOptions": "options",
    "Reception": "migration",
    "Recorded": "embedding",
    "Report": "progress",
    "Sample": "history",
    "SendOptions": "options",
    "SnapshotKind": "conversion",
    "Source": "embedding",
    "StoredDestination": "stored",
    "StoredSource": "stored",
    "StoredVm": "memory.stored",
    "StoredVmError": "memory.errors",
    "TakesMemory": "embedding",
    "Throttled": "embedding",
    "TimeoutStrategy": "options",
    "UsageError": "errors",
    "VmConfig": "memory.map",
    "convert": "conversion",
    "make_memfds": "memory.fresh",
    "prefer": "preference",
    "receive": "migration",
    "send": "migration",
}

__all__ = [
    "Account",
    "BitmapDirtyLog",
    "CleanLog",
    "CombinedDirtyLog",
    "ConfigError",
    "ConnectionProgress",
    "Deadlines",
    "Departure",
    "Destination",
    "Dialect",
    "DirtyLog",
    "DirtyLogError",
    "Downtime",
    "Extension",
    "GuestMemory",
    "GuestNotStarted",
    "History",
    "Iteration",
    "JobExecutor",
    "JournalError",
    "KvmDirtyLog",
    "KvmSlot",
    "Limit",
    "LimitedBy",
    "Limits",
    "LoadedSource",
    "Mapping",
    "MemoryMap",
    "Migration",
    "MigrationCancelled",
    "MigrationError",
    "MigrationFailed",
    "OnDemand",
    "OnDemandSource",
    "OutcomeUnknown",
    "Owner",
    "Pace",
    "PageServer",
    "PagemapDirtyLog",
    "Phase",
    "PhaseBegin",
    "Preference",
    "Progress",
    "ReceiveOptions",
    "Reception",
    "Recorded",
    "Report",
    "Sample",
    "SendOptions",
    "SnapshotKind",
    "Source",
    "StoredDestination",
    "StoredSource",
    "StoredVm",
    "StoredVmError",
    "TakesMemory",
    "Throttled",
    "TimeoutStrategy",
    "UsageError",
    "VmConfig",
    "__version__",
    "convert",
    "make_memfds",
    "prefer",
    "receive",
    "send",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
