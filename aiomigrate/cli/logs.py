"""Logging of a command: the engine's records, on stderr, for a person or as JSON lines.

A record of a migration carries its id, the connection and the phase: of the task that logs
(`aiomigrate.scope`), or as `extra=` where that task is none of the migration's own.
"""

import logging
import sys
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any, TextIO

__all__ = ["LogFormat", "configure"]

_FIELDS = ("migration", "connection", "phase")


class LogFormat(StrEnum):
    """How log records look."""

    AUTO = "auto"
    HUMAN = "human"
    JSON = "json"


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time: a live display puts itself before it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """Only there because the base class has it."""
        raise AttributeError(f"the stream is sys.stderr, and cannot be {stream!r}")


def _add_scope(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """What the running task knows; `extra=` knows better."""
    from aiomigrate.scope import log_fields

    for name, value in log_fields().items():
        event.setdefault(name, value)
    return event


def configure(log_format: LogFormat, verbosity: int) -> None:
    """Send records to stderr: warnings and errors, from -v on information, from -vv on all."""
    import structlog

    people = log_format is LogFormat.HUMAN or (log_format is LogFormat.AUTO and sys.stderr.isatty())
    renderer = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if people
        else structlog.processors.JSONRenderer()
    )
    handler = _Stderr()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(_FIELDS),
                _add_scope,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.ExceptionRenderer(),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    logging.getLogger("aiomigrate").setLevel(levels[min(verbosity, 2)])
