"""Exit states, and which of them an error means."""

import asyncio
import sys
import traceback
from enum import IntEnum

from aiomigrate.cli.text import one_line

__all__ = ["ExitStatus", "complain", "sentence_of", "status_of"]


class ExitStatus(IntEnum):
    """How a command ended, for scripts."""

    DONE = 0
    FAILED = 1
    """It failed, and the VM is with the source."""
    USAGE = 2
    """Nothing was begun: an option, an address or a directory cannot be meant."""
    UNKNOWN = 3
    """The VM is paused at the source and may be with the destination."""
    CANCELLED = 130
    """Cancelled by SIGINT or SIGTERM; the VM is with the source."""


def status_of(error: BaseException, *, begun: bool) -> ExitStatus:
    """What `error` means. `begun`: whether anything was done that it could have ended."""
    from aiomigrate.errors import MigrationCancelled, OutcomeUnknown, UsageError
    from aiomigrate.journal import JournalError
    from aiomigrate.memory.errors import StoredVmError

    match error:
        case UsageError():
            return ExitStatus.USAGE
        case StoredVmError() | JournalError() if not begun:
            return ExitStatus.USAGE
        case OutcomeUnknown():
            return ExitStatus.UNKNOWN
        case MigrationCancelled() | asyncio.CancelledError() | KeyboardInterrupt():
            return ExitStatus.CANCELLED
        case _:
            return ExitStatus.FAILED


def sentence_of(error: BaseException) -> str:
    """What a person is told of `error`, on one line."""
    from aiomigrate.errors import MigrationError, UsageError
    from aiomigrate.journal import JournalError
    from aiomigrate.memory.errors import StoredVmError
    from aiomigrate.transport import TransportError

    match error:
        case MigrationError() | UsageError() | StoredVmError() | JournalError() | TransportError():
            return one_line(str(error))
        case asyncio.CancelledError() | KeyboardInterrupt():
            return "cancelled; the VM is with the source"
        case OSError():
            return one_line(f"{error.filename or 'the system'}: {error.strerror or error}")
        case _:
            return one_line(f"a fault of aiomigrate's own: {error!r}; -vv shows where")


def complain(error: BaseException, *, verbosity: int) -> str:
    """Tell a person on stderr, in one sentence, and give that sentence; -vv adds the traceback."""
    if verbosity >= 2:
        traceback.print_exception(error)
    sentence = sentence_of(error)
    print(f"aiomigrate: {sentence}", file=sys.stderr)
    return sentence
