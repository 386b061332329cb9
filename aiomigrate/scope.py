"""Whose log record it is: of which migration, about which connection, in which phase.

Every task of a migration descends from one, and inherits its context: what is set here once is
known wherever the engine, or an embedder's hook, logs. `log_fields` is for a logging formatter; it
names no secret (an id is derived from the migration's token and does not reveal it).
"""

from contextvars import ContextVar
from dataclasses import dataclass

from aiomigrate.progress import Tracker

__all__ = ["Scope", "enter_connection", "enter_migration", "log_fields"]

_NOWHERE = "-"


@dataclass(slots=True)
class Scope:
    """One side of one migration."""

    migration: str
    """Its id. A destination's own until the source has named the migration, then the common one."""
    tracker: Tracker


_SCOPE: ContextVar[Scope | None] = ContextVar("aiomigrate_scope", default=None)
_CONNECTION: ContextVar[str] = ContextVar("aiomigrate_connection", default=_NOWHERE)


def enter_migration(scope: Scope) -> None:
    """The running task, and all that it starts from now on, belong to this migration."""
    _SCOPE.set(scope)


def enter_connection(name: str) -> None:
    """The running task, and all that it starts from now on, are about this connection."""
    _CONNECTION.set(name)


def log_fields() -> dict[str, str]:
    """`migration`, `connection` and `phase` of the running task; empty outside of a migration."""
    scope = _SCOPE.get()
    if scope is None:
        return {}
    return {
        "migration": scope.migration,
        "connection": _CONNECTION.get(),
        "phase": scope.tracker.phase.value,
    }
